"""What the middleware's tests ask, and what they read in the replies."""

import json

MESSAGES = [{"role": "user", "content": "27+15-08"}]
TEXTS = [
    "<think>27+15=42, 42-08=34, </think><answer>34</answer>",
    "<think>27+15=32, 32-08=24, </think><answer>24</answer>",
    "<think>so 27+15=42, wait </think><answer>34</answer>",
    "<answer>24</answer>",
]
BODY = {"model": "m", "messages": MESSAGES, "n": 4}
LOG = "vllm.swift_rm"


def choices(answer):
    assert answer.status == 200
    return json.loads(answer.body)["choices"]


def rewards_of(answer):
    return [choice["reward"] for choice in choices(answer)]


def chunks(answer):
    events = answer.body.decode().split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    return [json.loads(one.removeprefix("data: ")) for one in events]
