"""From what a cell wrote to what the agent reads: bounded, clean, head and tail."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class OutputBuffer:
    """Head and tail of a byte stream, in bounded memory, with a count of what fell out."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.total = 0
        self._head = b""
        self._tail = b""

    def add(self, data: bytes) -> None:
        self.total += len(data)
        missing = self.keep - len(self._head)
        if missing > 0:
            self._head, data = self._head + data[:missing], data[missing:]
        self._tail = (self._tail + data)[-self.keep :]

    def pieces(self) -> list[str | int]:
        """Text, or text, number of characters left out (counted as bytes), text."""
        gap = self.total - len(self._head) - len(self._tail)
        if not gap:
            return [clean((self._head + self._tail).decode("utf-8", "replace"))]
        head, tail = (part.decode("utf-8", "replace") for part in (self._head, self._tail))
        return [clean(head), gap, clean(tail)]


def clean(text: str) -> str:
    """Drop terminal sequences, control characters and lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text).encode("utf-8", "backslashreplace").decode()


def clip(pieces: list[str | int], limit: int) -> tuple[str, bool]:
    """Join texts and gaps into at most `limit` characters: head, what was cut, tail."""
    whole = "".join(piece for piece in pieces if isinstance(piece, str)).rstrip("\n")
    gaps = [position for position, piece in enumerate(pieces) if isinstance(piece, int)]
    total = len(whole) + sum(piece for piece in pieces if isinstance(piece, int))
    if not gaps and total <= limit:
        return whole, False
    left = right = whole
    if gaps:
        left = "".join(piece for piece in pieces[: gaps[0]] if isinstance(piece, str))
        right = "".join(piece for piece in pieces[gaps[-1] :] if isinstance(piece, str))
        right = right.rstrip("\n")
    room = max(0, limit - len(f"\n[... {total} characters cut ...]\n"))
    head, tail = left[: room // 2], right[len(right) - min(len(right), room - room // 2) :]
    cut = total - len(head) - len(tail)
    return f"{head}\n[... {cut} characters cut ...]\n{tail}"[:limit], True
