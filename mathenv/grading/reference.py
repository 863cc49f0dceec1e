r"""What is wrong with a reference answer, seen without any answer.

A reference is unusable or not whatever the model wrote: otherwise those who happen to give its
very text would be counted and others not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mathenv.errors import ConfigError
from mathenv.grading.limits import MAX_CHARS, too_big
from mathenv.grading.normalize import normalize

_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([a-zA-Z]+\*?)\}")
_DANGLING = re.compile(
    r"(?:\\(?:frac|dfrac|tfrac|sqrt|times|cdot|leq|geq|neq|cup|cap|binom|pm)|[=<>^_+])\s*$"
)


def checked_golds(gold: object) -> tuple[str, ...]:
    """Return the references as a tuple.

    Raises:
        ConfigError: neither a string nor a sequence of strings.
    """
    if isinstance(gold, str):
        return (gold,)
    if isinstance(gold, Sequence) and not isinstance(gold, bytes | bytearray | memoryview):
        golds = tuple(gold)
        if all(isinstance(one, str) for one in golds):
            return golds
    raise ConfigError(
        f"a reference answer is a string or a list of strings, got {_shown(gold)}: "
        "write numbers as text, '5'"
    )


def checked_answer(answer: object, name: str) -> str:
    """Return an answer that is a string.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(answer, str):
        raise ConfigError(f"{name} is a string, got {_shown(answer)}")
    return answer


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


@lru_cache(maxsize=4096)
def fault(gold: str) -> str:
    """Return what makes a reference unusable, or an empty string."""
    if is_empty(gold):
        return "empty reference answer"
    if cap := too_big(gold):
        return f"reference answer over the {cap} cap"
    if not _balanced(gold) or _DANGLING.search(gold):
        return "the reference answer is cut off: braces do not match, or an operand is missing"
    return ""


def is_empty(text: str) -> bool:
    """Say whether nothing is left of a text when delimiters and blanks are dropped."""
    return not text.strip() or (len(text) <= MAX_CHARS and not normalize(text))


def _balanced(text: str) -> bool:
    depth = 0
    for match in _BRACE.finditer(text):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth < 0:
            return False
    opened: list[str] = []
    for kind, name in _ENVIRONMENT.findall(text):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return depth == 0 and not opened
