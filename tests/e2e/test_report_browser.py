import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.export.report import write_report

Folder = tuple[Path, dict[str, Any]]
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLIPPED = """() => [...document.querySelectorAll('.chart svg')].filter(s => s.checkVisibility())
  .flatMap(svg => { const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(t => { const b = t.getBoundingClientRect();
      return b.left < box.left - 1 || b.right > box.right + 1
        || b.top < box.top - 1 || b.bottom > box.bottom + 1; }).map(t => t.textContent); })"""
OVERLAPS = """() => [...document.querySelectorAll('.chart svg')].filter(s => s.checkVisibility())
  .flatMap(svg => { const words = [...svg.querySelectorAll('text')]
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    return words.flatMap(([a, p], i) => words.slice(i + 1).filter(([b, q]) =>
      p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4
    ).map(([b]) => a + ' / ' + b)); })"""


@pytest.fixture(autouse=True, scope="module")
def _tools(needs: Callable[[object, str], None]) -> None:
    for package in ("jinja2", "matplotlib", "playwright"):
        needs(importlib.util.find_spec(package), package)
    needs(CHROMIUM.exists(), str(CHROMIUM))


@pytest.fixture(scope="module")
def report(finished_run: Folder) -> Path:
    """The page of a run that nothing happened to."""
    return write_report(finished_run[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Opens a page without a network; gives it and a list of what it complained of or asked for."""

    def opened(path: Path, width: int, scheme: str = "light") -> tuple[Any, list[str]]:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        request.addfinalizer(context.close)
        page, troubles = context.new_page(), []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda failed: troubles.append(failed.url))
        page.on("request", lambda asked: asked.url == path.as_uri() or troubles.append(asked.url))
        page.goto(path.as_uri(), wait_until="load")
        return page, troubles

    return opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_page_opens_offline_and_fits(
    report: Path, visit: Callable[..., Any], tmp_path: Path, width: int, scheme: str
) -> None:
    page, troubles = visit(report, width, scheme)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    charts = [c for c in page.locator(".chart svg").all() if c.is_visible()]
    assert len(charts) == 2
    for chart in charts:
        box, shapes = chart.bounding_box(), chart.locator("path, use")
        assert box["width"] > 0.7 * min(width, 960) and box["height"] > 200
        assert shapes.count() > 20
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(OVERLAPS) == []
    picture = tmp_path / f"{width}-{scheme}.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    assert troubles == []


def test_visible_counts_are_those_of_the_verdict(
    finished_run: Folder, report: Path, visit: Callable[..., Any]
) -> None:
    _, verdict = finished_run
    page, _ = visit(report, 1280)

    def shown(selector: str) -> int:
        return int(re.sub(r"\D", "", page.locator(selector).inner_text()))

    outcomes = verdict["outcomes"]
    assert {key: shown(f"[data-outcome={key}] b") for key in outcomes} == outcomes
    assert shown("[data-outcome=total] b") == sum(outcomes.values())
    assert shown("[data-cost=in] dd") == verdict["cost"]["teacher_tokens_in"]
    assert shown("[data-cost=out] dd") == verdict["cost"]["teacher_tokens_out"]
    assert page.locator(".rows tbody tr").count() == len(verdict["rows"])
    assert page.locator(".sample").count() == len(verdict["samples"])


def test_three_roles_keep_their_colours(report: Path, visit: Callable[..., Any]) -> None:
    """The answers' rules, the bars and the curves of a role are one colour, in either scheme."""
    colour = "(e, name) => getComputedStyle(e).getPropertyValue(name)"
    for scheme in ("light", "dark"):
        page, _ = visit(report, 1280, scheme)

        def of(selector: str, name: str, page: Any = page) -> str:
            return page.locator(selector).first.evaluate(colour, name)

        student = of("h1 .student", "color")
        teacher = of("h1 .teacher", "color")
        assert student == of(".bar i.student", "background-color")
        assert student == of(".answer.student", "border-top-color")
        assert student == of("#training .wide text:text('student')", "fill")
        assert teacher == of(".bar i.teacher", "background-color")
        assert teacher == of(".answer.teacher", "border-top-color")
        assert of("#training .wide text:text('control')", "fill") == of(
            ".answer.control", "border-top-color"
        )
        assert len({student, teacher, of("body", "color"), of("body", "background-color")}) == 4


def test_script_in_an_answer_does_not_run(run_folder: Folder, visit: Callable[..., Any]) -> None:
    folder, verdict = run_folder
    evil = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    text = (folder / "verdict.json").read_text()
    prompt = verdict["samples"][0]["prompt"]
    (folder / "verdict.json").write_text(text.replace(prompt, evil.replace('"', '\\"')))
    page, troubles = visit(write_report(folder), 390)
    assert evil in page.locator(".sample h3").first.inner_text()
    assert page.title() != "taken" and troubles == []


def test_folded_lineage_opens_with_the_recipe(
    finished_run: Folder, report: Path, visit: Callable[..., Any]
) -> None:
    folder, verdict = finished_run
    page, _ = visit(report, 1280)
    recipe = page.locator("details pre")
    assert not recipe.is_visible()
    for summary in page.locator("summary").all():
        summary.click()
    assert recipe.inner_text().strip() == (folder / "recipe.toml").read_text().strip()
    assert verdict["student"]["fingerprint"] in page.locator(".plain").inner_text()
