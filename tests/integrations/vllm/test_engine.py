"""Rewards made inside vLLM, offline: equal to transformers' on the same token ids, whatever vLLM does with its batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.decoding.pruning import Confidence, Halving
from swift_rm.models.load import load_language_model
from swift_rm.reward.identity import describe_base
from swift_rm.tasks.task_lookup import open_world
from swift_rm.tokens.encoding import encode_prompt
from tests.integrations.vllm.real_engine import SETTINGS, close, differences, opened

pytestmark = pytest.mark.vllm
CLOSE = 1e-4


@pytest.fixture(scope="module")
def transformers():
    return load_language_model(progress=False)


@pytest.fixture(scope="module")
def questions():
    return [question.prompt for question in open_world("homework").questions(12)]


@pytest.fixture(scope="module")
def reward_models(transformers, tmp_path_factory):
    """Folders of reward models of the tiny reasoner that read it in different ways."""
    model, tokenizer = transformers
    shipped = SwiftRewardModel.from_pretrained("swift_rm/assets/tiny-reasoner-reward")
    torch.manual_seed(0)

    def random(config):
        rm = SwiftRewardModel(describe_base(config, model, tokenizer))
        torch.nn.init.normal_(rm.head.weight, std=0.2)
        torch.nn.init.normal_(rm.head.bias)
        return rm

    generating = SwiftRewardModel.from_pretrained("swift_rm/assets/tiny-reasoner-reward")
    generating.config = replace(shipped.config, position="generating")
    made = {
        "generating": generating,
        "ensemble": random(SwiftConfig(96, (0, -1), position="token", region="after:</think>", heads=3, pessimism=0.5)),
        "no_gate": random(SwiftConfig(96, (2, 0), gate=False)),
        "logits": random(SwiftConfig.of_logits(model.config.vocab_size)),
    }
    folder = tmp_path_factory.mktemp("reward-models")
    for name, rm in made.items():
        rm.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def token(transformers):
    with opened("tiny-reasoner", "tiny-reasoner-reward", guide="tiny-reasoner-progress") as best:
        yield best


@pytest.fixture(scope="module")
def generating(reward_models):
    with opened("tiny-reasoner", reward_models / "generating") as best:
        yield best


def left_in_worker(best) -> int:
    (count,) = best.llm.collective_rpc("kept_requests")
    return count


def test_rewards_texts_answers_and_choice_are_those_of_transformers(token, transformers, questions):
    results = token(questions, n=8, seed=1, max_new_tokens=96)
    assert max(differences(*transformers, token.rm, results)) < CLOSE
    assert [len(result.candidates) for result in results] == [8] * len(questions)
    for result in results:
        rewards = [candidate.reward for candidate in result.candidates]
        assert rewards == sorted(rewards, reverse=True)
        assert result.tokens_spent == sum(len(candidate.token_ids) for candidate in result.candidates)
        assert all(0 < c.probability < 1 and c.logprob < 0 and c.finish_reason == "stop" for c in result.candidates)
        assert result.best.answer is not None and f"<answer>{result.best.answer}</answer>" in result.best.text
    assert left_in_worker(token) == 0
    best = token(questions, n=8, seed=1, max_new_tokens=96, select="best")
    assert [result.best.reward for result in best] == pytest.approx([max(c.reward for c in r.candidates) for r in results])


def test_log_probabilities_are_the_models_own(token, transformers, questions):
    model, tokenizer = transformers
    (result,) = token(questions[:1], n=4, seed=2, max_new_tokens=96, temperature=0.7, top_k=10)
    prompt = encode_prompt(tokenizer, questions[0])
    for candidate in result.candidates:
        ids = torch.tensor([[*prompt, *candidate.token_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        mean = logprobs[torch.arange(len(candidate.token_ids)), candidate.token_ids].mean().item()
        assert candidate.logprob == pytest.approx(mean, abs=1e-4)
    (without,) = token(questions[:1], n=2, logprobs=False, max_new_tokens=8)
    assert all(np.isnan(candidate.logprob) for candidate in without.candidates)


def test_length_cuts_and_single_tokens(token, generating, transformers, questions):
    for best in (token, generating):
        for length in (1, 2, 7):
            results = best(questions[:4], n=3, max_new_tokens=length)
            assert max(differences(*transformers, best.rm, results)) < CLOSE
            assert {c.finish_reason for r in results for c in r.candidates} == {"length"}


def test_prefix_caching_and_chunked_prefill_change_nothing(reward_models, transformers, questions):
    """48 tokens a step split the prompts; a prompt asked again comes from the cache."""
    with opened("tiny-reasoner", reward_models / "generating", max_num_batched_tokens=48, max_num_seqs=16) as best:
        for _ in range(2):
            results = best([*questions, *questions[:3]], n=8, max_new_tokens=96)
            assert max(differences(*transformers, best.rm, results)) < CLOSE


def test_preempted_requests_keep_their_rewards(reward_models, transformers, questions):
    """12 blocks of 32 tokens hold some four sequences: others are preempted, and computed again."""
    room = {"num_gpu_blocks_override": 12, "block_size": 32, "max_model_len": 128, "disable_log_stats": False}
    with opened("tiny-reasoner", reward_models / "generating", **room) as best:
        results = best(questions, n=8, max_new_tokens=96)
        assert next(m.value for m in best.llm.get_metrics() if m.name == "vllm:num_preemptions") > 0
        assert max(differences(*transformers, best.rm, results)) < CLOSE
        assert left_in_worker(best) == 0


@pytest.mark.parametrize("name", ["ensemble", "no_gate"])
def test_other_heads_and_regions(name, reward_models, transformers, questions):
    with opened("tiny-reasoner", reward_models / name) as best:
        results = best(questions, n=8, max_new_tokens=60)
        assert max(differences(*transformers, best.rm, results)) < CLOSE
        if name == "ensemble":  # some responses are cut before the marker
            assert {c.flag for r in results for c in r.candidates} == {None, "marker_missing"}


def test_logits_are_read_by_the_processor(reward_models, transformers, questions):
    with opened("tiny-reasoner", reward_models / "logits", max_num_batched_tokens=48, max_num_seqs=16) as best:
        for settings in ({}, {"temperature": 0.7, "top_k": 5, "presence_penalty": 0.5, "min_p": 0.01}):
            results = best(questions, n=4, max_new_tokens=96, **settings)
            assert max(differences(*transformers, best.rm, results)) < CLOSE
        with pytest.raises(ValueError, match=r"a seed on a CPU ends vLLM .* more than a step's 48"):
            best(questions, n=4, seed=1)
        results = best(questions, n=1, max_new_tokens=96, temperature=0.0)
        assert max(differences(*transformers, best.rm, results)) < CLOSE
        with pytest.raises(ValueError, match=r"logit_bias=.* changes the logits"):
            best(questions, n=2, logit_bias={3: 5.0})
        results = best(questions, n=2, max_new_tokens=20)  # and goes on
        assert max(differences(*transformers, best.rm, results)) < CLOSE


def test_compiled_with_the_layers_of_each_reward_model(reward_models, transformers, questions):
    """The second reward model reads other layers: a graph compiled for the first would show the wrong ones."""
    for name in ("generating", "no_gate"):
        with opened("tiny-reasoner", reward_models / name, enforce_eager=False) as best:
            results = best(questions, n=8, max_new_tokens=96)
            assert max(differences(*transformers, best.rm, results)) < CLOSE


def test_tensor_parallel(reward_models, transformers, questions, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with opened("tiny-reasoner", reward_models / "generating", tensor_parallel_size=2) as best:
        results = best(questions, n=8, max_new_tokens=96)
        assert max(differences(*transformers, best.rm, results)) < CLOSE
        assert sorted(best.llm.collective_rpc("kept_requests")) == [0, 0]


def replay(rule, rewards_at, lengths, n):
    """Ask the rule as lockstep decoding asks it; return the length at which each candidate is dropped (None: never)."""
    dropped: dict[int, int] = {}
    for length in range(1, max(lengths) + 1):
        running = [i for i in range(n) if i not in dropped and lengths[i] > length]
        if not running or not rule.checks(length):
            continue
        ended = [rewards_at(i, lengths[i]) for i in range(n) if i not in dropped and lengths[i] <= length]
        hopeless = rule.hopeless(length, [rewards_at(i, length) for i in running], ended, len(dropped))
        dropped.update((i, length) for i, drop in zip(running, hopeless, strict=True) if drop)
    return dropped


@pytest.mark.parametrize("rule", [Confidence(min_tokens=8, margin=1.5), Halving(min_tokens=12, growth=1.5)])
def test_early_stopping_drops_what_the_rule_drops(rule, generating, transformers, questions):
    """The same seeds without the rule give the whole candidates, on which the rule is asked again by transformers' rewards."""
    model, tokenizer = transformers
    whole = generating(questions, n=8, seed=5, max_new_tokens=96)
    early = generating(questions, n=8, seed=5, max_new_tokens=96, prune=rule)
    agreed, dropped = 0, 0
    for full, cut in zip(whole, early, strict=True):
        prompt = encode_prompt(tokenizer, full.prompt)
        responses = [candidate.token_ids for candidate in full.candidates]

        def rewards_at(i, length, prompt=prompt, responses=responses):
            return score(model, tokenizer, generating.rm, [prompt], [responses[i][:length]])[0]

        expected = replay(rule, rewards_at, [len(ids) for ids in responses], len(responses))
        pruned = [c.token_ids for c in cut.candidates if c.finish_reason == "pruned"]
        for i, ids in enumerate(responses):
            found = [one for one in pruned if one == ids[: len(one)]]
            agreed += bool(found) == (i in expected)
            if found and i in expected:
                assert len(found[0]) >= expected[i]
        dropped += len(pruned)
        assert cut.best.finish_reason == "stop"
    assert dropped > 10
    assert agreed >= 8 * len(questions) - 1  # a reward may lie within rounding of the bar
    assert sum(result.tokens_saved for result in early) > 0
    assert sum(result.tokens_spent for result in early) < sum(result.tokens_spent for result in whole)
    assert left_in_worker(generating) == 0


def test_a_guide_is_what_the_rule_goes_by(token, questions):
    assert token.guide is not None
    results = token(questions, n=8, seed=5, max_new_tokens=96, prune="confidence")
    assert any(candidate.finish_reason == "pruned" for result in results for candidate in result.candidates)
    with pytest.raises(ValueError, match=r"pass it as VLLMBestOfN"):
        token(questions, n=2, prune=Confidence(guide=token.guide))


def test_more_samples_than_the_worker_keeps(generating, transformers, questions, monkeypatch):
    """What this package asks for is kept until it is taken, however many samples of others are forgotten."""
    generating.llm.collective_rpc("keep_at_most", args=(5,))
    for prune in (None, "confidence"):
        results = generating(questions * 5, n=16, max_new_tokens=40, prune=prune)
        assert max(differences(*transformers, generating.rm, results)) < CLOSE
        assert not any(np.isnan(c.reward) for r in results for c in r.candidates)


@pytest.mark.parametrize("prune", [None, "confidence"])
def test_an_interrupted_call_leaves_nothing_behind(prune, generating, transformers, questions, monkeypatch):
    """Ctrl-C after some steps: what was asked for is aborted and forgotten, and the next call is answered rightly."""
    step, steps = generating.llm.llm_engine.step, iter(range(9))

    def interrupted():
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(generating.llm.llm_engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generating(questions, n=8, max_new_tokens=96, prune=prune)
    monkeypatch.undo()
    assert left_in_worker(generating) == 0
    results = generating(questions[:4], n=3, max_new_tokens=96)
    assert max(differences(*transformers, generating.rm, results)) < CLOSE
    assert left_in_worker(generating) == 0


def test_seeds(generating, questions):
    one, other = (generating(questions[:3], n=4, seed=7, max_new_tokens=40) for _ in range(2))
    assert [c.token_ids for r in one for c in r.candidates] == [c.token_ids for r in other for c in r.candidates]
    third = generating(questions[:3], n=4, seed=8, max_new_tokens=40)
    assert [c.token_ids for r in one for c in r.candidates] != [c.token_ids for r in third for c in r.candidates]


def test_what_a_call_refuses(token, questions):
    for wrong, arguments in {
        "n must be at least 1, got 0": {"n": 0},
        "unknown selection rule 'worst'": {"select": "worst"},
        "fuse with an external reward": {"select": "rank"},
        "max_tokens is set by arguments": {"max_tokens": 3},
        "leaves no room for 600 new tokens: vLLM's context is 511": {"max_new_tokens": 600},
        "prune must be one of": {"prune": "half"},
    }.items():
        with pytest.raises(ValueError, match=wrong):
            token(questions[:1], **arguments)
    for wrong, prompts in {"at least one prompt": [], "prompt 1 is empty": ["3+4", []], "token id 4000": [[4000]]}.items():
        with pytest.raises(ValueError, match=wrong):
            token(prompts)
    with pytest.raises(TypeError, match=r"no_such_setting"):
        token(questions[:1], no_such_setting=1)
    assert left_in_worker(token) == 0
    external = token(questions[:2], n=4, select="rank", external=lambda prompts, texts: [float(len(text)) for text in texts])
    assert all(candidate.external for result in external for candidate in result.candidates)


def test_an_llm_opened_elsewhere(token, reward_models):
    from vllm import LLM

    from swift_rm.integrations.vllm import VLLMBestOfN

    again = VLLMBestOfN(token.llm)
    assert again.rm.config == token.rm.config
    with pytest.raises(ValueError, match=r"reward_model: the LLM is open"):
        VLLMBestOfN(token.llm, "tiny-reasoner-reward")
    llm = LLM("swift_rm/assets/tiny-reasoner", enforce_eager=True, **SETTINGS)
    try:
        with pytest.raises(ValueError, match=r"CPUWorker', which scores nothing: open it with worker_cls="):
            VLLMBestOfN(llm)
    finally:
        close(llm)
