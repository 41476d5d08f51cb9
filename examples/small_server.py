"""Serve a small language model behind OpenAI's chat completions on 127.0.0.1, with log-probabilities: for trials and tests.

    python examples/small_server.py --port 8000                  # the embedded tiny reasoner

Standard library and transformers, one request at a time; for real work take vLLM or llama.cpp. A key is asked for where the
variable SMALL_SERVER_KEY is set.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

import torch

from swift_rm.models.load import TINY, load_language_model

MOST = {"n": 128, "top_logprobs": 20}
LONGEST_BODY = 1_000_000  # bytes


class Refused(Exception):
    """What a request gets instead of an answer: an HTTP status and why."""


class Model:
    """The language model, asked by one request at a time."""

    def __init__(self, name: str) -> None:
        self.name, self.lock = name, Lock()
        self.model, self.tokenizer = load_language_model(name, progress=False)

    @torch.inference_mode()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a chat completion request."""
        if asked.get("model") != self.name:
            raise Refused(404, f"The model {asked.get('model')!r} does not exist")
        n, top = int(asked.get("n") or 1), int(asked.get("top_logprobs") or 0)
        for key, value in (("n", n), ("top_logprobs", top)):
            if not 0 <= value <= MOST[key]:
                raise Refused(400, f"{key} must be at most {MOST[key]}, got {value}")
        options = asked.get("chat_template_kwargs") or {}
        prompt = self.tokenizer.apply_chat_template(
            asked["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True, **options
        )
        width = prompt["input_ids"].shape[1]
        room = self.model.config.max_position_embeddings - width
        limit = min(room, asked.get("max_completion_tokens") or asked.get("max_tokens") or room)
        temperature = asked.get("temperature", 1.0)
        drawn = (
            {"do_sample": True, "temperature": temperature, "top_p": asked.get("top_p", 1.0), "top_k": 0} if temperature else {}
        )
        with self.lock, torch.random.fork_rng():
            torch.manual_seed(asked["seed"]) if asked.get("seed") is not None else torch.seed()
            out = self.model.generate(
                **prompt, num_return_sequences=n, max_new_tokens=limit, output_logits=True, return_dict_in_generate=True, **drawn
            )
        logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)
        rows = zip(out.sequences[:, width:].tolist(), logprobs, strict=True)
        choices = [self._choice(i, ids, row, top, bool(asked.get("logprobs"))) for i, (ids, row) in enumerate(rows)]
        usage = {"prompt_tokens": width, "completion_tokens": sum(choice.pop("tokens") for choice in choices)}
        usage["total_tokens"] = sum(usage.values())
        return {"id": "small", "object": "chat.completion", "created": 0, "model": self.name, "choices": choices, "usage": usage}

    def _choice(self, index: int, ids: list[int], logprobs: torch.Tensor, top: int, told: bool) -> dict[str, Any]:
        """Make one choice: as OpenAI's, the end token is not among its tokens."""
        end = self.tokenizer.eos_token_id
        content = ids[: ids.index(end)] if end in ids else ids
        best = logprobs.topk(top) if top else None
        entries = []
        for step, token in enumerate(content if told else ()):
            others = zip(best.indices[step].tolist(), best.values[step].tolist(), strict=True) if best else ()
            alternatives = [self._entry(other, value) for other, value in others]
            entries.append({**self._entry(token, float(logprobs[step, token])), "top_logprobs": alternatives})
        text = self.tokenizer.decode(content, skip_special_tokens=True)
        return {
            "index": index, "message": {"role": "assistant", "content": text}, "tokens": len(content) + (end in ids),
            "finish_reason": "stop" if end in ids else "length", "logprobs": {"content": entries} if told else None,
        }  # fmt: skip

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token], skip_special_tokens=True)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


@contextmanager
def serving(name: str = TINY, port: int = 0) -> Iterator[str]:
    """Serve in the background; yield the address that clients are given."""
    model, key = Model(name), os.environ.get("SMALL_SERVER_KEY")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(min(length, LONGEST_BODY))
            try:
                if key and self.headers.get("Authorization") != f"Bearer {key}":
                    raise Refused(401, "Incorrect API key provided")
                self._answer(200, model.complete(json.loads(body)))
            except Refused as refused:
                self._answer(refused.args[0], {"error": {"message": refused.args[1]}})
            except (ValueError, KeyError, TypeError) as error:
                self._answer(400, {"error": {"message": f"not a request: {error!r}"}})

        def _answer(self, status: int, reply: dict[str, Any]) -> None:
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="folder or Hub id (default: the embedded tiny reasoner)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    args = parser.parse_args()
    with serving(args.model, args.port) as address:
        print(f"serving {args.model} at {address}", flush=True)
        with suppress(KeyboardInterrupt):
            Event().wait()


if __name__ == "__main__":
    main()
