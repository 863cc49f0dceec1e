"""The client of OpenAI-compatible servers, where servers are slow to come, strange or broken.

What a server must do for training is in tests/contracts/test_engines.py.
"""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agents.base import (
    ChatMessage,
    ChatModel,
    ChatRequest,
    Completion,
    CompletionRequest,
    WeightedAgent,
)
from agents.chat import ChatAgent
from agents.llm import LLMAgent, derive_seed
from agents.models.hf import load_tokenizer
from agents.models.server import OpenAIChat, OpenAIModel, ServerOptions
from agents.policy import RenderOptions
from agents.rollout import CollectConfig, collect
from agents.server import connect_chat, connect_policy
from mathenv.errors import ConfigError, InfraError
from mathenv.store import TrajectoryStore
from mathenv.types import FinishReason, Problem

MODELS = {"object": "list", "data": [{"id": "m", "max_model_len": 12}]}
CHOICE = {
    "text": "xy",
    "finish_reason": "stop",
    "logprobs": {"token_logprobs": [-0.5, -0.25]},
    "token_ids": [8, 9],
    "prompt_token_ids": [5, 6],
}


@contextmanager
def server(*answers, models=MODELS):
    """Answer each request with the next (status, body); the value is (base URL, requests)."""
    waiting, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if isinstance(models, int):
                self._reply(models, {"error": {"message": "no"}})
            else:
                self._reply(200, models)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers["Authorization"]))
            self._reply(*waiting.pop(0))

        def _reply(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1", seen
        finally:
            http.shutdown()
            thread.join()


def text(**changes):
    return 200, {"id": "x", "object": "text_completion", "choices": [CHOICE | changes]}


def chat(content, *, finish="stop", total=7):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": total}
    return 200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


BUSY = (503, {"error": {"message": "busy"}})


def complete(url, *, ids=(5, 6), new=4, **options):
    engine = OpenAIModel(ServerOptions(url, timeout=20, **options), name="engine")
    request = CompletionRequest(ids, new, 0.5, 0.9, seed=2**62, stop_ids=frozenset({9, 7}))
    try:
        return asyncio.run(engine.complete(request))
    finally:
        engine.close()


def test_everything_that_shapes_a_sample_is_said(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with server(text(stop_reason=9)) as (url, seen):
        done = complete(url)
    assert (done.ids, done.logprobs, done.finish) == ((8, 9), (-0.5, -0.25), FinishReason.STOP)
    ((path, body, key),) = seen
    assert path == "/v1/completions"
    assert key == "Bearer secret"
    asked = {name: body[name] for name in ("model", "prompt", "max_tokens", "seed", "top_p")}
    assert asked == {"model": "m", "prompt": [5, 6], "max_tokens": 4, "seed": 2**62, "top_p": 0.9}
    assert body["stop_token_ids"] == [7, 9]
    assert body["return_token_ids"] is True
    # Else a server would take these from the model's folder.
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert body["ignore_eos"] is True
    assert body["add_special_tokens"] is False


def test_a_busy_server_is_asked_again():
    with server(BUSY, BUSY, text()) as (url, seen):
        assert complete(url).ids == (8, 9)
    assert len(seen) == 3


def test_a_server_that_stays_broken_is_an_infra_error():
    with server(BUSY, BUSY) as (url, seen), pytest.raises(InfraError, match=r"engine: .*busy"):
        complete(url, retries=1)
    assert len(seen) == 2


def test_a_server_that_went_away_is_an_infra_error():
    with server() as (url, _):
        engine = OpenAIModel(ServerOptions(url, retries=0, timeout=5), name="engine")
    with pytest.raises(InfraError, match="engine: APIConnectionError"):
        asyncio.run(engine.complete(CompletionRequest((5,), 1, 1.0, 1.0, 0)))
    engine.close()


def test_a_server_without_token_ids_is_refused_with_a_way_out():
    for lacking in ({"token_ids": None}, {"prompt_token_ids": None}):
        with server(text(**lacking)) as (url, _):
            with pytest.raises(ConfigError, match=r"does not return token ids.*--api chat"):
                complete(url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_token_ids": [1, 5, 6]}, "changed the tokens of the prompt"),
        ({"logprobs": None}, "no log-probability per token"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "no log-probability per token"),
        ({"finish_reason": "abort"}, "ended a turn with 'abort'"),
    ],
)
def test_an_answer_that_is_not_exact_is_an_infra_error(changes, message):
    with server(text(**changes)) as (url, _), pytest.raises(InfraError, match=message):
        complete(url)


def test_a_request_is_kept_within_the_servers_context():
    with server(text()) as (url, seen):
        complete(url, new=100)
        assert seen[0][1]["max_tokens"] == 10
        with pytest.raises(InfraError, match="12 that the server allows"):
            complete(url, ids=(5,) * 12)


@pytest.mark.parametrize(
    ("models", "wanted", "message"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, None, r"has a, b: choose with --served-model"),
        ({"data": [{"id": "a"}]}, "c", "has no model 'c', but a"),
        ({"data": []}, None, "no list of models"),
        (401, None, "does not answer"),
    ],
)
def test_a_server_that_cannot_be_used_is_a_config_error(models, wanted, message):
    with server(models=models) as (url, _), pytest.raises(ConfigError, match=message):
        OpenAIModel(ServerOptions(url, wanted, retries=0))


def test_a_server_without_a_list_is_believed_to_have_the_model():
    with server(text(), models=404) as (url, seen):
        assert complete(url, model="some").ids == (8, 9)
    assert seen[0][1]["model"] == "some"


def test_no_server_at_all_is_a_config_error():
    with pytest.raises(ConfigError, match="does not answer"):
        OpenAIChat(ServerOptions("http://127.0.0.1:9/v1", retries=0, timeout=5))


def play(agent, question, observations, *, sample=0, seed=0):
    async def run():
        async with agent.episode(question, sample=sample, seed=seed) as episode:
            actions = [await episode.act(said) for said in [question, *observations]]
            return actions, episode.tokens()

    return asyncio.run(run())


def test_a_chat_agent_sends_the_conversation_and_keeps_no_tokens():
    answers = [
        chat("```python\n6*7\n```", total=40),
        chat("\\boxed{42}", finish="length", total=99),
    ]
    with server(*answers) as (url, seen):
        with connect_chat(ServerOptions(url), system="Be brief.", stop_strings=("###",)) as agent:
            actions, tokens = play(agent, "Q", ["42"], seed=3)
            assert isinstance(agent.model, ChatModel)
    assert tokens is None  # by which learners know it
    assert [a.text for a in actions] == ["```python\n6*7\n```", "\\boxed{42}"]
    assert [a.finish for a in actions] == [FinishReason.STOP, FinishReason.LENGTH]
    (path, first, key), (_, second, _) = seen
    assert (path, key) == ("/v1/chat/completions", "Bearer none")
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "```python\n6*7\n```"},
        {"role": "user", "content": "```output\n42\n```"},
    ]
    assert first["messages"] == second["messages"][:2]
    assert (first["max_tokens"], second["max_tokens"]) == (512, 512)
    assert first["stop"] == ["###"]
    seeds = [derive_seed(derive_seed(3, 0, "Q"), turn) % 2**31 for turn in (0, 1)]
    assert [first["seed"], second["seed"]] == seeds


def test_a_chat_agents_budget_is_what_the_server_counted():
    with server(chat("a", total=1990), chat("b", total=2048)) as (url, seen):
        with connect_chat(ServerOptions(url)) as agent:
            actions, _ = play(agent, "Q", ["o", "p"])
    assert seen[1][1]["max_tokens"] == 58
    assert actions[2] is None


def test_a_closed_chat_says_so():
    with server() as (url, _):
        model = OpenAIChat(ServerOptions(url), name="chat")
        model.close()
        model.close()
    request = ChatRequest((ChatMessage("user", "Q"),), 1, 1.0, 1.0, 0)
    with pytest.raises(InfraError, match="chat is closed"):
        asyncio.run(model.reply(request))
    assert ChatAgent(model).name == "chat"


def test_a_server_is_sent_no_more_requests_at_once_than_it_has_slots(tiny, tmp_path):
    under_way, most = 0, 0
    three = asyncio.Event()  # the first answers wait for three requests, however slow the machine

    class Watched(OpenAIModel):
        async def complete(self, request):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if most == 3:
                three.set()
            async with asyncio.timeout(60):
                await three.wait()
            await asyncio.sleep(0.01)
            under_way -= 1
            return Completion((request.ids[-1],), (0.0,), FinishReason.LENGTH)

    problems = [Problem(f"p{n}", "Q", "1") for n in range(12)]
    renderer = RenderOptions().renderer(load_tokenizer(tiny))
    with server() as (url, _), TrajectoryStore(tmp_path) as store:
        engine = Watched(ServerOptions(url, slots=3))
        collect([WeightedAgent(LLMAgent(engine, renderer))], problems, store, CollectConfig())
        assert len(store) == 12
        engine.close()
    assert most == 3
    with pytest.raises(ConfigError, match="slots must be at least 1, not 0"):
        ServerOptions("http://localhost/v1", slots=0)


def test_a_policy_behind_a_server_is_bounded_by_its_context(tiny):
    with server() as (url, _), connect_policy(tiny, ServerOptions(url)) as agent:
        assert agent.sampling.max_tokens == 12
        assert agent.name == url
