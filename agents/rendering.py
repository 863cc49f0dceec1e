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

from agents.dialects import Dialect, dialects
from agents.templates import Parts, ToolRole, cut_template
from mathenv.errors import RenderError
from mathenv.protocol import output_block
from mathenv.types import FinishReason, Span, SpanKind, TokenRecord, Turn


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


class ChatRenderer:
    """Renders with a tokenizer's own chat template, or with a dialect's.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        dialect: whose template to use in place of the tokenizer's own.
        tool_role: who tells the interpreter's output. "user": a user turn with an `output`
            block, the paper's way, for which any template will do. "tool": the template's.
        system: text of the system message. Put before the question, after a blank line,
            where the template has no such role.
        instruction: text put before the question, after a blank line.

    Attributes:
        dialect: the one given, or the one that the tokenizer's template writes, or None.
        stop_ids: tokens that end a turn.
        stop_strings: texts that end a turn.

    Raises:
        RenderError: the template is missing, drops contents (reasoning between `<think>` and
            `</think>` too), escapes them or rewrites earlier turns; or no special token ends
            a turn. The message names the dialects that this tokenizer could use.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        dialect: Dialect | None = None,
        tool_role: ToolRole = "user",
        system: str = "",
        instruction: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.tool_role = tool_role
        try:
            self._use_template(dialect, system, instruction)
        except RenderError as error:
            if dialect is not None:
                raise
            raise RenderError(f"{error}{_advice(tokenizer, tool_role)}") from error
        self.fingerprint = self._fingerprint()

    def _use_template(self, dialect: Dialect | None, system: str, instruction: str) -> None:
        if dialect:
            _check_tokens(self.tokenizer, dialect)
        self._template = dialect.template if dialect else _own_template(self.tokenizer)
        parts = self._cut(with_system=False)
        self.system, self.instruction = system, instruction
        if system:
            try:
                parts = self._cut(with_system=True)
            except RenderError:  # no such role, or not where it can stay: tell the user's turn
                self.system = ""
                self.instruction = "\n\n".join(filter(None, (system, instruction)))
        head = [*self._scaffold(parts.head), *self._content(self.system)]
        self._before = [*(head if self.system else []), *self._scaffold(parts.before)]
        self._opening, self._middle, self._closing = map(self._scaffold, parts[2:5])
        self._lead = parts.lead
        self.end_id = self._end_id(parts)
        self.dialect = dialect or _recognise(self.tokenizer, self._template)
        self.stop_strings = self.dialect.stop_strings if self.dialect else ()
        self.stop_ids = frozenset({self.end_id} | self._eos_ids() | self._dialect_ids())

    def _cut(self, *, with_system: bool) -> Parts:
        return cut_template(
            self.tokenizer, self._template, tool_role=self.tool_role, system=with_system
        )

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
        text = output_block(observation) if self.tool_role == "user" else observation
        ledger.append(SpanKind.OBSERVATION, turn, self._content(text))
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

    def _end_id(self, parts: Parts) -> int:
        """Return the token that ends a turn: special, and nothing a content can spell."""
        control = set(_control_tokens(self.tokenizer).values())
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

    def _scaffold(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _content(self, text: str) -> list[int]:
        return list(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    def _eos_ids(self) -> set[int]:
        eos = self.tokenizer.eos_token_id
        return set() if eos is None else {eos}

    def _dialect_ids(self) -> set[int]:
        names = self.dialect.stop_tokens if self.dialect else ()
        control = _control_tokens(self.tokenizer)
        return {control[name] for name in names if name in control}

    def _fingerprint(self) -> str:
        """Identify what ids mean: tokenizer and template, not what was said in them."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for setting in ("padding", "truncation"):  # whatever the last call left there
            backend.pop(setting, None)
        parts = json.dumps([backend, self._template, ""])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _own_template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise RenderError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template "
            "(a base model needs one before it can be an agent): set tokenizer.chat_template"
        )
    return str(tokenizer.get_chat_template())


def _check_tokens(tokenizer: Any, dialect: Dialect) -> None:
    lacking = [t for t in dialect.control_tokens if t not in _control_tokens(tokenizer)]
    if lacking:
        raise RenderError(
            f"the dialect {dialect.name} is not for this tokenizer, which has no control "
            f"tokens {', '.join(lacking)}"
        )


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    # Some tokenizers (Gemma's) list runs of blanks among their added tokens.
    added = tokenizer.added_tokens_decoder.items()
    return {str(token): number for number, token in added if str(token).strip()}


def _recognise(tokenizer: Any, template: str) -> Dialect | None:
    """Return the dialect whose template writes what this one writes."""
    for dialect in dialects().values():
        try:
            if cut_template(tokenizer, dialect.template) == cut_template(tokenizer, template):
                return dialect
        except RenderError:  # e.g. it needs a token that this tokenizer lacks
            continue
    return None


def _advice(tokenizer: Any, tool_role: ToolRole) -> str:
    usable = []
    for name, dialect in dialects().items():
        try:
            ChatRenderer(tokenizer, dialect=dialect, tool_role=tool_role)
        except RenderError:
            continue
        usable.append(name)
    return f" (this tokenizer can use the dialects {', '.join(usable)})" if usable else ""
