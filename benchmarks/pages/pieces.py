"""What each token says, for showing tokens one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError
from mathenv.types import SpanKind, TokenRecord

FILE = "tokenizer.json"
_ANCHOR = "a"  # some tokenizers drop a space at the start of a text: nothing starts a text here


class TokenTexts:
    """A tokenizer's tokens as text. Needs the package `tokenizers`, which comes with `train`.

    Raises:
        ConfigError: there is no tokenizer at this place.
        ModuleNotFoundError: `tokenizers` is not installed.
    """

    def __init__(self, path: Path) -> None:
        file = path / FILE if path.is_dir() else path
        library: Any = import_module("tokenizers")
        try:
            self._tokenizer = library.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more exact
            raise ConfigError(f"{path} holds no tokenizer ({FILE}): {error}") from None
        self._anchor = self._tokenizer.encode(_ANCHOR, add_special_tokens=False).ids

    def text(self, token: int) -> str:
        """Return one token's text; bytes that are no character alone become U+FFFD."""
        alone = self._decode(self._anchor)
        return self._decode([*self._anchor, token]).removeprefix(alone)

    def wrote(self, record: TokenRecord, action: str) -> bool:
        """Say whether this tokenizer gives the first action from the tokens that were sampled."""
        sampled = [s for s in record.spans if s.kind is SpanKind.SAMPLED and s.turn == 0]
        ids = [i for span in sampled for i in record.ids[span.start : span.end]]
        return action.strip() in self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def piece_texts(
    pieces: Iterable[tuple[str, int]],
    records: Mapping[str, tuple[TokenRecord, str]],
    texts: TokenTexts | None,
) -> tuple[list[str | None], list[str]]:
    """Return one text per piece (None: unknown) and the fingerprints that have none.

    A tokenizer that does not reproduce what a fingerprint's model wrote is another one.
    """
    known = {
        fingerprint
        for fingerprint, (record, action) in records.items()
        if texts is not None and texts.wrote(record, action)
    }
    found = [
        texts.text(token) if texts is not None and fingerprint in known else None
        for fingerprint, token in pieces
    ]
    return found, [fingerprint for fingerprint in records if fingerprint not in known]
