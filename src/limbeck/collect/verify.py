"""The one outcome that each answer ends in, and why."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from limbeck.records import Answer

REFUSAL = re.compile(
    r"^\W*(?:i(?:'|’)?m (?:very |so |really )?sorry\b|i apologi[sz]e|sorry,? (?:but )?i\b|"
    r"as an? (?:ai|language model|artificial intelligence)\b|"
    r"(?:unfortunately,? )?i(?: can(?:no|'|’)t| am (?:not able|unable)|"
    r" (?:do not|don(?:'|’)t) feel comfortable| (?:won(?:'|’)t|will not)|"
    r"(?:'|’)m (?:not able|unable)|"
    r" must (?:decline|refuse|respectfully))\b)",
    re.IGNORECASE,
)
LOOP_WORDS, LOOP_TIMES = 4, 4


def verified(answer: Answer) -> Answer:
    """The answer with its outcome: failed, truncated, refused, rejected or kept."""
    outcome, why = "kept", ""
    if not answer.text:
        outcome, why = "failed", "empty answer"
    elif answer.finish_reason == "length":
        outcome, why = "truncated", f"longer than {answer.sampling.max_tokens} tokens"
    elif found := REFUSAL.match(answer.text):
        outcome, why = "refused", f"begins with {found[0].strip()!r}"
    elif loop := _loop(answer.text):
        outcome, why = "rejected", f"repeats {loop!r}"
    return replace(answer, outcome=outcome, why=why)


def _loop(text: str) -> str:
    """A run of words that comes back so often that the model was going in circles."""
    words = text.lower().split()
    runs = Counter(" ".join(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1))
    run, times = runs.most_common(1)[0] if runs else ("", 0)
    return run if times >= LOOP_TIMES else ""
