"""The one outcome that each answer ends in, and why."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from operator import itemgetter

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
    """The answer with its outcome: failed, truncated, refused, rejected or kept.

    What has been found wanting before (a service gave none, or would not) stays as it is.
    """
    if answer.outcome != "kept":
        return answer
    outcome, why = "kept", ""
    if answer.finish_reason == "length":
        outcome, why = "truncated", f"longer than {answer.sampling.max_tokens} tokens"
    elif answer.finish_reason == "refusal":
        outcome, why = "refused", "by the service"
    elif not answer.text and not answer.tool_calls:
        outcome, why = "failed", "empty answer"
    elif found := REFUSAL.match(answer.text):
        outcome, why = "refused", f"begins with {found[0].strip()!r}"
    elif loop := _loop(answer.text):
        outcome, why = "rejected", f"repeats {loop!r}"
    return replace(answer, outcome=outcome, why=why)


def _loop(text: str) -> str:
    """A run of words that comes back so often that the model was going in circles."""
    words = text.lower().split()
    runs = Counter(zip(*(words[i:] for i in range(LOOP_WORDS)), strict=False))
    run, times = max(runs.items(), key=itemgetter(1), default=((), 0))
    return " ".join(run) if times >= LOOP_TIMES else ""
