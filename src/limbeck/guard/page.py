"""A page as a tree of elements: every text is escaped when it is written, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias, cast
from xml.etree.ElementTree import Element, iselement, tostring

Child: TypeAlias = "Element | str | Iterable[Element | str]"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def el(tag: str, *children: Child, **attributes: object) -> Element:
    """An element; `class_` and `stroke_width` become class and stroke-width, None is left out."""
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), CONTROL.sub("�", str(value)))
    for child in children:
        if isinstance(child, str) or iselement(child):
            _append(made, child)
        else:
            for one in cast("Iterable[Element | str]", child):
                _append(made, one)
    return made


def _append(parent: Element, child: Element | str) -> None:
    if not isinstance(child, str):
        parent.append(child)
        return
    text = CONTROL.sub("�", child)
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text


def quoted(text: str) -> Element:
    """A text of the log, which cannot turn the direction of what stands around it."""
    return el("bdi", text)


def written(title: str, *body: Child) -> str:
    """The whole page: one file without scripts that asks for nothing from anywhere."""
    here = Path(__file__).parent
    sheets = (here.parent / "page.css", here / "report.css")
    style = "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", **{"http-equiv": "Content-Security-Policy"}, content=POLICY),
        el("title", title),
        el("style", style),
    )
    page = el("html", head, el("body", el("main", *body)), lang="en")
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
