"""A small server that speaks the OpenAI protocol, with a real model behind it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agents.base import CompletionRequest
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from mathenv.types import FinishReason

FINISH = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
}


class _Backend:
    """Answers the bodies of the protocol's requests as vLLM's server does."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self._engine = TransformersModel(load_causal_lm(folder), self.tokenizer, name="served")
        self._one_at_a_time = threading.Lock()

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/models"
        return {"object": "list", "data": [{"id": "served", "max_model_len": 1024}]}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"/v1/completions": self._completions, "/v1/chat/completions": self._chat}[path](
            body
        )

    def _completions(self, body: dict[str, Any]) -> dict[str, Any]:
        done = self._generate(body, body["prompt"], frozenset(body["stop_token_ids"]))
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(done.ids),
            "finish_reason": FINISH[done.finish],
            "stop_reason": "…" if done.finish is FinishReason.STOP_STRING else None,
            "logprobs": {"token_logprobs": done.logprobs},
        }
        if body.get("return_token_ids"):
            choice |= {"token_ids": done.ids, "prompt_token_ids": body["prompt"]}
        return {"id": "x", "object": "text_completion", "created": 0, "choices": [choice]}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.convert_tokens_to_ids("<end_of_turn>")
        done = self._generate(body, prompt, frozenset({end}))
        content = self.tokenizer.decode([token for token in done.ids if token != end])
        message = {"role": "assistant", "content": content}
        total = len(prompt) + len(done.ids)
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "choices": [{"index": 0, "message": message, "finish_reason": FINISH[done.finish]}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": total},
        }

    def _generate(self, body: dict[str, Any], prompt: list[int], stop_ids: frozenset[int]):
        request = CompletionRequest(
            ids=prompt,
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            seed=body["seed"],
            stop_ids=stop_ids,
            stop_strings=tuple(body.get("stop") or ()),
        )
        with self._one_at_a_time:
            return self._engine.generate([request])[0]

    def close(self) -> None:
        self._engine.close()


@contextmanager
def _serve(folder: Path) -> Iterator[str]:
    backend = _Backend(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(200, backend.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._reply(200, backend.post(self.path, body) | {"model": body["model"]})
            except IndexError as error:  # a token that the model does not have
                self._reply(400, {"error": {"message": str(error)}})

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data)
            except BrokenPipeError:
                self.close_connection = True  # the client was cancelled

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
            backend.close()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], AbstractContextManager[str]]:
    """Serve the model in a folder; the value is the base URL."""
    return _serve
