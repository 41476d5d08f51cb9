import copy
import math

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.integrations.trl import SwiftReward, rollout_reward
from swift_rm.integrations.trl_module import PromptResponseSplitter, SwiftRewardModule
from swift_rm.models.load import ASSETS, TINY_REWARD, load_language_model

pytestmark = pytest.mark.filterwarnings("ignore")

GROUP, LENGTH = 2, 12
MESSAGES = [[{"role": "user", "content": question}] for question in ("27+15", "82-51+77", "9-4")]
TEXTS = ["42", "82-51=31, 31+77=08, so 08", "9-4=5"]


@pytest.fixture(scope="module")
def loaded():
    return load_language_model(device="cpu", progress=False)


@pytest.fixture(scope="module")
def rm():
    return SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)


@pytest.fixture(scope="module")
def sampled(loaded):
    """Completions as they were sampled: some end with the end token, the last is cut."""
    tokenizer = loaded[1]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]
    return [*ids[:2], ids[2][:-2]]


def run(kind, tmp_path, reward, policy=None, **options):
    """Train the tiny reasoner for two steps; return the trainer and what the reward source was asked and said."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config, trainer_class = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    policy, tokenizer = policy or load_language_model(device="cpu", progress=False)
    args = config(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=GROUP, learning_rate=1e-3,
        max_completion_length=LENGTH, report_to=[], use_cpu=True, bf16=False, logging_steps=1,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trainer_class(
        policy, reward_funcs=reward, args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in MESSAGES]), **options,
    )  # fmt: skip
    trainer.train()
    return trainer


def steps(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def recorded(reward):
    """A reward function that keeps what it is asked and says."""
    calls = []

    def asked(**columns):
        calls.append((columns, reward(**columns)))
        return calls[-1][1]

    asked.__name__, asked.calls = reward.__name__, calls
    return asked


@pytest.mark.parametrize("prompts", [MESSAGES, ["27+15", "82-51+77", "9-4"]])
def test_tokens_are_read_as_they_were_sampled(loaded, rm, sampled, prompts):
    reward = SwiftReward(*loaded, rm, batch_size=2)
    found = reward(prompts=prompts, completions=["not read"] * 3, completion_ids=sampled, answer=["42"] * 3, trainer_state=None)
    assert found == pytest.approx(score(*loaded, rm, prompts, sampled), abs=1e-4)
    ended = score(*loaded, rm, prompts, TEXTS)
    assert found[:2] == pytest.approx(ended[:2], abs=1e-4)
    assert found[2] != pytest.approx(ended[2], abs=1e-3), "an end token that was not sampled was read"


def test_without_token_ids_the_text_is_read(loaded, rm):
    reward, expected = SwiftReward(*loaded, rm), score(*loaded, rm, MESSAGES, TEXTS)
    for completions in (TEXTS, [[{"role": "assistant", "content": text}] for text in TEXTS]):
        assert reward(prompts=MESSAGES, completions=completions) == pytest.approx(expected, abs=1e-4)


def test_probabilities_are_logged_and_may_be_the_reward(loaded, rm, sampled):
    metrics, extra = [], []
    reward = SwiftReward(*loaded, rm, probability=True)
    given = {"log_metric": lambda *one: metrics.append(one), "log_extra": lambda *one: extra.append(one)}
    found = reward(prompts=MESSAGES, completions=TEXTS, completion_ids=sampled, **given)
    expected = rm.probability(score(*loaded, rm, MESSAGES, sampled)).tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert extra == [("swift_probability", found)]
    assert metrics == [("swift/probability", pytest.approx(sum(found) / 3))]


def test_the_template_is_told_what_the_trainer_tells_it(loaded, rm, sampled):
    off = {"enable_thinking": False}
    found = SwiftReward(*loaded, rm, chat_template_kwargs=off)(MESSAGES, TEXTS, sampled)
    assert found == pytest.approx(score(*loaded, rm, MESSAGES, sampled, chat_template_kwargs=off), abs=1e-4)
    assert found != pytest.approx(score(*loaded, rm, MESSAGES, sampled), abs=1e-2)


@pytest.fixture
def broken(loaded):
    """A copy of the language model that breaks where it reads a comma, which only the second response has."""
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    (comma,) = tokenizer(", ", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[comma] = math.nan
    return model, tokenizer


def test_a_completion_whose_states_are_not_finite_has_no_reward(loaded, broken, rm, sampled):
    expected, logged = score(*loaded, rm, MESSAGES, sampled), []
    expected[1] = None
    found = SwiftReward(*broken, rm)(MESSAGES, TEXTS, sampled, log_metric=lambda *one: logged.append(one))
    assert found == pytest.approx(expected, abs=1e-4)
    assert logged == [("swift/probability", pytest.approx(sum(rm.probability(expected[::2])) / 2, abs=1e-4))]
    logits = SwiftRewardModule(*broken, rm)(**texts_of(loaded[1], MESSAGES, TEXTS)).logits
    assert logits.isnan().tolist() == [[False], [True], [False]]
    infinite = SwiftRewardModel(rm.config)
    infinite.head.bias.data[1] = math.inf
    logged.clear()
    assert SwiftReward(*loaded, infinite)(MESSAGES, TEXTS, sampled, log_metric=lambda *one: logged.append(one)) == [None] * 3
    assert logged == []
    assert SwiftRewardModule(*loaded, infinite)(**texts_of(loaded[1], MESSAGES, TEXTS)).logits.isnan().all()
    assert rollout_reward(swift_reward=[1.5, math.nan, -2.0], prompts=MESSAGES) == [1.5, None, -2.0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_function_rewards_a_training_step(tmp_path, loaded, rm, kind):
    reward = recorded(SwiftReward(*loaded, rm))
    trainer = run(kind, tmp_path, reward)
    assert len(reward.calls) == 2
    for line, (columns, found) in zip(steps(trainer), reward.calls, strict=True):
        assert found == pytest.approx(score(*loaded, rm, columns["prompts"], columns["completion_ids"]), abs=1e-4)
        assert line["rewards/swift_reward/mean"] == pytest.approx(sum(found) / len(found), abs=1e-4)
        assert 0 < line["swift/probability"] < 1
        assert line["grad_norm"] > 0


def test_the_policy_itself_may_be_read(tmp_path, loaded, rm):
    policy = load_language_model(device="cpu", progress=False)
    reward = recorded(SwiftReward(*policy, rm))
    trainer = run("grpo", tmp_path, reward, policy=policy)
    first, second = reward.calls
    frozen = [score(*loaded, rm, columns["prompts"], columns["completion_ids"]) for columns, _ in reward.calls]
    assert first[1] == pytest.approx(frozen[0], abs=1e-4)
    assert second[1] != pytest.approx(frozen[1], abs=1e-3), "a step was taken, so that the states have moved"
    assert trainer.model.training


def test_rollouts_come_with_their_rewards_for_nothing(tmp_path, loaded, rm):
    reward = recorded(rollout_reward)
    trainer = run("grpo", tmp_path, reward, rollout_func=SwiftRollouts(rm))
    columns, found = reward.calls[0]
    expected = score(*loaded, rm, columns["prompts"], columns["completion_ids"])  # at first the policy is the base model
    assert found == pytest.approx(expected, abs=1e-4)
    assert steps(trainer)[0]["rewards/rollout_reward/mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_module_rewards_a_training_step(tmp_path, rm, kind, monkeypatch):
    model, tokenizer = load_language_model(device="cpu", progress=False)
    calls = []
    forward = SwiftRewardModule.forward

    def recorded_forward(module, *args, **inputs):
        calls.append((inputs, forward(module, *args, **inputs)))
        return calls[-1][1]

    monkeypatch.setattr(SwiftRewardModule, "forward", recorded_forward)
    trainer = run(kind, tmp_path, SwiftRewardModule(model, tokenizer, rm))
    assert len(calls) == 2
    for line, (inputs, output) in zip(steps(trainer), calls, strict=True):
        assert output.logits.shape == (4, 1)
        assert line["rewards/tiny-reasoner/mean"] == pytest.approx(float(output.logits.mean()), abs=1e-4)
        texts = [tokenizer.decode(row[mask.bool()]) for row, mask in zip(*inputs.values(), strict=True)]
        opened = [text.partition("<student>") for text in texts]
        prompts = [tokenizer(f"{asked}<student><think_on>", add_special_tokens=False)["input_ids"] for asked, _, _ in opened]
        expected = score(model, tokenizer, rm, prompts, [said for _, _, said in opened])
        assert output.logits[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


def texts_of(tokenizer, prompts, texts):
    """Whole texts as TRL makes them."""
    if isinstance(prompts[0], str):
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    else:
        chats = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, texts, strict=True)]
        whole = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return tokenizer(text=whole, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)


@pytest.mark.parametrize("more", [{}, {"enable_thinking": False}, {"enable_thinking": None}])
def test_of_a_conversation_the_module_reads_what_was_generated_from(loaded, rm, more):
    module = SwiftRewardModule(*loaded, rm, chat_template_kwargs=more).train()
    history = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "2+2=4"}, *MESSAGES[1]]
    prompts = [MESSAGES[0], history, MESSAGES[2]]
    expected = score(*loaded, rm, prompts, TEXTS, chat_template_kwargs=more)
    inputs = texts_of(loaded[1], prompts, TEXTS)
    with torch.inference_mode():
        logits = module(**inputs).logits
    assert logits.shape == (3, 1)
    assert logits[:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(**inputs).logits, logits), "the trainer's autocast changed what is read"
    assert module.training


def test_plain_prompts_say_where_they_end(loaded, rm):
    prompts = [f"<bos><question>{messages[0]['content']}<student><think_on>" for messages in MESSAGES]
    module = SwiftRewardModule(*loaded, rm, start="<student><think_on>")
    found = module(**texts_of(loaded[1], prompts, TEXTS)).logits[:, 0].tolist()
    assert found == pytest.approx(score(*loaded, rm, MESSAGES, TEXTS), abs=1e-4)
    with pytest.raises(ValueError, match=r"'<student><think_on>', after which a response begins, is not in the text '27\+1542'"):
        module(**texts_of(loaded[1], ["27+15"], ["42"]))


def test_plain_prompts_get_the_beginning_of_text_that_generation_gave_them(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begins = copy.deepcopy(tokenizer)
    bos = ("<bos>", begins.bos_token_id)
    begins.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    assert begins("1+1=")["input_ids"][0] == begins.bos_token_id
    split = PromptResponseSplitter(begins, [], "=").split
    assert split("1+1=2")[0] == split("<bos>1+1=2")[0] == begins("1+1=")["input_ids"]


def test_told_lengths_leave_the_tokens_as_they_are(loaded, rm, sampled):
    model, tokenizer = loaded
    prompts = [tokenizer(text)["input_ids"] for text in ("27+15", "82-51+77=", "9")]
    rows = [prompt + response for prompt, response in zip(prompts, sampled, strict=True)]
    for side in ("left", "right"):
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side=side)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        found = SwiftRewardModule(model, tokenizer, rm)(**inputs, prompt_lengths=lengths).logits[:, 0].tolist()
        assert found == pytest.approx(score(model, tokenizer, rm, prompts, sampled), abs=1e-4)
    alone = SwiftRewardModule(model, tokenizer, rm)(torch.tensor(rows[:1]), prompt_lengths=lengths[:1]).logits
    assert float(alone) == pytest.approx(found[0], abs=1e-4)


CLOSED = (
    "{% for m in messages %}{% if m.role == 'user' %}<question>{{ m.content }}{% else %}"
    "<student>{% if '</think>' not in m.content %}<think></think>{% endif %}{{ m.content }}<eos>next {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<student>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    ("thinking", "said", "prompt", "response"),
    [
        (True, "<think>9-4</think>5", "<question>9-4<student>", "<think>9-4</think>5<eos>"),
        (True, "5", "<question>9-4<student>", "<think></think>5<eos>"),
        (False, "5", "<question>9-4<student><think></think>", "5<eos>"),
    ],
)
def test_templates_that_close_an_empty_thought(tokenizer, monkeypatch, thinking, said, prompt, response):
    monkeypatch.setattr(tokenizer, "chat_template", CLOSED)
    chat = [{"role": "user", "content": "9-4"}, {"role": "assistant", "content": said}]
    found = PromptResponseSplitter(tokenizer, [], None, {"enable_thinking": thinking}).split(
        tokenizer.apply_chat_template(chat, tokenize=False)
    )
    assert [tokenizer.decode(ids) for ids in found] == [prompt, response]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.content }}{% endfor %}",  # opens no turn
        "<bos>{% for m in messages %}{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<student>{% endif %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<student>{% endif %}",
    ],
)
def test_templates_that_do_not_show_where_a_response_begins_are_refused(tokenizer, monkeypatch, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match="does not show where a response begins: give start"):
        PromptResponseSplitter(tokenizer, [])


def test_another_base_model_is_refused(loaded):
    for adapter in (SwiftReward, SwiftRewardModule):
        with pytest.raises(ValueError, match="expected hidden states of width 32"):
            adapter(*loaded, SwiftRewardModel(SwiftConfig(32, (0,))))


def test_bad_input_is_told(loaded, rm, sampled):
    reward = SwiftReward(*loaded, rm)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SwiftReward(*loaded, rm, batch_size=0)
    with pytest.raises(ValueError, match="as many prompts as responses, as two lists, got 3 and 2"):
        reward(MESSAGES, TEXTS, sampled[:2])
    with pytest.raises(ValueError, match="response 1 is empty"):
        reward(MESSAGES[:2], TEXTS[:2], [sampled[0], []])
    for odd in ([{"role": "assistant", "content": "1"}] * 2, []):
        with pytest.raises(ValueError, match="without its token ids a completion must be one message, got "):
            reward(MESSAGES[:1], [odd])
    with pytest.raises(ValueError, match="holds the token id 9999"):
        reward(MESSAGES[:1], TEXTS[:1], [[9999]])
    with pytest.raises(ValueError, match="no column swift_reward: give the trainer rollout_func=SwiftRollouts"):
        rollout_reward(prompts=MESSAGES, completions=TEXTS, completion_ids=sampled)
