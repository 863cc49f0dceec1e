"""The LLM agent: what it asks the engine, and what it records of the answers."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import Completion, SamplingParams
from agents.llm import LLMAgent, derive_seed
from agents.models.hf import load_tokenizer
from agents.policy import load_policy
from agents.rendering import ChatRenderer
from mathenv.errors import ConfigError
from mathenv.types import FinishReason, SpanKind, Turn

END = 4


class Tape:
    """A language model that plays given completions and keeps what it was asked."""

    name = "tape"

    def __init__(self, answers):
        self._answers = iter(answers)
        self.requests = []

    @asynccontextmanager
    async def session(self):
        yield self

    async def complete(self, request):
        self.requests.append(request)
        ids = tuple(next(self._answers))
        finish = FinishReason.STOP if ids[-1] == END else FinishReason.LENGTH
        return Completion(ids, tuple(-0.5 for _ in ids), finish)

    def close(self):
        pass


def play(agent, question, observations, *, sample=0, seed=0):
    """Return the actions and the tokens of one episode."""

    async def run():
        async with agent.episode(question, sample=sample, seed=seed) as episode:
            actions = [await episode.act(text) for text in [question, *observations]]
            return actions, episode.tokens()

    return asyncio.run(run())


answers = st.lists(st.integers(10, 140), min_size=1, max_size=6).flatmap(
    lambda ids: st.sampled_from([ids, [*ids, END]])
)


@settings(max_examples=50, deadline=None)
@given(turns=st.lists(st.tuples(answers, st.text(max_size=5)), min_size=1, max_size=4))
def test_each_request_extends_the_last_one_and_its_answer(gemma, turns):
    tape = Tape([ids for ids, _ in turns])
    actions, tokens = play(LLMAgent(tape, gemma), "Q", [text for _, text in turns[:-1]])
    previous = []
    for request, (ids, _) in zip(tape.requests, turns, strict=True):
        assert list(request.ids[: len(previous)]) == previous
        previous = [*request.ids, *ids]
    assert list(tokens.ids) == previous
    sampled = [token for token, on in zip(tokens.ids, tokens.action_mask, strict=True) if on]
    assert sampled == [token for ids, _ in turns for token in ids]
    assert len(tokens.logprobs) == len(sampled)
    assert tokens.fingerprint == gemma.fingerprint
    assert [a.text for a in actions] == [gemma.action_text(ids) for ids, _ in turns]


def test_the_engine_is_told_how_to_sample(gemma):
    tape = Tape([[50, END], [51, END]])
    params = SamplingParams(temperature=0.3, top_p=0.9, max_turn_tokens=7, max_tokens=200)
    agent = LLMAgent(tape, gemma, params, stop_strings=("```output",))
    play(agent, "Q", ["o"])
    for request in tape.requests:
        assert (request.temperature, request.top_p, request.max_new_tokens) == (0.3, 0.9, 7)
        assert request.stop_ids == {2, END}  # <eos>, <end_of_turn>
        assert request.stop_strings == ("```output",)
    assert tape.requests[0].seed != tape.requests[1].seed


def test_the_token_budget_covers_prompt_actions_and_observations(gemma):
    prompt = len(gemma.prompt_ids("Q"))
    tape = Tape([[50, 51, END], [52, END]])
    agent = LLMAgent(tape, gemma, SamplingParams(max_tokens=prompt + 60))
    actions, tokens = play(agent, "Q", ["o", "p"])
    assert tape.requests[0].max_new_tokens == 60
    assert tape.requests[1].max_new_tokens == prompt + 60 - len(tape.requests[1].ids)
    assert actions[2] is None
    # What the model never saw is not recorded, so the budget holds for the record as well.
    assert list(tokens.ids) == [*tape.requests[1].ids, 52, END]
    assert len(tokens.ids) <= prompt + 60


def test_a_prompt_without_room_for_an_answer_ends_the_episode(gemma):
    agent = LLMAgent(Tape([]), gemma, SamplingParams(max_tokens=5))
    actions, tokens = play(agent, "a long question", [])
    assert actions == [None]
    assert not any(tokens.action_mask)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_turn_tokens": 0},
        {"max_tokens": 0},
    ],
)
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(ConfigError):
        SamplingParams(**bad)


def test_samples_are_distinct_and_repeatable(taught):
    params = SamplingParams(temperature=2.0, max_turn_tokens=40)
    with load_policy(taught, params, name="taught") as agent:
        runs = {
            (sample, seed): play(agent, "What is it?", ["42"], sample=sample, seed=seed)
            for sample in range(3)
            for seed in range(2)
        }
        again = play(agent, "What is it?", ["42"], sample=1, seed=1)
    assert again == runs[1, 1]
    assert len({tokens.logprobs for _, tokens in runs.values()}) == len(runs)


def test_the_record_of_a_real_model_is_what_its_text_renders_to(taught):
    renderer = ChatRenderer(load_tokenizer(taught))
    with load_policy(taught, SamplingParams(temperature=0), name="taught") as agent:
        actions, tokens = play(agent, "What is it?", ["42"])
    turns = [
        Turn(action.text, observation=observation, finish=action.finish)
        for action, observation in zip(actions, ["42", ""], strict=True)
    ]
    assert [a.finish for a in actions] == [FinishReason.STOP] * 2
    rendered = renderer.record_turns("What is it?", turns)
    assert (rendered.ids, rendered.spans) == (tokens.ids, tokens.spans)
    kinds = [span.kind for span in tokens.spans]
    assert kinds == [
        SpanKind.PROMPT,
        SpanKind.SAMPLED,
        SpanKind.SCAFFOLD,
        SpanKind.OBSERVATION,
        SpanKind.SCAFFOLD,
        SpanKind.SAMPLED,
    ]


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), (1, 2, ""), ("1", "2", 3)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "agent", "p", 1) == derive_seed(0, "agent", "p", 1)
