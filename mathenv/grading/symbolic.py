"""The last tier: math-verify in a worker process, with its known false positives rejected."""

from __future__ import annotations

import atexit
import os
import re
import threading

from mathenv.grading.normalize import braced
from mathenv.grading.pool import Reply, WorkerPool
from mathenv.grading.text import base_tokens

_MEMO_SIZE = 20_000
_MEMO_VERDICTS = frozenset({"correct", "incorrect", "unparsed", "gold_error"})

_LATEX_SPELLING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ","),
        (r",(?:\s*,)+", ","),
        (r"\*\*\s*\(([^()]*)\)", r"^{\1}"),
        (r"\*\*\s*(-?[0-9a-z]+)", r"^{\1}"),
        (r"(?<![\\a-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-z])(sin|cos|tan|log|ln|pi)(?![a-z])", r"\\\1"),
    )
)


class SymbolicComparer:
    """Compares two LaTeX answers in a pool, remembering verdicts. Thread safe.

    Time-outs are never remembered: they depend on the machine.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._memo: dict[tuple[str, str], Reply] = {}
        self._lock = threading.Lock()

    def __call__(self, gold: str, answer: str) -> Reply:
        pair = (to_latex(gold), to_latex(answer))
        reply = self._memo.get(pair)
        if reply is None:
            reply = self._compare(*pair)
            if reply.verdict in _MEMO_VERDICTS:
                with self._lock:
                    if len(self._memo) >= _MEMO_SIZE:
                        self._memo.clear()
                    self._memo[pair] = reply
        return reply

    def _compare(self, gold: str, answer: str) -> Reply:
        reply = self.pool.compare(gold, answer)
        if reply.verdict != "correct":
            return reply
        if base_tokens(gold) != base_tokens(answer):
            return Reply("incorrect", "math-verify accepted it, the base subscripts differ")
        if _lengths_differ(gold, answer):
            return Reply("incorrect", "math-verify accepted it, the number of values differs")
        return reply


def _lengths_differ(gold: str, answer: str) -> bool:
    r"""Say whether one side lists more values: as sets, `-2,-2` would equal `-2`."""
    if "\\pm" in gold + answer or "=" in gold or _is_set(gold) or _is_set(answer):
        return False
    return _count_values(gold) != _count_values(answer)


def _is_set(text: str) -> bool:
    return text.startswith(("{", "\\{"))


def _count_values(text: str) -> int:
    """Return the number of parts that commas and semicolons outside brackets separate."""
    depth, count = 0, 1
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        count += depth == 0 and char in ",;"
    return count


def to_latex(text: str) -> str:
    """Write plain spellings (`2**3`, `sqrt(2)`, `and`) as the LaTeX that the parser knows."""
    for pattern, replacement in _LATEX_SPELLING:
        text = pattern.sub(replacement, text)
    return braced(text).strip()


_shared: SymbolicComparer | None = None
_shared_lock = threading.Lock()


def shared_comparer() -> SymbolicComparer:
    """Return the comparer of this process. Its workers start with the first comparison."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = SymbolicComparer(WorkerPool())
        return _shared


def close() -> None:
    """End the worker processes of this process. The next comparison starts new ones."""
    global _shared
    with _shared_lock:
        comparer, _shared = _shared, None
    if comparer is not None:
        comparer.pool.close()


def _forget_after_fork() -> None:
    """Leave the parent's workers to the parent: two readers of one pipe mix up verdicts."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close)
os.register_at_fork(after_in_child=_forget_after_fork)
