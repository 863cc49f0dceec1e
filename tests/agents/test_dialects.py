"""Every dialect against golden conversations, and the rules of exact tokens for each of them."""

import itertools
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.dialects import dialects, find_dialect
from agents.llm import LLMAgent
from agents.models.scripted import Said, ScriptedModel
from agents.rendering import ChatRenderer, Ledger
from mathenv.errors import ConfigError, RenderError
from mathenv.protocol import code_block, extract_code
from mathenv.types import FinishReason, SpanKind, Turn

FAMILIES = tomllib.loads(Path(__file__).with_name("dialects.toml").read_text(encoding="utf-8"))
FAMILY_OF = {name: family for family, row in FAMILIES.items() for name in row["dialects"]}
WITH_TOOL = [name for name, family in FAMILY_OF.items() if "tool" in FAMILIES[family]]
WAYS = [(name, "user") for name in FAMILY_OF] + [(name, "tool") for name in WITH_TOOL]
QUESTION = "What is 6 * 7?"
TURNS = (
    Turn("Let us see.\n" + code_block("6 * 7"), observation="42"),
    Turn(r"It is \boxed{42}."),
)


def golden(family, part):
    return FAMILIES[family][part].removeprefix("\n")


def make_tokenizer(byte_tokenizer, family, *, template=True):
    """The byte tokenizer with a family's control tokens."""
    row = FAMILIES[family]
    tokenizer = byte_tokenizer(golden(family, "template") if template else None)
    tokenizer.add_special_tokens(
        {
            "bos_token": row["bos"] or "<bos>",
            "eos_token": row["eos"],
            "additional_special_tokens": row["special"],
        }
    )
    return tokenizer


@pytest.fixture(scope="module")
def renderer_of(byte_tokenizer):
    """A renderer by dialect and tool role, made once; the tokenizer has no template."""
    made = {}

    def make(name, tool_role="user"):
        if (name, tool_role) not in made:
            tokenizer = make_tokenizer(byte_tokenizer, FAMILY_OF[name], template=False)
            made[name, tool_role] = ChatRenderer(
                tokenizer, dialect=find_dialect(name), tool_role=tool_role
            )
        return made[name, tool_role]

    return make


def test_every_dialect_has_a_golden_conversation():
    assert set(FAMILY_OF) == set(dialects())


@pytest.mark.parametrize(("name", "tool_role"), WAYS)
def test_a_dialect_writes_the_golden_conversation(renderer_of, name, tool_role):
    renderer = renderer_of(name, tool_role)
    ids = renderer.record_turns(QUESTION, TURNS).ids
    assert renderer.tokenizer.decode(ids) == golden(FAMILY_OF[name], tool_role)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tool_role", ["user", "tool"])
def test_the_familys_own_template_gives_the_same_tokens(
    byte_tokenizer, renderer_of, family, tool_role
):
    tokenizer = make_tokenizer(byte_tokenizer, family)
    if tool_role == "tool" and "tool" not in FAMILIES[family]:
        with pytest.raises(RenderError):
            ChatRenderer(tokenizer, tool_role="tool")
        return
    own = ChatRenderer(tokenizer, tool_role=tool_role)
    record = own.record_turns(QUESTION, TURNS)
    assert tokenizer.decode(record.ids) == golden(family, tool_role)
    for name in FAMILIES[family]["dialects"]:
        given = renderer_of(name, tool_role).record_turns(QUESTION, TURNS)
        assert (given.ids, given.spans) == (record.ids, record.spans)


@pytest.mark.parametrize("name", [n for n in FAMILY_OF if n not in WITH_TOOL])
def test_a_dialect_without_a_tool_role_says_so(byte_tokenizer, name):
    tokenizer = make_tokenizer(byte_tokenizer, FAMILY_OF[name], template=False)
    with pytest.raises(RenderError, match="no tool role"):
        ChatRenderer(tokenizer, dialect=find_dialect(name), tool_role="tool")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_system_message_goes_where_the_family_has_a_place_for_it(byte_tokenizer, family):
    """Where there is none, or none that stays (Mistral's moves), it goes before the question."""
    tokenizer = make_tokenizer(byte_tokenizer, family)
    for dialect in (None, *map(find_dialect, FAMILIES[family]["dialects"])):
        renderer = ChatRenderer(tokenizer, dialect=dialect, system="Use Python.")
        text = tokenizer.decode(renderer.prompt_ids(QUESTION))
        assert text.startswith(golden(family, "system"))
        assert text.count("Use Python.") == 1


def test_a_system_message_and_an_instruction_go_together(byte_tokenizer):
    both = {"system": "Be brief.", "instruction": "Use Python."}
    for family, expected in {
        "gemma": "<bos><start_of_turn>user\nBe brief.\n\nUse Python.\n\nQ<end_of_turn>",
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nUse Python.\n\nQ<",
    }.items():
        tokenizer = make_tokenizer(byte_tokenizer, family)
        text = tokenizer.decode(ChatRenderer(tokenizer, **both).prompt_ids("Q"))
        assert text.startswith(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_is_recognised_by_what_it_writes(byte_tokenizer, family):
    renderer = ChatRenderer(make_tokenizer(byte_tokenizer, family))
    names = FAMILIES[family]["dialects"] + (["gemma1.1"] if family == "gemma3" else [])
    assert renderer.dialect.name in names
    assert renderer.stop_strings == find_dialect(FAMILIES[family]["dialects"][0]).stop_strings


def test_an_unknown_template_has_no_dialect(byte_tokenizer):
    template = golden("chatml", "template").replace("'\\n' }}", "'\\n\\n' }}", 1)
    tokenizer = make_tokenizer(byte_tokenizer, "chatml")
    tokenizer.chat_template = template
    renderer = ChatRenderer(tokenizer)
    assert renderer.dialect is None
    assert renderer.stop_strings == ()
    assert renderer.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_stop_tokens_of_the_dialect_end_turns_too(byte_tokenizer):
    tokenizer = make_tokenizer(byte_tokenizer, "gemma")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|file_separator|>"]})
    ids = tokenizer.convert_tokens_to_ids
    plain = ChatRenderer(tokenizer, dialect=find_dialect("gemma2"))
    code = ChatRenderer(tokenizer, dialect=find_dialect("codegemma"))
    assert plain.stop_ids == {ids("<end_of_turn>"), ids("<eos>")}
    assert code.stop_ids == plain.stop_ids | {ids("<|file_separator|>")}


def test_stop_strings_reach_the_engine_unless_others_are_given(renderer_of):
    engine = ScriptedModel(lambda request: Said([]))
    assert LLMAgent(engine, renderer_of("qwen2.5")).stop_strings == ("```output",)
    assert LLMAgent(engine, renderer_of("gemma2")).stop_strings == ()
    assert LLMAgent(engine, renderer_of("qwen2.5"), stop_strings=("x",)).stop_strings == ("x",)
    assert LLMAgent(engine, renderer_of("qwen2.5"), stop_strings=()).stop_strings == ()


def test_an_unknown_dialect_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no dialect is called 'gemma' .*use gemma1\.1, gemma2"):
        find_dialect("gemma")


QWEN3 = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if not loop.last "
    "else m.content %}{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOJSON = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content | tojson if "
    "m.role == 'tool' else m.content) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_refused_template_names_the_dialects_to_use_instead(byte_tokenizer):
    tokenizer = make_tokenizer(byte_tokenizer, "chatml")
    tokenizer.chat_template = QWEN3
    with pytest.raises(RenderError, match=r"drops the reasoning.* dialects .*chatml\)"):
        ChatRenderer(tokenizer)
    kept = ChatRenderer(tokenizer, dialect=find_dialect("chatml"))
    turns = (Turn("<think>6 and 7</think>Now.", observation="42"), Turn("42"))
    text = tokenizer.decode(kept.record_turns("Q", turns).ids)
    assert "<|im_start|>assistant\n<think>6 and 7</think>Now.<|im_end|>" in text


def test_a_template_that_escapes_outputs_is_refused_for_tool_messages_only(byte_tokenizer):
    tokenizer = make_tokenizer(byte_tokenizer, "chatml")
    tokenizer.chat_template = TOJSON
    with pytest.raises(RenderError, match=r"escapes.*tool_role 'user' avoids it"):
        ChatRenderer(tokenizer, tool_role="tool")
    assert ChatRenderer(tokenizer).dialect.name == "chatml"


def test_a_dialect_needs_its_tokens(byte_tokenizer):
    with pytest.raises(RenderError, match="no control tokens <｜User｜>"):
        ChatRenderer(byte_tokenizer(None), dialect=find_dialect("deepseek3"))


MARKS = [mark for row in FAMILIES.values() for mark in [row["eos"], *row["special"]]]
texts = st.lists(
    st.one_of(st.sampled_from([*MARKS, "\n", "```", "\nUser: "]), st.text(max_size=6)), max_size=4
).map("".join)


@pytest.mark.parametrize(("name", "tool_role"), WAYS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_trained_tokens_are_exactly_the_sampled_ones(renderer_of, name, tool_role, data):
    renderer = renderer_of(name, tool_role)
    ordinary = st.lists(st.integers(0, 265), min_size=1, max_size=6)
    ends = st.sampled_from([[], [renderer.end_id], [max(renderer.stop_ids)]])
    turns = data.draw(st.lists(st.tuples(ordinary, ends, texts), min_size=1, max_size=3))
    ledger = Ledger(renderer.fingerprint)
    renderer.append_prompt(ledger, data.draw(texts))
    sampled = []
    for number, (ids, end, observation) in enumerate(turns):
        before = [*ledger.ids, *ids, *end]
        ledger.append(SpanKind.SAMPLED, number, [*ids, *end], [-1.0] * len([*ids, *end]))
        renderer.append_observation(ledger, number, observation)
        assert ledger.ids[: len(before)] == before  # what was sampled stays as it was
        sampled += [*ids, *end]
    record = ledger.record()
    trained = [token for token, on in zip(record.ids, record.action_mask, strict=True) if on]
    assert trained == sampled
    assert len(record.logprobs) == len(sampled)
    assert record.spans[0].start == 0
    assert record.spans[-1].end == len(record.ids)
    assert all(a.end == b.start for a, b in itertools.pairwise(record.spans))


@pytest.mark.parametrize(("name", "tool_role"), WAYS)
@settings(max_examples=8, deadline=None)
@given(question=texts, observation=texts, action=texts)
def test_contents_never_become_control_tokens(
    renderer_of, name, tool_role, question, observation, action
):
    renderer = renderer_of(name, tool_role)
    control = set(renderer.tokenizer.added_tokens_decoder)

    def controls(*contents):
        turns = (Turn(contents[1], observation=contents[2]), Turn("a", finish=FinishReason.LENGTH))
        ids = renderer.record_turns(contents[0], turns).ids
        return [token for token in ids if token in control]

    assert controls(question, action, observation) == controls("q", "a", "o")


STOPS = sorted({stop for name in dialects() for stop in find_dialect(name).stop_strings})


@pytest.mark.parametrize("stop", STOPS)
def test_what_ends_a_turn_is_what_the_protocol_reads(stop):
    """A stop string is the end of the text: what comes before it is read as it was written."""
    block = code_block("print(6 * 7)")
    assert extract_code(f"Let us see.\n{block}\n{stop}") == "print(6 * 7)"
    if stop.startswith("```"):  # in place of the closing fence
        assert extract_code(block.removesuffix("```") + stop) == "print(6 * 7)"
        assert extract_code(block.removesuffix("\n```") + stop) == "print(6 * 7)"
