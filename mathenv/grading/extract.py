"""From a model's final turn to the text of its answer."""

from __future__ import annotations

from mathenv.protocol import last_boxed

_THINK_OPEN = "<think>"
_THINK_CLOSE = "</think>"


def visible_text(response: str) -> str:
    """Return `response` without its reasoning: a box in a scratchpad is not an answer."""
    text = response.rsplit(_THINK_CLOSE, 1)[-1]
    return text.split(_THINK_OPEN, 1)[0]


def extract_answer(response: str) -> str | None:
    r"""Return what the last balanced box after the last `</think>` holds, or None.

    An empty box counts as no answer. Several boxes: the last one, because joining them
    rewards listing guesses.
    """
    return last_boxed(visible_text(response)) or None


def unwrap_box(text: str) -> str:
    r"""Return the content of the last `\boxed{}` of a reference answer, or the text itself."""
    if "\\boxed" in text or "\\fbox" in text:
        content = last_boxed(text)
        if content is not None:
            return content
    return text.strip()
