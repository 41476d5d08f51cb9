import asyncio
import importlib
import subprocess
import sys

import pytest
import torch

from swift_rm import SwiftRewardModel, best_of_n, score
from swift_rm.models.load import load_language_model, resolve
from swift_rm.selection.rules import select
from swift_rm.tasks.answers import find_answer
from swift_rm.tasks.homework import HomeworkTask

pytestmark = pytest.mark.adapters

QUESTIONS = list(HomeworkTask("test").questions(6))


@pytest.fixture(scope="module")
def adapter():
    return importlib.import_module("swift_rm.integrations.inspect_ai")


@pytest.fixture(scope="module")
def loaded():
    return *load_language_model(progress=False), SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))


@pytest.fixture(scope="module")
def model(adapter):
    from inspect_ai.model import get_model

    return get_model("swift-rm/tiny-reasoner", reward_model="tiny-reasoner-reward")


def run(model, solver, folder, questions=QUESTIONS, **settings):
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import pattern

    samples = [Sample(input=question.question_id, target=question.reference) for question in questions]
    task = Task(dataset=samples, solver=solver, scorer=pattern(r"<answer>(\d+)</answer>"))
    return eval(task, model=model, display="none", log_dir=str(folder), **settings)[0]


def generate(model, content="27+15-08", **config):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    return asyncio.run(model.generate([ChatMessageUser(content=content)], config=GenerateConfig(**config)))


@pytest.mark.parametrize(("rule", "settings"), [("best", {"temperature": 0.9}), ("shrunk", {"epochs": 2})])
def test_an_evaluation_is_answered_by_the_best_of_n(adapter, model, loaded, tmp_path, rule, settings):
    log = run(model, adapter.best_of_n(8, rule), tmp_path, **settings)
    assert log.status == "success", log.error
    assert len(log.samples) == 6 * settings.get("epochs", 1)
    right, reordered, outputs = 0, 0, set()
    for sample in log.samples:
        question = next(one for one in QUESTIONS if one.question_id == sample.input)
        texts = [choice.message.text for choice in sample.output.choices]
        rewards = [choice.message.metadata["swift_reward"] for choice in sample.output.choices]
        assert rewards == pytest.approx(score(*loaded, [question.prompt] * 8, texts), abs=1e-4)
        assert texts[0] == sample.output.completion == sample.messages[-1].text
        assert sample.metadata["swift_reward"] == rewards[0]
        assert sample.metadata["swift_probability"] == pytest.approx(loaded[2].probability(rewards)[0].item())
        chosen = select(rule, rewards, [find_answer(text) for text in texts])
        assert rewards[0] == rewards[chosen.index]
        reordered += rewards[0] != max(rewards)
        right += find_answer(texts[0]) == question.reference
        outputs.add(tuple(texts))
        prompt = loaded[1].apply_chat_template(question.prompt, add_generation_prompt=True)["input_ids"]
        assert sample.output.usage.input_tokens == len(prompt)
    assert (reordered > 0) == (rule == "shrunk"), "the rule made no difference"
    assert len(outputs) == len(log.samples), "epochs must be drawn anew"
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(right / len(log.samples))


def test_the_provider_gives_choices_with_rewards_in_the_order_of_drawing(model, loaded):
    question = QUESTIONS[0]
    output = generate(model, question.question_id, num_choices=5, max_tokens=40)
    rewards = [choice.message.metadata["swift_reward"] for choice in output.choices]
    assert len(rewards) == 5
    assert rewards != sorted(rewards, reverse=True)
    assert {choice.stop_reason for choice in output.choices} <= {"stop", "max_tokens"}
    whole = [
        (choice.message.text, reward)
        for choice, reward in zip(output.choices, rewards, strict=True)
        if choice.stop_reason == "stop"
    ]
    expected = score(*loaded, [question.prompt] * len(whole), [text for text, _ in whole])
    assert [reward for _, reward in whole] == pytest.approx(expected, abs=1e-4)
    greedy = best_of_n(*loaded, [question.prompt], n=1, do_sample=False)[0].best
    assert generate(model, question.question_id, temperature=0.0).completion == greedy.text
    assert generate(model, question.question_id, temperature=0.0, max_tokens=3).stop_reason == "max_tokens"
    stopped = generate(model, question.question_id, temperature=0.0, stop_seqs=["<answer>"])
    assert asyncio.run(model.api.count_text_tokens(greedy.text)) == len(greedy.token_ids) - 1
    assert (stopped.completion, stopped.stop_reason) == (greedy.text.partition("<answer>")[0], "stop")


def test_the_seed_decides(adapter, model):
    from inspect_ai.model import GenerateConfig, get_model

    def draw(seed):
        own = get_model("swift-rm/tiny-reasoner", config=GenerateConfig(seed=seed), memoize=False)
        return [choice.message.text for choice in generate(own, num_choices=3).choices]

    assert draw(1) == draw(1) != draw(2)
    assert generate(model, num_choices=3, seed=1).completion == draw(1)[0]


def test_a_response_whose_states_broke_has_no_reward_and_is_not_chosen(adapter, model, tmp_path, monkeypatch):
    draw = model.api.sampler.draw

    def broken(*args, **kwargs):
        lengths = []

        def spoil(input_ids, scores):
            lengths.append(input_ids.shape[1])
            if len(lengths) == 3:
                scores[:-1] = torch.nan
            return scores

        return draw(*args, **kwargs, logits_processor=[spoil])

    monkeypatch.setattr(model.api.sampler, "draw", broken)
    log = run(model, adapter.best_of_n(3), tmp_path, QUESTIONS[:1])
    assert log.status == "success", log.error
    rewards = [choice.message.metadata["swift_reward"] for choice in log.samples[0].output.choices]
    assert isinstance(rewards[0], float)
    assert rewards[1:] == [None, None]


def test_a_model_without_rewards_is_refused(adapter, tmp_path):
    from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi

    @modelapi(name="plain")
    class Plain(ModelAPI):
        async def generate(self, input, tools, tool_choice, config):
            return ModelOutput.from_content(self.model_name, "4")

    log = run(get_model("plain/one"), adapter.best_of_n(2), tmp_path, QUESTIONS[:1])
    assert log.status == "error"
    assert "choice 0 of one carries no reward: ask with --model swift-rm/NAME" in log.error.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "n must be at least 1, got 0"), ((4, "bets"), "unknown selection rule 'bets'"), ((4, "rank"), "external reward")],
)
def test_what_the_solver_cannot_do_is_refused(adapter, arguments, message):
    with pytest.raises(ValueError, match=message):
        adapter.best_of_n(*arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"logprobs": True}, "cannot follow logprobs=True"),
        ({"frequency_penalty": 0.5}, "cannot follow frequency_penalty=0.5"),
        ({"max_tokens": 10_000}, "leaves no room for 10000 new tokens"),
        ({"temperature": 0.0, "num_choices": 2}, "do_sample=False gives 2 equal responses"),
    ],
)
def test_settings_that_the_engine_does_not_follow_are_refused(model, config, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **config)


def test_tools_pictures_and_another_base_model_are_refused(model):
    from inspect_ai.model import ContentImage, GenerateConfig

    provider = importlib.import_module("swift_rm.integrations.inspect_ai_model")
    with pytest.raises(ValueError, match="reads and answers text only, got 0 tools and 1 messages"):
        asyncio.run(model.api.generate(*pictured(ContentImage(image="data:image/png;base64,AA==")), GenerateConfig()))
    with pytest.raises(ValueError, match="reads and answers text only, got 1 tools and 1 messages"):
        asyncio.run(model.api.generate(pictured("1")[0], ["a tool"], "auto", GenerateConfig()))
    with pytest.raises(ValueError, match="trained on tiny-reasoner with 4 layers, but tiny-reasoner-2 has 6"):
        provider.SwiftModelAPI("tiny-reasoner-2", reward_model="tiny-reasoner-reward")
    with pytest.raises(OSError, match="nowhere"):
        provider.SwiftModelAPI("./nowhere")


def pictured(content):
    from inspect_ai.model import ChatMessageUser

    return [ChatMessageUser(content=[content] if not isinstance(content, str) else content)], [], "none"


def test_tools_of_a_task_are_not_lost_silently(adapter, model, tmp_path):
    from inspect_ai.solver import use_tools
    from inspect_ai.tool import think

    log = run(model, [use_tools(think()), adapter.best_of_n(2)], tmp_path, QUESTIONS[:1])
    assert log.status == "error"
    assert "reads and answers text only, got 1 tools and 1 messages" in log.error.message


def test_what_inspect_imports_for_any_model_is_cheap():
    code = "import sys, swift_rm.integrations.inspect_ai; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("swift_rm.integrations.inspect_ai")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "inspect_ai.model", None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[adapters\]"'):
        importlib.import_module("swift_rm.integrations.inspect_ai")
