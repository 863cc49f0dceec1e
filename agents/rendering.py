"""Conversation to token ids and back: ONE source for sampling and for training.

A chat template is read once, with placeholders in place of contents, and cut into the
constant texts around them. Constant texts are tokenised with special tokens, contents
without: an observation that prints `<end_of_turn>` stays text and cannot close a turn.
Tokens are only ever appended, so the ids that were sampled are the ids trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from mathenv.errors import RenderError
from mathenv.protocol import output_block
from mathenv.types import FinishReason, Span, SpanKind, TokenRecord, Turn

_HOLES = tuple(f"\u2983{name}\u2984" for name in "QABCD")


class Ledger:
    """Append-only tokens of one trajectory. Spans tile the ids by construction."""

    def __init__(self, fingerprint: str) -> None:
        self.ids: list[int] = []
        self._spans: list[Span] = []
        self._logprobs: list[float] = []
        self._fingerprint = fingerprint

    def append(
        self, kind: SpanKind, turn: int, ids: Sequence[int], logprobs: Sequence[float] = ()
    ) -> None:
        """Add a run of tokens. `logprobs` belong to sampled tokens only."""
        if logprobs and kind is not SpanKind.SAMPLED:
            raise RenderError("log-probs recorded for tokens that were not sampled")
        if logprobs and len(logprobs) != len(ids):
            raise RenderError(f"{len(logprobs)} log-probs recorded for {len(ids)} sampled tokens")
        if not ids:
            return
        self._spans.append(Span(kind, turn, len(self.ids), len(self.ids) + len(ids)))
        self.ids.extend(ids)
        self._logprobs.extend(logprobs)

    def cut(self, length: int) -> None:
        """Take back what was appended after the first `length` tokens and never sent."""
        if any(s.end > length for s in self._spans if s.kind is SpanKind.SAMPLED):
            raise RenderError("sampled tokens cannot be taken back")
        self._spans = [span for span in self._spans if span.end <= length]
        del self.ids[length:]

    def record(self) -> TokenRecord:
        return TokenRecord(
            tuple(self.ids), tuple(self._spans), tuple(self._logprobs), self._fingerprint
        )


class _Parts(NamedTuple):
    """The constant texts: around the first question, then around each later user turn.

    `lead` is blank text that the template puts before a written answer.
    """

    before: str
    opening: str
    middle: str
    closing: str
    lead: str


class ChatRenderer:
    """Renders with a tokenizer's own chat template, tools as user turns (the paper's way).

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        instruction: text put before the question, after a blank line (none by default).

    Raises:
        RenderError: the template is missing, drops contents (reasoning between `<think>` and
            `</think>` too) or rewrites earlier turns; or no special token ends a turn.
    """

    def __init__(self, tokenizer: Any, *, instruction: str = "") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RenderError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
                "set tokenizer.chat_template (a base model needs one before it can be an agent)"
            )
        self.tokenizer = tokenizer
        self.instruction = instruction
        parts = self._cut_template()
        self._before, self._opening, self._middle, self._closing = map(self._scaffold, parts[:4])
        self._lead = parts.lead
        self.end_id = self._end_id(parts)
        self.stop_ids = frozenset({self.end_id} | self._eos_ids())
        self.fingerprint = self._fingerprint()

    def prompt_ids(self, question: str) -> list[int]:
        """Return the ids up to where the model begins its first turn."""
        text = f"{self.instruction}\n\n{question}" if self.instruction else question
        return [*self._before, *self._content(text), *self._opening]

    def append_prompt(self, ledger: Ledger, question: str) -> None:
        ledger.append(SpanKind.PROMPT, 0, self.prompt_ids(question))

    def append_observation(self, ledger: Ledger, turn: int, observation: str) -> None:
        """Close turn `turn` where the model did not, and append what the tool answered."""
        skip = 1 if ledger.ids[-1] == self.end_id else 0
        ledger.append(SpanKind.SCAFFOLD, turn, self._middle[skip:])
        ledger.append(SpanKind.OBSERVATION, turn, self._content(output_block(observation)))
        ledger.append(SpanKind.SCAFFOLD, turn, self._closing)

    def action_ids(self, text: str) -> list[int]:
        """Return the tokens of a written (not sampled) turn, end of turn included."""
        lead = "" if text.startswith(self._lead) else self._lead
        return [*self._content(lead + text), self.end_id]

    def action_text(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids, without the end-of-turn token."""
        body = list(ids)
        while body and body[-1] in self.stop_ids:
            body.pop()
        return str(self.tokenizer.decode(body, clean_up_tokenization_spaces=False))

    def record_turns(self, question: str, turns: Sequence[Turn]) -> TokenRecord:
        """Render written turns, e.g. demonstrations: their actions count as sampled."""
        ledger = Ledger(self.fingerprint)
        self.append_prompt(ledger, question)
        for number, turn in enumerate(turns):
            ids = self.action_ids(turn.action)
            if turn.finish is not FinishReason.STOP:
                ids = ids[:-1]
            ledger.append(SpanKind.SAMPLED, number, ids)
            if number < len(turns) - 1:
                self.append_observation(ledger, number, turn.observation)
        return ledger.record()

    def _cut_template(self) -> _Parts:
        q, a, b, c, d = _HOLES
        one = self._render(q)
        two = self._render(q, a, b)
        three = self._render(q, a, b, c, d)
        for text, holes in ((one, [q]), (two, [q, a, b]), (three, [q, a, b, c, d])):
            if any(text.count(hole) != 1 for hole in holes):
                raise RenderError("the chat template drops or repeats the content of a message")
        if f"<think>{c}</think>" not in self._render(q, f"<think>{c}</think>{a}", b):
            raise RenderError(
                "the chat template drops the reasoning of earlier turns (<think>), which was "
                "sampled and is trained on; use a template that keeps it"
            )
        lead, found, rest = two.removeprefix(one).partition(a)
        # Mistral's template puts a blank before an answer, which the model samples itself.
        if not two.startswith(one) or not found or lead.strip():
            raise RenderError(
                "the chat template rewrites a turn when the next one is added, so sampled "
                "tokens would not be the trained ones; use a prefix-preserving template"
            )
        before, opening = one.split(q)
        middle, closing = rest.split(b)
        if three != two + lead + c + middle + d + closing:
            raise RenderError(
                "the chat template renders earlier turns differently as the conversation "
                "grows; use a prefix-preserving template"
            )
        return _Parts(before, opening, middle, closing, lead)

    def _end_id(self, parts: _Parts) -> int:
        """Return the token that ends a turn: special, and nothing a content can spell."""
        # Some tokenizers (Gemma's) list runs of blanks among their added tokens.
        added = self.tokenizer.added_tokens_decoder
        control = {number for number, token in added.items() if str(token).strip()}
        if not self._middle or self._middle[0] not in control:
            raise RenderError(
                "the chat template ends an answer with no special token "
                f"(but with {parts.middle[:20]!r}), so a model cannot end its turn"
            )
        spelled = control.intersection(self._content("".join(parts)))
        if spelled:
            names = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(spelled)))
            raise RenderError(
                f"the tokenizer reads {names} in ordinary text as control tokens: mark them as "
                "special, or an output that prints them could close a turn"
            )
        return self._middle[0]

    def _render(self, *contents: str) -> str:
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": content}
            for number, content in enumerate(contents)
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template is a program of its own: it may raise anything
            raise RenderError(f"the chat template cannot be rendered: {error}") from error

    def _scaffold(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _content(self, text: str) -> list[int]:
        return list(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    def _eos_ids(self) -> set[int]:
        eos = self.tokenizer.eos_token_id
        return set() if eos is None else {eos}

    def _fingerprint(self) -> str:
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for setting in ("padding", "truncation"):  # whatever the last call left there
            backend.pop(setting, None)
        parts = json.dumps([backend, self.tokenizer.chat_template, self.instruction])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
