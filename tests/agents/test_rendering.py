"""Exact tokens: what is trained on is what was sampled, and text never becomes control."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.rendering import ChatRenderer, Ledger
from agents.tiny import CHAT_TEMPLATE
from mathenv.errors import RenderError
from mathenv.types import FinishReason, SpanKind, Turn

END = 4  # <end_of_turn> of the byte tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>"
    "\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if not loop.last "
    "else m.content %}{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GOOD = {"gemma": CHAT_TEMPLATE, "chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}

MARKS = ["<end_of_turn>", "<bos>", "<eos>", "<start_of_turn>model\n", "<|im_end|>", "<pad>"]
texts = st.lists(
    st.one_of(st.sampled_from([*MARKS, "\n", "```"]), st.text(max_size=6)), max_size=5
).map("".join)
sampled_ids = st.tuples(
    st.lists(st.integers(0, 265), min_size=1, max_size=8), st.sampled_from([[], [END]])
).map(lambda pair: pair[0] + pair[1])


def encoded(text: str) -> list[int]:
    return [10 + byte for byte in text.encode()]


def test_golden_ids_of_the_tiny_template(gemma):
    turns = (Turn("a", observation="7"), Turn("b"))
    record = gemma.record_turns("Hi", turns)
    assert record.ids == (
        # <bos> <start_of_turn> u s e r \n H i <end_of_turn> \n
        *(1, 3, 127, 125, 111, 124, 20, 82, 115, 4, 20),
        # <start_of_turn> m o d e l \n | a <end_of_turn>
        *(3, 119, 121, 110, 111, 118, 20, 107, 4),
        # \n <start_of_turn> u s e r \n
        *(20, 3, 127, 125, 111, 124, 20),
        # ```output \n 7 \n ```
        *(106, 106, 106, 121, 127, 126, 122, 127, 126, 20, 65, 20, 106, 106, 106),
        # <end_of_turn> \n <start_of_turn> m o d e l \n | b <end_of_turn>
        *(4, 20, 3, 119, 121, 110, 111, 118, 20, 108, 4),
    )
    assert [(s.kind.value, s.turn, s.start, s.end) for s in record.spans] == [
        ("prompt", 0, 0, 18),
        ("sampled", 0, 18, 20),
        ("scaffold", 0, 20, 27),
        ("observation", 0, 27, 42),
        ("scaffold", 0, 42, 51),
        ("sampled", 1, 51, 53),
    ]
    assert [i for i, on in enumerate(record.action_mask) if on] == [18, 19, 51, 52]
    assert record.prompt_length == 18


@pytest.mark.parametrize("name", GOOD)
def test_ids_spell_what_the_template_renders(name, byte_tokenizer):
    tokenizer = byte_tokenizer(GOOD[name])
    renderer = ChatRenderer(tokenizer)
    turns = (Turn("x = 1", observation="3"), Turn("y", observation="4\n"), Turn("done"))
    messages = [{"role": "user", "content": "Q?"}]
    for turn in turns:
        messages.append({"role": "assistant", "content": turn.action})
        if turn.observation:
            block = f"```output\n{turn.observation}\n```"
            messages.append({"role": "user", "content": block})
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = renderer.record_turns("Q?", turns).ids
    assert tokenizer.decode(ids) == expected.removesuffix("\n")
    assert (
        list(ids) == tokenizer(expected.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    )


def test_the_instruction_stands_before_the_question(byte_tokenizer):
    plain = ChatRenderer(byte_tokenizer(CHATML))
    told = ChatRenderer(byte_tokenizer(CHATML), instruction="Use Python.")
    assert told.prompt_ids("Q") == plain.prompt_ids("Use Python.\n\nQ")
    assert told.fingerprint == plain.fingerprint  # ids mean the same, whatever was said


@settings(max_examples=60, deadline=None)
@given(question=texts, turns=st.lists(st.tuples(sampled_ids, texts), min_size=1, max_size=4))
def test_only_and_all_sampled_tokens_are_trainable(gemma, question, turns):
    ledger = Ledger(gemma.fingerprint)
    gemma.append_prompt(ledger, question)
    for number, (ids, observation) in enumerate(turns):
        before = tuple(ledger.ids)
        ledger.append(SpanKind.SAMPLED, number, ids, [-1.0] * len(ids))
        gemma.append_observation(ledger, number, observation)
        assert tuple(ledger.ids[: len(before) + len(ids)]) == (*before, *ids)
    record = ledger.record()
    trained = [token for token, on in zip(record.ids, record.action_mask, strict=True) if on]
    assert trained == [token for ids, _ in turns for token in ids]
    assert len(record.logprobs) == len(trained)
    assert record.spans[0].start == 0
    assert record.spans[-1].end == len(record.ids)
    assert all(a.end == b.start for a, b in itertools.pairwise(record.spans))
    assert all(span.start < span.end for span in record.spans)


@settings(max_examples=60, deadline=None)
@given(question=texts, actions=st.lists(texts, min_size=1, max_size=3), observation=texts)
def test_text_never_becomes_a_control_token(gemma, question, actions, observation):
    record = gemma.record_turns(question, [Turn(a, observation=observation) for a in actions])
    # 1 <bos>, a start for each message and one for the first answer, an end for each message.
    messages = 2 * len(actions)
    assert [token for token in record.ids if token < 10] == [1, *[3, 4] * messages]


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(texts, min_size=1, max_size=3))
def test_written_turns_give_the_sampled_ids_back(gemma, actions):
    ledger = Ledger(gemma.fingerprint)
    gemma.append_prompt(ledger, "Q")
    turns = []
    for number, action in enumerate(actions):
        ids = [*encoded(action), END]
        ledger.append(SpanKind.SAMPLED, number, ids)
        turns.append(Turn(gemma.action_text(ids), observation="o"))
        if number < len(actions) - 1:
            gemma.append_observation(ledger, number, "o")
    assert [turn.action for turn in turns] == actions
    assert gemma.record_turns("Q", turns) == ledger.record()


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.STOP_STRING])
def test_a_cut_turn_is_closed_by_the_scaffold_not_by_the_model(gemma, finish):
    cut = gemma.record_turns("Q", [Turn("abc", observation="o", finish=finish), Turn("d")])
    whole = gemma.record_turns("Q", [Turn("abc", observation="o"), Turn("d")])
    assert cut.ids == whole.ids
    first, scaffold = cut.spans[1], cut.spans[2]
    assert list(cut.ids[first.start : first.end]) == encoded("abc")
    assert scaffold.kind is SpanKind.SCAFFOLD
    assert cut.ids[scaffold.start] == END
    assert sum(whole.action_mask) == sum(cut.action_mask) + 1


def test_another_stop_token_does_not_stand_in_for_the_end_of_turn(gemma):
    ledger = Ledger("")
    gemma.append_prompt(ledger, "Q")
    ledger.append(SpanKind.SAMPLED, 0, [*encoded("a"), 2])  # <eos>, not <end_of_turn>
    gemma.append_observation(ledger, 0, "o")
    start = ledger.record().spans[2].start
    assert ledger.ids[start - 1 : start + 1] == [2, END]
    assert gemma.action_text([*encoded("a"), 2, END]) == "a"
    assert gemma.action_text([*encoded("a"), END, *encoded("b")]) == "a<end_of_turn>b"


def test_mistrals_blank_is_sampled_not_given(byte_tokenizer):
    renderer = ChatRenderer(byte_tokenizer(MISTRAL))
    assert renderer.prompt_ids("Q") == [1, *encoded("[INST] Q [/INST]")]
    assert renderer.action_ids("a") == [*encoded(" a"), 2]
    assert renderer.action_ids(renderer.action_text([*encoded(" a"), 2])) == [*encoded(" a"), 2]


def bad(messages: str) -> str:
    return "{% for m in messages %}" + messages + "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("", "no chat template"),
        (QWEN3, "drops the reasoning"),
        (bad("{{ m.role }}<|im_end|>"), "drops or repeats"),
        (bad("{% if loop.last %}{{ m.content }}<|im_end|>{% endif %}"), "drops or repeats"),
        (bad("{{ m.content + m.content }}<|im_end|>"), "drops or repeats"),
        ("{{ messages | length }}" + CHATML, "rewrites a turn"),
        (CHATML + "{{ messages | length }}", "rewrites a turn"),
        (
            bad("{{ '(' ~ m.content ~ ')' if loop.index == 1 and not loop.last else m.content }}"),
            "rewrites a turn",
        ),
        (
            bad("{{ m.content }}<|im_end|>{{ '!' if loop.index == 4 else '' }}"),
            "renders earlier turns differently",
        ),
        (bad("{{ m.content + '\\n' }}"), "no special token"),
        (bad("{{ m.content }}"), "no special token"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_exact_is_refused(template, message, byte_tokenizer):
    with pytest.raises(RenderError, match=message):
        ChatRenderer(byte_tokenizer(template))


def test_an_end_of_turn_that_text_can_spell_is_refused(byte_tokenizer):
    tokenizer = byte_tokenizer(CHATML, additional_special_tokens=[])
    tokenizer.add_tokens(["<|im_end|>", "<|im_start|>"])  # added, but not as special
    with pytest.raises(RenderError, match=r"<\|im_start\|>, <\|im_end\|> in ordinary text"):
        ChatRenderer(tokenizer)


def test_the_fingerprint_names_tokenizer_and_template_not_the_last_call(byte_tokenizer, tiny):
    one, two = byte_tokenizer(CHATML), byte_tokenizer(CHATML)
    two(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert ChatRenderer(one).fingerprint == ChatRenderer(two).fingerprint
    others = {ChatRenderer(byte_tokenizer(t)).fingerprint for t in GOOD.values()}
    assert len(others) == len(GOOD)


def test_a_ledger_refuses_what_would_be_trained_wrongly():
    ledger = Ledger("")
    with pytest.raises(RenderError, match="not sampled"):
        ledger.append(SpanKind.OBSERVATION, 0, [1], [-1.0])
    with pytest.raises(RenderError, match="2 log-probs recorded for 1"):
        ledger.append(SpanKind.SAMPLED, 0, [1], [-1.0, -2.0])
    ledger.append(SpanKind.PROMPT, 0, [])
    assert ledger.record().spans == ()
    ledger.append(SpanKind.PROMPT, 0, [5, 6])
    ledger.append(SpanKind.SAMPLED, 0, [7], [-1.0])
    kept = ledger.record()
    ledger.append(SpanKind.OBSERVATION, 0, [8, 9])
    ledger.cut(3)
    assert ledger.record() == kept
    with pytest.raises(RenderError, match="taken back"):
        ledger.cut(2)
