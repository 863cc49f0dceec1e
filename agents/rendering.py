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
from typing import Any

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
        if not ids:
            return
        self._spans.append(Span(kind, turn, len(self.ids), len(self.ids) + len(ids)))
        self.ids.extend(ids)
        self._logprobs.extend(logprobs)

    def record(self) -> TokenRecord:
        return TokenRecord(
            tuple(self.ids), tuple(self._spans), tuple(self._logprobs), self._fingerprint
        )


class ChatRenderer:
    """Renders with a tokenizer's own chat template, tools as user turns (the paper's way).

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        instruction: text put before the question, after a blank line (none by default).

    Raises:
        RenderError: the template is missing, drops contents or rewrites earlier turns.
    """

    def __init__(self, tokenizer: Any, *, instruction: str = "") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RenderError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
                "set tokenizer.chat_template (a base model needs one before it can be an agent)"
            )
        self.tokenizer = tokenizer
        self.instruction = instruction
        before, self._open, middle, closing = self._cut_template()
        self._before = self._scaffold(before)
        self._opening = self._scaffold(self._open)
        self._middle = self._scaffold(middle)
        self._closing = self._scaffold(closing)
        if not self._middle:
            raise RenderError("the chat template puts nothing between an answer and the next turn")
        self.end_id = self._middle[0]
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
        return [*self._content(text), self.end_id]

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

    def _cut_template(self) -> tuple[str, str, str, str]:
        q, a, b, c, d = _HOLES
        one = self._render([("user", q)])
        two = self._render([("user", q), ("assistant", a), ("user", b)])
        three = self._render(
            [("user", q), ("assistant", a), ("user", b), ("assistant", c), ("user", d)]
        )
        if any(text.count(hole) != 1 for hole in (q, a, b, c, d) for text in [three]):
            raise RenderError("the chat template drops or repeats the content of a message")
        if not two.startswith(one + a):
            raise RenderError(
                "the chat template rewrites a turn when the next one is added, so sampled "
                "tokens would not be the trained ones; use a prefix-preserving template"
            )
        before, opening = one.split(q)
        middle, closing = two[len(one + a) :].split(b)
        if three != two + c + middle + d + closing:
            raise RenderError(
                "the chat template renders earlier turns differently as the conversation "
                "grows; use a prefix-preserving template"
            )
        return before, opening, middle, closing

    def _render(self, turns: list[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

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
        backend = self.tokenizer.backend_tokenizer.to_str()
        parts = json.dumps([backend, self.tokenizer.chat_template, self.instruction])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
