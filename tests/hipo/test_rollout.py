import copy
import math

import pytest
import torch

from swift_rm import SwiftRewardModel, score
from swift_rm.hipo import Template
from swift_rm.hipo.rollouts.refresh import Refresh
from swift_rm.hipo.rollouts.reward_drift import Trickle
from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts
from swift_rm.models.load import ASSETS, TINY_REWARD, load_language_model

GROUP, LENGTH = 4, 16
QUESTIONS = ["27+15", "82-51+77", "11+22", "9-4"]
PROMPTS = [[{"role": "user", "content": q}] for q in QUESTIONS for _ in range(GROUP)]
PLAIN = Template(judge=None)


@pytest.fixture(scope="module")
def rm():
    return SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD)


def make_trainer(tmp_path_factory, model=None, **settings):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    pretrained, tokenizer = load_language_model(progress=False)
    peft = settings.pop("peft_config", None)
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("run")), per_device_train_batch_size=8, num_generations=GROUP,
        num_generations_eval=2, max_completion_length=LENGTH, report_to=[], use_cpu=True, bf16=False,
        chat_template_kwargs={"enable_thinking": None}, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS[::GROUP]])
    trainer = GRPOTrainer(
        model or pretrained, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args, train_dataset=data,
        processing_class=tokenizer, peft_config=peft,
    )  # fmt: skip
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make_trainer(tmp_path_factory, top_p=0.95, temperature=0.8)


@pytest.fixture
def settings(trainer):
    """The trainer's own settings of generation, to be changed for one test."""
    before, config = dict(trainer.generation_kwargs), copy.deepcopy(trainer.generation_config)

    def change(**values):
        trainer.generation_kwargs.update(values)
        trainer.generation_config.update(**values)

    yield change
    trainer.generation_kwargs, trainer.generation_config = before, config


def test_rewards_are_those_of_scoring_the_same_tokens(trainer, rm):
    out = SwiftRollouts(rm)(PROMPTS, trainer)
    assert out["prompt_ids"] == trainer._tokenize_prompts(PROMPTS)[0]
    assert out["logprobs"] is None
    assert {len(values) for key, values in out.items() if key != "logprobs"} == {len(PROMPTS)}
    expected = score(trainer.model, trainer.processing_class, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] == pytest.approx(expected, abs=1e-4)
    assert out["swift_probability"] == pytest.approx(rm.probability(expected).tolist(), abs=1e-4)
    assert len({tuple(ids) for ids in out["completion_ids"]}) > len(QUESTIONS)
    eos = trainer.processing_class.eos_token_id
    for ids in out["completion_ids"]:
        assert ids.index(eos) == len(ids) - 1 if eos in ids else len(ids) == LENGTH
    assert all(out["swift_whole"] + out["swift_labelled"])
    assert trainer.model.training  # as before


@pytest.mark.parametrize("position", ["generating", "token"])
def test_no_forward_pass_is_added(trainer, rm, position):
    shapes = []
    hook = trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple((kwargs.get("input_ids") if not args else args[0]).shape)),
        with_kwargs=True,
    )
    try:
        ids = trainer._tokenize_prompts(PROMPTS)[0]
        tokens, _ = trainer._generate_single_turn(ids, None, {}, GROUP)
        plain, shapes[:] = list(shapes), []
        assert len(plain) == max(map(len, tokens)) == LENGTH  # the prompts, and a step for each token but the last
        out = SwiftRollouts(rm.with_config(position=position))(PROMPTS, trainer)
    finally:
        hook.remove()
    last = position == "token"  # whose state `generate` never reads
    assert len(shapes) == max(map(len, out["completion_ids"])) + last
    assert shapes[0] == (len(QUESTIONS), max(map(len, ids)))  # each prompt once
    read = sum(rows for rows, _ in shapes[1:])
    assert read == sum(len(ids) - 1 + last for ids in out["completion_ids"])  # and no step for a row that has ended


def test_tokens_are_drawn_by_the_trainers_settings(trainer, rm, settings):
    settings(top_k=1, repetition_penalty=1.3, temperature=0.7)
    ids = trainer._tokenize_prompts(PROMPTS)[0]
    expected, _ = trainer._generate_single_turn(ids, None, {}, GROUP)
    assert SwiftRollouts(rm)(PROMPTS, trainer)["completion_ids"] == expected
    settings(repetition_penalty=1.0)
    assert SwiftRollouts(rm)(PROMPTS, trainer)["completion_ids"] != expected


def test_the_first_tokens_have_the_trainers_distribution(trainer, rm, settings):
    settings(max_new_tokens=1, temperature=1.7, top_p=0.9, min_p=0.02)
    many = [PROMPTS[0]] * 4000
    group, trainer.num_generations = trainer.num_generations, 4000
    try:
        drawn = [ids[0] for ids in SwiftRollouts(rm)(many, trainer)["completion_ids"]]
    finally:
        trainer.num_generations = group
    ids = torch.tensor(trainer._tokenize_prompts([PROMPTS[0]])[0])
    with torch.no_grad():
        chances = torch.softmax(trainer.model.eval()(ids).logits[0, -1] / 1.7, -1)
    trainer.model.train()
    order = chances.argsort(descending=True)
    kept = order[(chances[order].cumsum(0) - chances[order]) < 0.9]
    kept = kept[chances[kept] / chances[kept].sum() >= 0.02 * chances.max() / chances[kept].sum()]
    expected = torch.zeros_like(chances).index_copy(0, kept, chances[kept] / chances[kept].sum())
    found = torch.bincount(torch.tensor(drawn), minlength=len(chances)) / len(drawn)
    assert (found - expected).abs().sum() / 2 < 0.04
    assert not found[expected == 0].any()


def test_a_resumed_run_samples_the_same(trainer, rm):
    first = SwiftRollouts(rm)
    one, other = first(PROMPTS, trainer), first(PROMPTS, trainer)  # two batches of one step
    assert one["completion_ids"] != other["completion_ids"]
    torch.manual_seed(77)
    again = SwiftRollouts(rm)
    assert again(PROMPTS, trainer)["completion_ids"] == one["completion_ids"]
    assert again(PROMPTS, trainer)["completion_ids"] == other["completion_ids"]
    trainer.state.global_step = 1
    assert again(PROMPTS, trainer)["completion_ids"] not in (one["completion_ids"], other["completion_ids"])
    trainer.state.global_step = 0


def markers(out, tokenizer):
    return [tokenizer.decode(ids[:1]) for ids in out["completion_ids"]]


def test_half_of_each_group_is_forced_into_each_mode(trainer, rm):
    rollouts = SwiftRollouts(rm, forced_modes=True, template=PLAIN)
    out = rollouts(PROMPTS, trainer)
    assert markers(out, trainer.processing_class) == ["<think_on>", "<think_on>", "<think_off>", "<think_off>"] * 4
    expected = score(trainer.model, trainer.processing_class, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] == pytest.approx(expected, abs=1e-4)


def test_in_evaluation_rollouts_are_plain(trainer, rm):
    trainer.model.eval()
    out = SwiftRollouts(rm, forced_modes=True, template=PLAIN, oversample=8)(PROMPTS[2:6], trainer)
    plain = SwiftRollouts(rm)(PROMPTS[2:6], trainer)
    trainer.model.train()
    assert out == plain
    assert len(out["completion_ids"]) == 4


@pytest.mark.parametrize("prune", [None, "halving"])
def test_the_most_informative_of_many_are_kept(trainer, rm, prune):
    def spread(rewards):
        rows = torch.tensor(rm.probability(rewards)).view(-1, GROUP)
        return float(rows.std(1).mean())

    rollouts = SwiftRollouts(rm, oversample=16, prune=prune, template=PLAIN)
    trainer._pending_metrics.clear()
    out = rollouts(PROMPTS, trainer)
    assert spread(out["swift_reward"]) > 1.2 * spread(SwiftRollouts(rm)(PROMPTS, trainer)["swift_reward"])
    assert all(out["swift_whole"])
    assert trainer._pending_metrics["swift/dropped"] == [12 * len(QUESTIONS)]
    spent = trainer._pending_metrics["swift/tokens_generated"][0]
    assert spent > 2 * sum(map(len, out["completion_ids"]))
    expected = score(trainer.model, trainer.processing_class, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] == pytest.approx(expected, abs=1e-4)


def test_the_frozen_model_judges_what_the_policy_writes(trainer, rm):
    frozen, tokenizer = load_language_model(progress=False)
    with torch.no_grad():
        trainer.model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    try:
        out = SwiftRollouts(rm, scorer="frozen", frozen_model=frozen)(PROMPTS, trainer)
        moved = score(trainer.model, tokenizer, rm, out["prompt_ids"], out["completion_ids"])
    finally:
        with torch.no_grad():
            trainer.model.model.layers[1].mlp.down_proj.weight.div_(1.5)
    expected = score(frozen, tokenizer, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(moved, expected, strict=True)) > 0.1


def test_the_head_learns_from_labelled_rollouts_and_goes_on_after_a_resume(trainer, rm, tmp_path):
    picked = [Trickle(0.5).picks(prompt) for prompt in PROMPTS]
    assert 0 < sum(picked) < len(picked)
    rollouts = SwiftRollouts(rm, refresh=Refresh(0.5, lr=0.02))
    with pytest.raises(RuntimeError, match="before any rollout"):
        rollouts.learn([], [], [])
    out = rollouts(PROMPTS, trainer)
    assert out["swift_labelled"] == picked
    rows = [i for i, label in enumerate(picked) if label]
    taught = [out["prompt_ids"][i] for i in rows], [out["completion_ids"][i] for i in rows], [float(i % 2) for i in rows]
    before = rm.head.weight.clone()
    assert rollouts.learn(*taught)["swift/labelled"] == len(rows)
    assert torch.equal(rm.head.weight, before)  # the given one is left alone
    assert not torch.equal(rollouts.rm.head.weight, before)
    rollouts.save(tmp_path)
    again = SwiftRollouts(rm, refresh=Refresh(0.5, lr=0.02))
    again.load(tmp_path)
    trainer.state.global_step = 1
    assert rollouts(PROMPTS, trainer) == again(PROMPTS, trainer) != out
    trainer.state.global_step = 0
    rollouts.learn(*taught)
    again.learn(*taught)
    assert torch.equal(again.rm.head.weight, rollouts.rm.head.weight)
    assert SwiftRollouts(rm).learn([], [], []) == {}


def test_an_adapter_is_read_through(tmp_path_factory, rm):
    from peft import LoraConfig

    trainer = make_trainer(
        tmp_path_factory, peft_config=LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    out = SwiftRollouts(rm, forced_modes=True, template=PLAIN)(PROMPTS, trainer)
    model = trainer.model.get_base_model()
    expected = score(model, trainer.processing_class, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] == pytest.approx(expected, abs=1e-4)
    with trainer.model.disable_adapter():
        bare = score(model, trainer.processing_class, rm, out["prompt_ids"], out["completion_ids"])
    assert out["swift_reward"] != pytest.approx(bare, abs=1e-2)


def test_a_rollout_with_broken_states_has_no_reward(trainer, rm):
    broken = copy.deepcopy(rm)
    broken.head.bias.data[1] = math.inf
    out = SwiftRollouts(broken)(PROMPTS[:GROUP], trainer)
    assert all(map(math.isnan, out["swift_reward"]))
    assert out["swift_whole"] == [False] * GROUP
    assert all(out["completion_ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorer": "other"}, "scorer must be one of"),
        ({"scorer": "frozen"}, "scorer='frozen' and frozen_model=NoneType do not go together"),
        ({"prune": "halving"}, "needs oversample=M"),
        ({"prune": "guess", "oversample": 8}, "prune must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(rm, options, message):
    with pytest.raises(ValueError, match=message):
        SwiftRollouts(rm, **options)


def test_what_cannot_be_generated_is_said(trainer, rm, settings):
    with pytest.raises(ValueError, match="oversample=2 is less than the 4 rollouts"):
        SwiftRollouts(rm, oversample=2)(PROMPTS, trainer)
    with pytest.raises(ValueError, match="expected hidden states of width 32"):
        from swift_rm import SwiftConfig

        SwiftRollouts(SwiftRewardModel(SwiftConfig(32, (0,))))(PROMPTS, trainer)
    trainer.use_vllm = True
    with pytest.raises(ValueError, match="leave use_vllm out"):
        SwiftRollouts(rm)(PROMPTS, trainer)
    trainer.use_vllm = False
    settings(num_beams=2)
    with pytest.raises(ValueError, match="num_beams"):
        SwiftRollouts(rm)(PROMPTS, trainer)
