import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import InputError
from limbeck.export import charts, wording
from limbeck.export.report import write_report

Folder = tuple[Path, dict[str, Any]]
VOID = {"meta", "br", "use", "path", "rect"}


class Page(HTMLParser):
    """The elements, ids, references and visible text of a page, and whether its tags balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def values(self, *names: str) -> list[str]:
        return [a[n] or "" for _, a in self.elements for n in names if n in a]


@pytest.fixture(autouse=True, scope="module")
def _report_extra(needs: Callable[[object, str], None]) -> None:
    for package in ("jinja2", "matplotlib"):
        needs(importlib.util.find_spec(package), package)


@pytest.fixture(scope="module")
def finished(finished_run: Folder) -> str:
    """The page of a run that nothing happened to."""
    return write_report(finished_run[0]).read_text(encoding="utf-8")


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def rewrite(folder: Path, verdict: dict[str, Any], **changes: Any) -> None:
    (folder / "verdict.json").write_text(json.dumps(verdict | changes))


def shapes(folder: Path) -> list[str]:
    """What the wide forest plot draws, words aside."""
    svg = write_report(folder).read_text(encoding="utf-8").split("<svg")[1]
    return re.findall(r' (?:d|x|y)="([^"]*)"', svg.replace("\n", ""))


def test_page_loads_nothing_and_runs_nothing(finished: str) -> None:
    page, text = Page(finished), finished
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    assert not page.values("src", "srcset", "onclick", "onload")
    assert all(ref.startswith("#") for ref in page.values("xlink:href"))
    assert "@import" not in text
    assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_every_reference_resolves(finished: str) -> None:
    page, text = Page(finished), finished
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    wanted = {ref[1:] for ref in page.values("xlink:href")} | set(
        re.findall(r"url\(#(.*?)\)", text)
    )
    assert wanted and wanted <= ids.keys()


def test_charts_hold_no_colour_that_dark_mode_cannot_change(finished: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", finished, flags=re.S)
    assert len(pictures) == 4
    for picture in pictures:
        assert not re.search(r"(fill|stroke): #", picture)
        assert "<text" in picture


def test_what_models_and_files_say_stays_text(run_folder: Folder) -> None:
    folder, verdict = run_folder
    evil = "</p><script>alert(1)</script><img src=x onerror=alert(2)>"
    row = verdict["rows"][0] | {"metric": evil}
    rewrite(
        folder,
        verdict,
        name=evil,
        rows=[row, *verdict["rows"]],
        samples=[dict.fromkeys(("prompt", "teacher", "student", "control"), evil)],
        notes=[evil],
        outcomes={**verdict["outcomes"], evil: 1},
        teacher=verdict["teacher"] | {"name": evil, "fingerprint": evil},
        permission=verdict["permission"] | {"clause": evil, "source": "javascript:alert(3)"},
    )
    (folder / "recipe.toml").write_text(f"# {evil}")
    page = page_of(folder)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not page.values("href")
    assert page.text.count(evil) >= 10
    assert "javascript:alert(3)" in page.text


def test_every_row_is_told_with_its_unit_and_explained(run_folder: Folder) -> None:
    folder, verdict = run_folder
    new = verdict["rows"][1] | {"metric": "tool_accuracy", "delta": 0.0625}
    rewrite(folder, verdict, rows=[*verdict["rows"], new])
    text = page_of(folder).text
    for row in verdict["rows"]:
        metric = wording.METRICS[row["metric"]]
        assert all(part in text for part in (metric.label, metric.unit, metric.meaning))
    # Table, glossary and both drawings.
    assert text.count("tool_accuracy") == 4
    assert wording.UNSTATED in text
    assert "+0.062" in text


def test_lower_is_better_mirrors_higher_is_better(run_folder: Folder) -> None:
    folder, verdict = run_folder
    up = {"metric": "x", "against": "control", "teacher": None, "student": 2.0, "control": 1.0}
    up |= {"delta": 1.0, "interval": [0.5, 1.2], "margin": 0.25, "n": 9, "passed": True}
    up |= {"better": "higher", "gate": True}
    down = up | {"better": "lower", "delta": -1.0, "interval": [-1.2, -0.5]}
    worse = up | {"delta": -1.0, "interval": [-1.2, -0.5]}
    drawn = []
    for row in (up, down, worse):
        rewrite(folder, verdict, rows=[row], passed=True)
        drawn.append(shapes(folder))
    assert drawn[0] == drawn[1] != drawn[2]


def test_outcomes_add_up_or_the_page_says_so(run_folder: Folder) -> None:
    folder, verdict = run_folder
    total = sum(verdict["outcomes"].values())
    alarm = "but the outcomes add up to"
    text = page_of(folder).text
    assert re.search(rf"total\s*{total:,}\s*answers", text) and alarm not in text
    rewrite(folder, verdict, outcomes=verdict["outcomes"] | {"kept": 1})
    assert f"{alarm} {total - verdict['outcomes']['kept'] + 1}" in page_of(folder).text


def test_failed_gate_leads_the_page(run_folder: Folder) -> None:
    folder, verdict = run_folder
    rows = [row | ({"passed": False} if row["metric"] == "kl" else {}) for row in verdict["rows"]]
    rewrite(folder, verdict, rows=rows, passed=False)
    text = " ".join(page_of(folder).text.split())
    assert "did not pass" in text.split("Permitted")[0]
    assert "1 of 3 gates failed: KL to the teacher against control" in text


def test_verdict_at_odds_with_its_gates_is_refused(run_folder: Folder) -> None:
    folder, verdict = run_folder
    rewrite(folder, verdict, rows=[row | {"passed": False} for row in verdict["rows"]])
    with pytest.raises(InputError, match=r"says passed, but its gate 'kl' did not"):
        write_report(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda v: "", "limbeck validate"),
        (lambda v: json.dumps(v)[:-9], "limbeck validate"),
        (lambda v: json.dumps(v | {"outcomes": {"kept": "many"}}), r"outcomes\.kept"),
        (lambda v: json.dumps({k: v[k] for k in v if k != "confidence"}), "confidence"),
        (lambda v: json.dumps(v | {"rows": [v["rows"][0], {"metric": "kl"}]}), r"rows\.1\."),
    ],
)
def test_damaged_verdict_names_the_key_and_keeps_the_old_page(
    run_folder: Folder, damage: Callable[[dict[str, Any]], str], words: str
) -> None:
    folder, verdict = run_folder
    (folder / "report.html").write_text("the page before")
    (folder / "verdict.json").write_text(damage(verdict))
    with pytest.raises(InputError, match=words) as raised:
        write_report(folder)
    assert "\n" not in str(raised.value) and "verdict.json" in str(raised.value)
    assert (folder / "report.html").read_text() == "the page before"
    assert not list(folder.glob(".*"))


def test_missing_verdict_names_the_command(run_folder: Folder) -> None:
    folder, _ = run_folder
    (folder / "verdict.json").unlink()
    with pytest.raises(InputError, match="limbeck validate") as raised:
        write_report(folder)
    assert raised.value.exit_code == 2


def test_missing_files_are_said(run_folder: Folder) -> None:
    folder, _ = run_folder
    names = ("recipe.toml", "manifest.json", "metrics.jsonl")
    whole = page_of(folder).text
    assert not any(name in whole for name in names)
    for name in names:
        (folder / name).unlink()
    bare = page_of(folder).text
    assert all(f"{name} is missing" in bare for name in names)


def test_least_verdict_is_a_page_that_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"passed": false, "confidence": 0.9, "rows": []}')
    text = page_of(tmp_path).text
    for lack in ("No permission", "nothing was measured", "No size", "No outcomes", "No cost"):
        assert lack in text


def test_resumed_and_killed_training_draws_the_same_page(run_folder: Folder) -> None:
    folder, _ = run_folder
    clean = write_report(folder).read_bytes()
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    # The steps from 31 on were made twice, the first time otherwise; the last line is cut.
    stale = [json.loads(line) for line in lines[30:60]]
    wrong = [row | {k: 99.0 for k in ("loss", "kl", "held_out_kl") if k in row} for row in stale]
    resumed = [*lines[:30], *(json.dumps(row) for row in wrong), *lines[30:], lines[-1][:40]]
    metrics.write_text("\n".join(resumed))
    assert write_report(folder).read_bytes() == clean


def test_what_cannot_be_drawn_is_said(run_folder: Folder) -> None:
    folder, _ = run_folder
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps(first | {"loss": float("nan")})
    lines[4] = lines[4][:30]
    metrics.write_text("\n".join(lines) + "\n")
    text = page_of(folder).text
    assert "1 measured value is not finite" in text
    assert "cannot be read there: line 5." in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_extra_says_how_to_install_it(
    run_folder: Folder, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}.*pip install 'limbeck\[report\]'"):
        write_report(run_folder[0])


def test_neither_torch_nor_early_plotting(run_folder: Folder) -> None:
    code = (
        "import sys, pathlib; from limbeck.export.report import write_report\n"
        "assert not {'matplotlib', 'jinja2'} & sys.modules.keys()\n"
        "write_report(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()\n"
    )
    source = Path(charts.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(run_folder[0])],
        check=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    )


@settings(deadline=None)
@given(st.lists(st.floats(-500, 500), min_size=1, max_size=12), st.floats(0.1, 50))
def test_spread_labels_keep_order_distance_and_centre(wanted: list[float], gap: float) -> None:
    placed = charts.spread(wanted, gap)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    along = [placed[i] for i in order]
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(along))
    assert sum(placed) == pytest.approx(sum(wanted), abs=1e-6)
    # What is apart already stays; so spreading twice changes nothing.
    assert charts.spread(placed, gap) == pytest.approx(placed, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(-5, 5), st.floats(-100, 100))
def test_smoothing_keeps_a_straight_line(length: int, slope: float, start: float) -> None:
    line = [start + slope * i for i in range(length)]
    smoothed = charts.smooth(line)
    reach = length // 20
    assert len(smoothed) == length
    assert smoothed[reach : length - reach] == pytest.approx(line[reach : length - reach], abs=1e-8)


@settings(deadline=None)
@given(st.floats(1e-3, 1e12) | st.floats(-1e12, -1e-3))
def test_written_numbers_read_back(value: float) -> None:
    back = float(wording.number(value).replace(",", "").replace("−", "-"))
    assert back == pytest.approx(value, rel=0.05)


@settings(deadline=None)
@given(st.floats(0, 1e6))
def test_written_durations_read_back(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    parts = re.findall(r"([\d.,]+) (s|min|h)", wording.duration(seconds))
    back = sum(float(number.replace(",", "")) * units[unit] for number, unit in parts)
    assert back == pytest.approx(seconds, abs=30.01 if seconds > 3590 else 0.51)
    assert all(float(number.replace(",", "")) < 60 for number, unit in parts if unit != "h")


def test_large_sizes_change_their_prefix() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert wording.amount("bytes", 162_820_520) == f"162.8{space}MB"
    assert wording.amount("parameters", -53_113_920) == f"−53.1{space}M"
    assert wording.amount("parameters", 1_700_000_000) == f"1.7{space}B"
    assert wording.amount("tokens_per_s", None) == wording.NOTHING
