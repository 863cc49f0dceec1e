"""A chat template, read once: rendered with placeholders and cut into its constant texts.

Rendering anew each turn and taking the difference would need a tokenizer under which the
text of a longer conversation begins with the tokens of the shorter one; none promises that.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from mathenv.errors import RenderError

ToolRole = Literal["user", "tool"]
_SYSTEM, *_HOLES = (f"\u2983{name}\u2984" for name in "SQABCD")
_HOSTILE = "a\"'<&\\n\n  {{ }}z"  # a template that escapes contents rewrites this
_CALL_ID = "python001"  # Mistral's template wants nine characters


class Parts(NamedTuple):
    """The constant texts: around the first question, then around each later tool turn.

    `head` stands before the system message where there is one, else it is empty. `lead` is
    blank text that the template puts before a written answer.
    """

    head: str
    before: str
    opening: str
    middle: str
    closing: str
    lead: str


def cut_template(
    tokenizer: Any, template: str, *, tool_role: ToolRole = "user", system: bool = False
) -> Parts:
    """Return the constant texts of a template.

    Raises:
        RenderError: it drops, repeats or escapes contents, or rewrites earlier turns; or
            it has no such role.
    """
    source = _Source(tokenizer, template, tool_role, (_SYSTEM,) if system else ())
    q, a, b, c, d = _HOLES
    one, two, three = source.render(q), source.render(q, a, b), source.render(q, a, b, c, d)
    for text, holes in ((one, [q]), (two, [q, a, b]), (three, [q, a, b, c, d])):
        if any(text.count(hole) != 1 for hole in [*holes, *source.system]):
            raise RenderError("the chat template drops or repeats the content of a message")
    if f"<think>{c}</think>" not in source.render(q, f"<think>{c}</think>{a}", b):
        raise RenderError(
            "the chat template drops the reasoning of earlier turns (<think>), which was "
            "sampled and is trained on; use a template that keeps it"
        )
    parts = _split(one, two, three, system)
    _check_verbatim(source, parts)
    return parts


class _Source(NamedTuple):
    """What renders: `system` holds the system message, if there is one."""

    tokenizer: Any
    template: str
    tool_role: ToolRole
    system: tuple[str, ...]

    def render(self, *contents: str) -> str:
        messages = [{"role": "system", "content": text} for text in self.system]
        for number, content in enumerate(contents):
            role = "assistant" if number % 2 else "user" if number == 0 else self.tool_role
            extra = {"name": "python", "tool_call_id": _CALL_ID} if role == "tool" else {}
            messages.append({"role": role, "content": content, **extra})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # a template is a program of its own: it may raise anything
            raise RenderError(f"the chat template cannot be rendered: {error}") from error


def _split(one: str, two: str, three: str, system: bool) -> Parts:
    q, a, b, c, d = _HOLES
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
    head, _, before = before.rpartition(_SYSTEM) if system else ("", "", before)
    if system and not head + before:
        raise RenderError("the chat template puts the system message behind the question")
    return Parts(head, before, opening, middle, closing, lead)


def _check_verbatim(source: _Source, parts: Parts) -> None:
    text = _HOSTILE
    plain = source._replace(system=(text,) * len(source.system)).render(text, text, text)
    system = parts.head + text if source.system else ""
    question = system + parts.before + text + parts.opening
    if plain != question + parts.lead + text + parts.middle + text + parts.closing:
        raise RenderError(
            "the chat template escapes or changes the text of a message, so a model would not "
            "see what the interpreter printed; for tool outputs, tool_role 'user' avoids it"
        )
