"""From a model's final turn to the text of its answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.protocol import last_boxed, prose

_THINK_OPEN = "<think>"
_THINK_CLOSE = "</think>"
_ANSWER_IS = re.compile(r"answer\s*(?:is|:)\s*:?\s*(.*)", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$?|\\[\[(]")  # opens one
_CLOSING = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+")
_OUTPUT = re.compile(r"```output[^\S\n]*\n(.*?)\n?```", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_SEARCHED = 20_000  # characters from the end: an answer stands there


def visible_text(response: str) -> str:
    """Return `response` without its reasoning: a box in a scratchpad is not an answer."""
    text = response.rsplit(_THINK_CLOSE, 1)[-1]
    return text.split(_THINK_OPEN, 1)[0]


def extract_answer(response: str, policy: GradePolicy = STRICT) -> str | None:
    r"""Return the answer in the text after the last `</think>`, or None.

    It is what the last balanced `\boxed{}` holds; an empty box counts as no answer. Several
    boxes: the last one, because joining them rewards listing guesses, unless `policy.boxes`
    asks for all. No box: None, unless `policy.fallback` allows to guess.
    """
    text = visible_text(response)
    if policy.boxes == "all" and len(boxes := _all_boxed(text)) > 1:
        return ", ".join(boxes)
    return last_boxed(text) or _fallback(text, policy) or None


def _all_boxed(text: str) -> list[str]:
    """Return the contents of all balanced boxes that are not empty, in order, each once."""
    text = prose(text)
    starts = [match.start() for match in _BOX.finditer(text)] + [len(text)]
    contents = (last_boxed(text[a:b]) for a, b in itertools.pairwise(starts))
    return list(dict.fromkeys(content for content in contents if content))


def _fallback(text: str, policy: GradePolicy) -> str:
    if policy.fallback == "none":
        return ""
    outputs = _OUTPUT.findall(text[-_SEARCHED:])
    text = prose(text)[-_SEARCHED:]
    stated = _ANSWER_IS.findall(text)
    if stated and stated[-1].strip():
        return _first_formula(stated[-1]) or stated[-1].strip()
    if policy.fallback == "number" and outputs and outputs[-1].strip():
        return str(outputs[-1]).strip()
    if policy.fallback == "text" and (formulas := list(_formulas(text))):
        return formulas[-1].strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def _formulas(text: str) -> Iterator[str]:
    r"""Yield what stands in `$$..$$`, `\[..\]`, `\(..\)` and `$..$`, in order.

    Linear, which one pattern is not: it looks for the end of each of many open `\[` again.
    """
    position = 0
    never_closed: set[str] = set()  # beyond `position`
    while match := _FORMULA.search(text, position):
        opening = match[0]
        position = match.start() + 1
        if opening in never_closed:
            continue
        end = text.find(_CLOSING[opening], match.end() + 1)  # never empty
        if end < 0:
            never_closed.add(opening)
        else:
            yield text[match.end() : end]
            position = end + len(_CLOSING[opening])


def _first_formula(text: str) -> str:
    return next(_formulas(text), "").strip()


def unwrap_box(text: str, policy: GradePolicy = STRICT) -> str:
    r"""Return the content of the last `\boxed{}` of a reference answer, or the text itself."""
    if "\\boxed" in text or "\\fbox" in text:
        if policy.boxes == "all" and len(boxes := _all_boxed(text)) > 1:
            return ", ".join(boxes)
        content = last_boxed(text)
        if content is not None:
            return content
    return text.strip()
