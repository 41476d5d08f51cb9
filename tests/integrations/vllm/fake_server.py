"""What a middleware sees of vLLM's server, in this process: an application that words its replies as vLLM does, and its engine.

The engine's worker has scored each sample as `RewardWorker` does, from transformers' states: rewards can be right or wrong.
"""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch

from swift_rm.capture.running_mean import RunningMean
from swift_rm.capture.tap import HiddenStateTap
from swift_rm.integrations.vllm.server.middleware import RewardMiddleware
from swift_rm.integrations.vllm.worker.request_names import sample_names
from swift_rm.integrations.vllm.worker.settings import WORKER_CLASS
from swift_rm.tokens.encoding import encode_prompt

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = [(b"content-type", b"application/json")]


class FakeEngine:
    """An AsyncLLM as far as rewards go. ``fails`` is what a call for scores does instead: an exception, or "hangs" or "dies".

    ``scores`` are those of the head of all engines of a test run, by what was read.
    """

    scores: ClassVar = {}

    def __init__(self, model, tokenizer, rm, folder, context=512):
        self.model, self.rm, self.tokenizer = model, rm, tokenizer
        text = SimpleNamespace(hidden_size=model.config.hidden_size, num_hidden_layers=model.config.num_hidden_layers)
        served = SimpleNamespace(
            model="somewhere/tiny-reasoner", hf_text_config=text, max_model_len=context,
            get_vocab_size=lambda: model.config.vocab_size, logits_processors=None,
        )  # fmt: skip
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(worker_cls=WORKER_CLASS), model_config=served,
            additional_config={"swift_rm": {"reward_model": str(folder)}},
        )  # fmt: skip
        self.renderer = SimpleNamespace(tokenizer=tokenizer)
        self.errored, self.fails = False, None
        self.kept, self.calls, self.generated = {}, [], []

    def sampled(self, name, prompt, response, places=None):
        """Let the worker have scored a sample: the states at the prompt's last token and at all but the response's last."""
        read = tuple(prompt), tuple(response[:-1])
        if read not in self.scores:
            with torch.no_grad(), HiddenStateTap(self.model, self.rm.config.layers) as tap:
                self.model(torch.tensor([[*prompt, *response[:-1]]]))
            states = [tap.states[layer][0, len(prompt) - 1 :] for layer in self.rm.config.layers]
            mean = RunningMean(self.rm.head)
            mean.begin(len(states[0]))
            mean.add(states, None, scores := mean.new_scores(len(states[0])))
            self.scores[read] = scores.transpose(0, 1).flatten(1).detach().float().numpy()
        self.kept[name] = self.scores[read][:places]

    async def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert method == "take_scores" and kwargs is None
        self.calls.append(list(args[0]))
        if self.fails == "dies":
            self.errored = True
        if isinstance(self.fails, str):
            await asyncio.sleep(3600)
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(0)
        found = [self.kept.pop(name, np.zeros((0, 1), np.float32)) for name in args[0]]
        return [None, [one if isinstance(one, str) else one.tobytes() for one in found]]  # a sentence is why there are none

    async def generate(self, prompt, params, name):
        assert params == "one token" and prompt["type"] == "token"
        await asyncio.sleep(0)
        self.generated.append(prompt)
        self.sampled(name, prompt["prompt_token_ids"], [0])
        yield "output"


class FakeApp:
    """vLLM's application: it answers with ``responses`` (token ids), in the order of the samples.

    ``answer`` replaces what it does with a request; ``seen`` are the bodies that it got, ``headers`` those of the last request.
    """

    def __init__(self, engine, responses, lora=()):
        self.engine, self.responses, self.seen, self.headers, self.answer = engine, responses, [], {}, None
        self.finish = "stop"  # why samples end
        models = SimpleNamespace(lora_requests=dict.fromkeys(lora))
        self.state = SimpleNamespace(engine_client=engine, openai_serving_models=models)

    async def __call__(self, scope, receive, send):
        self.headers = dict(scope.get("headers", ()))
        if self.answer is not None:
            return await self.answer(scope, receive, send)
        raw = (await receive())["body"]
        if not raw:
            return await reply(send, 422, JSON, b'{"error": "no body"}')
        body = json.loads(raw)
        self.seen.append(body)
        chat, (head, whole) = scope["path"] == CHAT, self.reply(scope["path"] == CHAT, body)
        if not body.get("stream"):
            return await reply(send, 200, JSON, json.dumps(whole).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for event in self.events(chat, body, head, whole):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        return await send({"type": "http.response.body", "body": b"", "more_body": False})

    def reply(self, chat, body):
        """Return what all chunks begin with, and the whole reply; the samples are the engine's from now on."""
        given = self.headers[b"x-request-id"].decode() if b"x-request-id" in self.headers else "random"
        request, n, ids = f"{'chatcmpl' if chat else 'cmpl'}-{given}", int(body.get("n") or 1), body.get("return_token_ids")
        if chat:
            prompts, names = [encode_prompt(self.engine.tokenizer, body["messages"])], sample_names(request, n)
        else:
            texts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            prompts = [encode_prompt(self.engine.tokenizer, text) for text in texts]
            names = [name for place in range(len(prompts)) for name in sample_names(f"{request}-{place}", n)]
        choices = []
        for index, name in enumerate(names):
            prompt, response = prompts[index // n], self.responses[index % len(self.responses)]
            self.engine.sampled(name, prompt, response)
            text = self.engine.tokenizer.decode(response, skip_special_tokens=True)
            own = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            own_prompt = {} if chat else {"prompt_token_ids": prompt if ids else None}
            choices.append(
                {"index": index, **own, "finish_reason": self.finish, "token_ids": response if ids else None, **own_prompt}
            )
        head = {"id": request, "object": "chat.completion" if chat else "text_completion", "created": 7, "model": "m"}
        of_chat = {"prompt_token_ids": prompts[0] if ids else None} if chat else {}
        return head, {**head, "choices": choices, "usage": {"completion_tokens": 9}, **of_chat}

    def events(self, chat, body, head, whole):
        """Yield a stream's events: two tokens at a time, of one choice after another, and what was used."""
        if chat:
            for choice in whole["choices"]:
                first = {"index": choice["index"], "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event({**head, "choices": [first], "prompt_token_ids": whole["prompt_token_ids"]})
        responses = [self.responses[i % len(self.responses)] for i in range(len(whole["choices"]))]
        for start in range(0, max(map(len, responses)), 2):
            for choice, response in zip(whole["choices"], responses, strict=True):
                if not (ids := response[start : start + 2]):
                    continue
                text = self.engine.tokenizer.decode(ids)
                one = {"index": choice["index"], **({"delta": {"content": text}} if chat else {"text": text}), "logprobs": None}
                one["finish_reason"] = self.finish if start + 2 >= len(response) else None
                one["token_ids"] = ids if body.get("return_token_ids") else None
                if not chat:
                    one["prompt_token_ids"] = choice["prompt_token_ids"] if start == 0 else None
                yield event({**head, "choices": [one]})
        if body.get("stream_options"):
            yield event({**head, "choices": [], "usage": {"completion_tokens": 9}})


def event(value):
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def reply(send, status, headers, body):
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


def ask(app, body, path=CHAT, headers=JSON, method="POST", middleware=None, root="", pieces=3):
    """Return status, headers and body of the reply to one request, through the middleware."""
    return asyncio.run(asking(middleware or RewardMiddleware(app), app, body, path, headers, method, root, pieces))


async def asking(middleware, app, body, path=CHAT, headers=JSON, method="POST", root="", pieces=3):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(raw) // pieces + 1
    parts = [raw[start : start + size] for start in range(0, max(len(raw), 1), size)]
    said, got = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts], []

    async def receive():
        if said:
            return said.pop(0)
        await asyncio.sleep(3600)

    async def send(message):
        got.append(message)

    scope = {"type": "http", "method": method, "path": root + path, "root_path": root, "headers": list(headers), "app": app}
    await middleware(scope, receive, send)
    await asyncio.sleep(0.01)
    starts = [message for message in got if message["type"] == "http.response.start"]
    assert len(starts) == 1 and got[0] is starts[0] and not got[-1].get("more_body")
    whole, told = b"".join(message.get("body", b"") for message in got), dict(starts[0]["headers"])
    assert int(told.get(b"content-length", len(whole))) == len(whole)
    return SimpleNamespace(status=starts[0]["status"], headers=told, body=whole, left=len(said), messages=got)
