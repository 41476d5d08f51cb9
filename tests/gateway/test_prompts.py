import copy
import re

import pytest

from swift_rm.gateway.local.prompts import PromptReader, refuse_unsupported
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError

USER = {"role": "user", "content": "27+15"}
STRICT = (
    """{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant', "ipython"] %}"""
    """{{ raise_exception('no ' + m.role) }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"""
)


@pytest.fixture(scope="module")
def prompts(llama, tokenizer):
    return PromptReader(llama, copy.deepcopy(tokenizer), None)


@pytest.fixture
def strict(llama, tokenizer, monkeypatch):
    """A template that complains, of a tokenizer that tells what it is given to read."""
    mine = copy.deepcopy(tokenizer)
    mine.chat_template, rendered = STRICT, []
    apply = mine.apply_chat_template
    mine.apply_chat_template = lambda *args, **kwargs: rendered.append(apply(*args, **kwargs)) or rendered[-1]
    made = PromptReader(llama, mine, None)
    made.rendered = rendered
    return made


def chat(*messages, **fields):
    return CompletionRequest(True, "m", [list(messages)], **fields)


def refusal(read, *args):
    with pytest.raises(GatewayError) as caught:
        read(*args)
    assert caught.value.status == 400
    return caught.value


def test_prompts_are_read_as_the_package_reads_them(prompts, tokenizer):
    (read,) = prompts.read(chat(USER))
    assert read.ids == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert read.max_new_tokens == 1024
    off = prompts.read(chat(USER, template={"enable_thinking": False}))[0].ids
    assert off == tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False, enable_thinking=False)
    texts = prompts.read(CompletionRequest(False, "m", ["27", [18, 19], "1"], max_tokens=5))
    assert [one.ids for one in texts] == [tokenizer("27")["input_ids"], [18, 19], tokenizer("1")["input_ids"]]
    assert {one.max_new_tokens for one in texts} == {5}


def test_parts_are_joined_and_roles_are_those_of_the_template(strict):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    strict.read(chat({"role": "developer", "content": parts}, {"role": "ipython", "content": "1"}, USER))
    strict.read(chat({"role": "assistant", "content": None, "tool_calls": [{}]}, USER))
    assert strict.rendered == ["<system>a\nb<ipython>1<user>27+15", "<assistant><user>27+15"]


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        ({"role": "wizard", "content": "x"}, "messages.1.role", "must be one of system, developer, user.*got 'wizard'"),
        ({"role": "user"}, "messages.1.content", "must be text"),
        ({"role": "user", "content": None}, "messages.1.content", "must be text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.1.content", "no part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content", "no part of type 'text'"),
        ({"role": "tool", "content": "x"}, "messages", "cannot be read: no tool"),
        ({"role": "user", "content": "\ud800"}, "messages", "half of a character"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(strict, message, param, said):
    error = refusal(strict.read, chat(USER, message))
    assert error.param == param
    assert re.search(said, error.message)
    assert error.message.encode(), "what is told can be written as JSON"


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "tools", "conversation", "messages", "continue_final_message"])
def test_only_the_template_hears_of_chat_template_kwargs(prompts, name):
    assert repr(name) in refusal(prompts.read, chat(USER, template={name: "x"})).message


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([99], "the token id 99, but the model has ids 0 to 39"), ([3, -1], "the token id -1"), ([], "the prompt is empty"),
        ("", "the prompt is empty"), ("a\udfff", "half of a character"), ([20] * 2048, "no room for a response: .* is 2048"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_refused(prompts, prompt, said):
    error = refusal(prompts.read, CompletionRequest(False, "m", [prompt]))
    assert error.param == "prompt"
    assert re.search(said, error.message)


def test_a_model_without_a_template_says_so(llama, tokenizer):
    mine = copy.deepcopy(tokenizer)
    mine.chat_template = None
    assert "no chat template" in refusal(PromptReader(llama, mine, None).read, chat(USER)).message


def test_new_tokens_are_limited_by_the_context(llama, tokenizer, prompts):
    ids = [20] * 2000
    assert prompts.read(CompletionRequest(False, "m", [ids]))[0].max_new_tokens == 48
    assert prompts.read(CompletionRequest(False, "m", [ids], max_tokens=48))[0].max_new_tokens == 48
    error = refusal(prompts.read, CompletionRequest(False, "m", [ids], max_tokens=49))
    assert (error.param, error.code) == ("max_tokens", "context_length_exceeded")
    assert "max_tokens=49" in error.message and "2000 tokens" in error.message and "2048" in error.message
    limited = PromptReader(llama, tokenizer, 100)  # the server's own limit, which the request did not name
    assert limited.read(CompletionRequest(False, "m", [ids], max_tokens=100))[0].max_new_tokens == 48


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]), ("functions", [{}]), ("tool_choice", "required"), ("tool_choice", {"name": "f"}),
        ("response_format", {"type": "json_object"}), ("logprobs", True), ("logprobs", 0), ("logprobs", 3), ("top_logprobs", 2),
        ("logit_bias", {"5": 1}), ("presence_penalty", 0.5), ("frequency_penalty", -1), ("echo", True), ("suffix", "x"),
        ("modalities", ["text", "audio"]), ("audio", {}), ("min_p", 0.1), ("repetition_penalty", 1.1), ("guided_json", "{}"),
        ("ignore_eos", True), ("web_search_options", {}), ("presence_penalty", "0"), ("chat_template", "{{ 1 }}"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_followed_are_refused_by_name(name, value):
    error = refusal(refuse_unsupported, {"user": "u", name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert repr(name) in error.message


def test_fields_that_ask_for_nothing_are_accepted():
    refuse_unsupported(
        {
            "tools": [], "tool_choice": "auto", "functions": None, "response_format": {"type": "text"}, "logprobs": False,
            "top_logprobs": 0, "logit_bias": {}, "presence_penalty": 0.0, "frequency_penalty": 0, "echo": False, "suffix": None,
            "modalities": ["text"], "min_p": 0, "repetition_penalty": 1.0, "user": "u", "metadata": {"a": "b"}, "novelty": 3,
        }
    )  # fmt: skip
