"""The compiled sketch beside numpy's, which is its oracle: every column is the same."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from limbeck.guard import compiled, lexicon, passes, sketch
from limbeck.guard.logs import ingest
from limbeck.guard.readers.source import Source
from limbeck.guard.simulate import Plan, simulate
from limbeck.guard.simulate.hostile import chosen
from limbeck.guard.state import files
from limbeck.guard.texts import buffers, folded
from limbeck.guard.words import LONGEST, WORD_BYTES

BY_HAND: list[str | None] = [
    "",
    None,
    " \t\n",
    "?!… --- ()[]",
    "{};{};{}",
    "{ } ; = x",
    "It costs 3.5 or 3. 5, see http://a.b/c: and then: solve this",
    'Translate the following sentence to French: "You are here"',
    "Explain step by step how the answer was found\nA new line of words\n\nAnd `code` here",
    "Solve: what: is: this: and: that: one: more: time: please: explain: it:",
    "42 17 3.14 0x1f 7up 1,000",
    "+ - * / = < > ^ % a+b=c ++ c++ 5%",
    "x" * WORD_BYTES,
    "x" * (WORD_BYTES + 1) + " " + "Y" * 400,
    *("abcdefghijklmnopqrstuvwxyz"[:length] for length in range(1, 26)),
    "nul\0in the\0middle\0",
    "I'M SHOUTING @[`{ ÀÉÎ ÇA VA ß ẞ",
    "请一步一步推理。给出答案:为什么?",
    "我用python写3个函数。abc中文def",
    "ステップバイステップで考えてください。ﾊﾝｶｸ",
    "단계별로 추론 과정을 보여 주세요.",
    "Реши шаг за шагом: сколько будет 2+2?",
    "अपना तर्क दिखाओ। תסביר צעד אחר צעד. اشرح خطوة بخطوة؟ อธิบายทีละขั้นตอน",
    "emoji 👩‍👩‍👧‍👦 then 🇫🇷 then ❤️.",
    "zero​width‍joined⁠words",
    "ｆｕｌｌ　ｗｉｄｔｈ：「引用」“quoted”",
    "﷽" * 40,
    "一" * LONGEST,
    "a " * LONGEST,
    "+" * (LONGEST + 5),
    "x" * 10_000_000,
    "Show your reasoning. " * 4000,
]


def columns(fill: Any, prompts: pa.Array) -> passes.Columns:
    texts, _, _ = folded(prompts)
    bounds, data = buffers(texts)
    filled = passes.empty(len(texts))
    fill(data, bounds, filled)
    return filled


def alike(prompts: pa.Array) -> None:
    ours, due = columns(compiled.fill, prompts), columns(passes.fill, prompts)
    for name, one, two in zip(passes.Columns._fields, ours, due, strict=True):
        wrong = np.argwhere(one != two)
        assert not len(wrong), (name, prompts[int(wrong[0][-1])].as_py()[:200])


def test_prompts_made_by_hand():
    alike(pa.array(BY_HAND))
    alike(pa.array(BY_HAND[::-1]))
    for prompt in BY_HAND:
        alike(pa.array([prompt], pa.string()))


def test_slices_and_bytes_that_are_no_utf8():
    prompts = pa.array(BY_HAND)
    alike(prompts[5:-7])
    alike(pa.array(BY_HAND, pa.large_string())[3:4])
    alike(pa.array([b"caf\xe9 \xff\xfe au lait", b"\xe3", b"a\xe3\x80", b"\xe9 b"], pa.binary()))
    alike(pa.array([], pa.string()))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=80) | st.none(), min_size=1, max_size=8))
def test_any_text_of_any_script(prompts: list[str | None]):
    alike(pa.array(prompts, pa.string()))


def test_words_of_the_lexicon_among_marks_of_all_kinds():
    rng = random.Random(5)
    kinds = (lexicon.STRONG, lexicon.FRAME, lexicon.REASONING, lexicon.RUBRIC, lexicon.TRACE)
    known = " ".join((*kinds, *lexicon.CAPABLE.values())).replace("|", " ").split()
    known += ["platypus", "zebrafish", "x" * 50, "12", "3.5"]
    marks = [" "] * 12 + [". ", ": ", "\n", ' "', "`", "; ", "{", "。", "//", "!", ":", ".", ""]
    alike(
        pa.array(
            "".join(rng.choice(known) + rng.choice(marks) for _ in range(rng.randrange(60)))
            for _ in range(1500)
        )
    )


def test_two_threads_at_once_say_the_same():
    prompts = pa.array([one for one in BY_HAND if one is None or len(one) < 10_000] * 40)
    due = columns(passes.fill, prompts)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: columns(compiled.fill, prompts), range(6)))
    for one in both:
        assert all(np.array_equal(a, b) for a, b in zip(one, due, strict=True))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "out"
    simulate(Plan(accounts=150, days=3, attacks=chosen("all", 5, {})), out)
    return out / "calls"


def test_simulated_prompts(log: Path):
    alike(pq.read_table(log)["prompt"].combine_chunks())


def state(log: Path, out: Path) -> list[dict[str, Any]]:
    told = ingest(Source(str(log)), out, threads=2)
    calls = pa.concat_tables([pq.ParquetFile(path).read() for path in files(out)])
    return [told, *calls.to_pylist(), *pq.read_table(out / "templates.parquet").to_pylist()]


def test_without_numba_the_state_is_the_same(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used: list[int] = []
    monkeypatch.setattr(sketch, "WORTH", 0)
    monkeypatch.setattr(
        compiled, "fill", lambda *all, fill=compiled.fill: (used.append(1), fill(*all))
    )
    sketch._compiled.cache_clear()
    due = state(log, tmp_path / "with")
    assert used
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "limbeck.guard.compiled")
    sketch._compiled.cache_clear()
    used.clear()
    assert state(log, tmp_path / "without") == due
    assert not used
    sketch._compiled.cache_clear()


def test_numba_is_not_loaded_with_guard():
    code = "import sys, limbeck.guard.logs; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
