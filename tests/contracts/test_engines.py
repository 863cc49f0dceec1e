"""What every engine must do: token ids in, exactly the sampled ids and their log-probs out.

vLLM is tested where MATHENV_TEST_ENGINES names it (`make test-engines`): in this process, and
as a server. The others are always tested.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from agents.base import Completion, CompletionRequest, LanguageModel
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from agents.models.scripted import Said, ScriptedModel, replay_model
from agents.models.server import OpenAIModel, ServerOptions
from agents.models.vllm_engine import VLLMModel, VLLMOptions
from agents.tiny import TinyConfig, make_tiny
from mathenv.errors import ConfigError, InfraError
from mathenv.types import FinishReason, Span, SpanKind, TokenRecord

WITH_VLLM = "vllm" in os.environ.get("MATHENV_TEST_ENGINES", "").split(",")
# <bos>, control tokens amid the text, and letters that no tokenizer would leave unmerged.
PROMPTS = [(1, 3, 70, 71, 72, 4, 3), (90,), (1, 80, 75, 72, 3, 3, 4, 100, 101), (5, 6, 7)]
LENGTH = 36
SEEDS = range(4)
STARTING = 400  # seconds that vLLM's server may take on a busy machine


def ask(prompt=0, *, temperature=1.0, top_p=1.0, seed=0, new=LENGTH, stops=(), strings=()):
    return CompletionRequest(
        ids=PROMPTS[prompt] if isinstance(prompt, int) else prompt,
        max_new_tokens=new,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_ids=frozenset(stops),
        stop_strings=tuple(strings),
    )


def forward_logprobs(model, prompt, ids):
    """Log-probability of each of `ids` after `prompt`: one forward pass, no cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    steps = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return [steps[i, token].item() for i, token in enumerate(ids)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """An untrained model that calls a token its end which it samples early: no engine may care."""
    shape = TinyConfig(hidden=64, layers=2, heads=2, intermediate=96)
    folder = make_tiny(tmp_path_factory.mktemp("engines") / "tiny", config=shape)
    engine = TransformersModel.load(folder, name="tiny")
    end = engine.generate([ask(temperature=0.0)])[0].ids[2]
    engine.close()
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": end}))
    return folder


@pytest.fixture(scope="module")
def reference(tiny):
    return load_causal_lm(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny)


@contextmanager
def _transformers(tiny, serve):
    yield TransformersModel.load(tiny, name="engine")


@contextmanager
def _scripted(tiny, serve):
    model = load_causal_lm(tiny)

    @cache
    def say(prompt, seed):
        rng = random.Random(seed)
        ids = [rng.randrange(5, 300) for _ in range(LENGTH)]
        return Said(ids, forward_logprobs(model, prompt, ids))

    def script(request):  # greedy is a sample of its own; anything else follows the seed
        return say(request.ids, request.seed if request.temperature else -1)

    yield ScriptedModel(
        script, name="engine", tokenizer=load_tokenizer(tiny), seconds_per_token=1e-3
    )


@contextmanager
def _replay(tiny, serve):
    engine = TransformersModel.load(tiny, name="recorded")
    requests = [ask(prompt, seed=seed) for prompt in range(len(PROMPTS)) for seed in SEEDS]
    records = []
    for request, done in zip(requests, engine.generate(requests), strict=True):
        start, ids = len(request.ids), (*request.ids, *done.ids)
        spans = (
            Span(SpanKind.PROMPT, 0, 0, start),
            Span(SpanKind.SAMPLED, 0, start, len(ids)),
        )
        records.append(TokenRecord(ids, spans, done.logprobs))
    engine.close()
    yield replay_model(
        records, name="engine", tokenizer=load_tokenizer(tiny), seconds_per_token=1e-3
    )


@contextmanager
def _openai(tiny, serve):
    with serve(tiny) as url:
        yield OpenAIModel(ServerOptions(url, timeout=60), name="engine")


@contextmanager
def _vllm(tiny, serve):
    options = VLLMOptions(dtype="float32", max_sequences=64)
    yield VLLMModel.load(tiny, name="engine", options=options)


@contextmanager
def _vllm_server(tiny, serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(tiny), "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--block-size",
        "32",
        "--no-enable-chunked-prefill",
        "--max-num-seqs",
        "64",
    ]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"VLLM_LOGGING_LEVEL": "ERROR"}
    server = subprocess.Popen(command, env=os.environ | settings)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield OpenAIModel(ServerOptions(f"http://127.0.0.1:{port}/v1"), name="engine")
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError("vLLM's server did not start")


needs_vllm = pytest.mark.skipif(
    not WITH_VLLM, reason="MATHENV_TEST_ENGINES does not name vllm (make test-engines)"
)
ENGINES = [
    pytest.param(_transformers, id="transformers"),
    pytest.param(_scripted, id="scripted"),
    pytest.param(_replay, id="replay"),
    pytest.param(_openai, id="openai"),
    pytest.param(_vllm, id="vllm", marks=[needs_vllm, pytest.mark.timeout(900)]),
    pytest.param(_vllm_server, id="vllm_server", marks=[needs_vllm, pytest.mark.timeout(900)]),
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tiny, serve) -> Iterator[LanguageModel]:
    with request.param(tiny, serve) as engine:
        yield engine
        engine.close()


def complete_all(engine, requests) -> list[Completion | BaseException]:
    """Ask from one session each, all at once."""

    async def one(request):
        async with engine.session() as session:
            return await session.complete(request)

    async def run():
        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    return asyncio.run(run())


def complete(engine, request) -> Completion:
    (answer,) = complete_all(engine, [request])
    if isinstance(answer, BaseException):
        raise answer
    return answer


def test_it_is_a_language_model_with_a_name(engine):
    assert isinstance(engine, LanguageModel)
    assert engine.name == "engine"


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_logprobs_are_those_of_the_exact_ids_at_temperature_one(
    engine, reference, temperature, top_p
):
    """Were a token of the prompt added, dropped or replaced, no log-prob would agree."""
    requests = [ask(n, temperature=temperature, top_p=top_p, seed=n) for n in range(len(PROMPTS))]
    for request, done in zip(requests, complete_all(engine, requests), strict=True):
        assert all(type(token) is int for token in done.ids)
        expected = forward_logprobs(reference, request.ids, done.ids)
        assert done.logprobs == pytest.approx(expected, abs=2e-4)


def test_only_the_request_ends_a_turn(engine):
    for temperature in (0.0, 1.0):
        for prompt in range(len(PROMPTS)):
            done = complete(engine, ask(prompt, temperature=temperature))
            assert len(done.ids) == len(done.logprobs) == LENGTH
            assert done.finish is FinishReason.LENGTH


@pytest.mark.parametrize("new", [1, 7])
def test_no_more_tokens_than_asked_for(engine, new):
    free, done = complete(engine, ask()), complete(engine, ask(new=new))
    assert done.ids == free.ids[:new]
    assert done.finish is FinishReason.LENGTH


def test_a_stop_id_ends_the_turn_and_belongs_to_it(engine):
    free = complete(engine, ask())
    stop = free.ids[5]
    stopped = complete(engine, ask(stops=[stop, 511]))
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.logprobs == pytest.approx(free.logprobs[: len(stopped.ids)], abs=2e-4)
    assert stopped.finish is FinishReason.STOP
    last = complete(engine, ask(stops=[stop], new=len(stopped.ids)))
    assert last.finish is FinishReason.STOP  # not LENGTH
    assert last.ids == stopped.ids


def test_a_stop_string_ends_the_turn_with_the_token_that_completes_it(engine, tokenizer):
    free = complete(engine, ask())
    text = tokenizer.decode(free.ids)
    readable = max(text.split("\N{REPLACEMENT CHARACTER}"), key=len)
    assert len(readable) >= 4, text
    stop = readable[1:4]
    stopped = complete(engine, ask(strings=["never there", stop]))
    assert stopped.finish is FinishReason.STOP_STRING
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert stop in tokenizer.decode(stopped.ids)
    assert stop not in tokenizer.decode(stopped.ids[:-1])
    assert len(stopped.logprobs) == len(stopped.ids)


def test_a_seed_is_repeatable_and_seeds_differ(engine):
    first = [complete(engine, ask(seed=seed)).ids for seed in SEEDS]
    assert [complete(engine, ask(seed=seed)).ids for seed in SEEDS] == first
    assert len(set(first)) == len(SEEDS)


def test_greedy_does_not_depend_on_the_seed(engine, request):
    if request.node.callspec.params["engine"] is _replay:
        pytest.skip("a replay samples nothing: the seed chooses among what was sampled")
    answers = complete_all(engine, [ask(temperature=0.0, seed=seed) for seed in SEEDS])
    assert len({done.ids for done in answers}) == 1


def test_many_sessions_at_once_get_each_their_own_answer(engine):
    requests = [
        ask(prompt, seed=seed, new=8 + seed + prompt)
        for prompt in range(len(PROMPTS))
        for seed in SEEDS
        for _ in range(2)
    ]
    alone = [complete(engine, request).ids for request in requests[::2]]
    together = [done.ids for done in complete_all(engine, requests)]
    assert together[::2] == together[1::2] == alone


def test_a_cancelled_request_harms_nobody(engine):
    expected = complete(engine, ask(1)).ids

    async def run(seconds):
        async def one(request):
            async with engine.session() as session:
                return await session.complete(request)

        lost = asyncio.create_task(one(ask(0)))
        kept = asyncio.create_task(one(ask(1)))
        await asyncio.sleep(seconds)
        cancelled = lost.cancel()
        await asyncio.wait([lost])
        assert lost.cancelled() == cancelled
        return cancelled, (await kept).ids

    # In the middle of its work; or earlier, if a busy machine lets us cancel only when all is over.
    tried = [asyncio.run(run(seconds)) for seconds in (0.005, 0.001, 0)]
    assert {ids for _, ids in tried} == {expected}
    assert tried[-1][0]
    assert complete(engine, ask(1)).ids == expected


def test_a_failure_is_an_infra_error_and_the_engine_goes_on(engine):
    expected = complete(engine, ask(2)).ids
    with pytest.raises(InfraError, match="engine"):
        complete(engine, ask((5, 10**6)))  # there is no such token
    assert complete(engine, ask(2)).ids == expected


@pytest.mark.parametrize("request_", [ask(()), ask(new=0)], ids=["no prompt", "no room"])
def test_an_impossible_request_is_refused(engine, request_):
    with pytest.raises(ConfigError, match="non-empty prompt"):
        complete(engine, request_)


def test_a_closed_engine_says_so_and_may_be_closed_again(engine):
    """The last one: it closes what the others used."""
    engine.close()
    engine.close()
    with pytest.raises(InfraError):
        complete(engine, ask())
