"""`limbeck guard …`: what a provider types, and nothing of how it is done."""

from __future__ import annotations

from cyclopts import App

app = App(
    name="guard",
    help="Find, in your own logs, the campaign that distils your model.",
    help_format="plaintext",
)
