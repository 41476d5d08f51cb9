"""Sampling, training and stores with the sources that need no hidden states; see test_sources for the rewards themselves."""

from dataclasses import replace

import pytest
import torch

from swift_rm import SwiftConfig, fit, sample, score
from swift_rm.capture.state_recorder import RecordingSpec, StateRecorder
from swift_rm.evaluation.probed_states import read_states
from swift_rm.features.read_states import extract_features
from swift_rm.features.record_features import record_features
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from swift_rm.records.rollouts import read_rollouts
from swift_rm.sampling.sample import sample_batches
from swift_rm.scoring.score import score_rollouts
from swift_rm.scoring.teacher_forced_states import read_again
from swift_rm.training.fit import fit_bank, fit_features
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.fit_while_sampling import fit_online
from swift_rm.training.head_grid import HeadPlan
from tests.features.feature_stores import fill, make_key
from tests.reward_models import LOGPROB_CONFIGS, make_reader
from tests.training.planted_states import rollouts as planted
from tests.training.sampled_tasks import SETTINGS, grade, questions


@pytest.fixture(scope="module")
def logits(tokenizer):
    return SwiftConfig.of_logits(len(tokenizer))


@torch.no_grad()
def test_records_hold_what_a_pass_over_their_tokens_gives(llama, tokenizer, tmp_path):
    made = sample(llama, tokenizer, questions(6), 4, tmp_path / "r.jsonl", max_new_tokens=12, top_logprobs=5)
    assert made == read_rollouts(tmp_path / "r.jsonl")
    for rollout in made:
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        logprobs = torch.log_softmax(llama(ids).logits[0], -1)[len(rollout.prompt_ids) - 1 : -1]
        top, chosen = torch.tensor(rollout.extra["top_logprobs"]), logprobs[range(len(logprobs)), rollout.response_ids]
        torch.testing.assert_close(top, logprobs.topk(5).values.clamp_min(-20), atol=2e-4, rtol=0)
        assert rollout.extra["token_logprobs"] == pytest.approx(chosen.clamp_min(-20).tolist(), abs=2e-4)
        assert rollout.extra["end_token"] is (rollout.response_ids[-1] == tokenizer.eos_token_id)
        assert rollout.sampling["top_logprobs"] == 5
    assert len({rollout.extra["end_token"] for rollout in made}) == 2, "some should end by length"
    spoken = [one for one in made if len(one.response_ids) > 1]
    spoken = [replace(one, label=i % 2) for i, one in enumerate(spoken)]
    local, recorded = extract_features(llama, None, spoken, SwiftConfig.of_top_logprobs(5)), record_features(spoken, 5)
    assert torch.equal(local.offsets, recorded.offsets)
    torch.testing.assert_close(local.states, recorded.states, atol=1e-3, rtol=1e-3)
    rm = make_reader(SwiftConfig.of_top_logprobs(5))
    pairs = zip(score_rollouts(llama, None, rm, spoken), score_rollouts(None, None, rm, spoken), strict=True)
    assert all(there.reward == pytest.approx(here.reward, abs=2e-3) for there, here in pairs)


def test_another_number_of_alternatives_is_another_setting(llama, tokenizer, tmp_path):
    asked, files = questions(4), [tmp_path / name for name in "abc"]
    for file, top in zip(files, (None, 5, 0), strict=True):
        sample(llama, tokenizer, asked, 2, file, batch_size=2, max_new_tokens=6, top_logprobs=top)
    plain, five, none = map(read_rollouts, files)
    assert "top_logprobs" not in plain[0].sampling and not {"top_logprobs", "end_token"} & set(plain[0].extra)
    assert [one.response_ids for one in plain] == [one.response_ids for one in five]
    assert set(map(len, none[0].extra["top_logprobs"])) == {0}
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    assert sample(llama, tokenizer, asked, 2, files[1], batch_size=2, max_new_tokens=6, top_logprobs=5) == five
    assert files[1].read_bytes() == whole
    for file, top in zip(files, (5, 4, None), strict=True):
        with pytest.raises(ValueError, match=r"was sampled with other settings \(there, now\): {'top_logprobs'"):
            sample(llama, tokenizer, asked, 2, file, batch_size=2, max_new_tokens=6, top_logprobs=top)
    for wrong in (21, -1):
        with pytest.raises(ValueError, match=f"top_logprobs must be 0 to 20 of the likeliest tokens, got {wrong}"):
            sample(llama, tokenizer, asked, 2, top_logprobs=wrong)


def test_logits_recorded_while_sampling_are_those_of_a_second_pass(llama, tokenizer, logits):
    batches = sample_batches(llama, tokenizer, questions(3), 2, record=RecordingSpec.of(logits), batch_size=2, max_new_tokens=7)
    for batch in batches:
        prompts, responses = ([getattr(one, name) for one in batch.rollouts] for name in ("prompt_ids", "response_ids"))
        again, offsets = read_again(llama, RecordingSpec.of(logits), prompts, responses)
        assert torch.equal(batch.offsets, offsets)
        assert batch.states.shape == (int(offsets[-1]), len(tokenizer))
        torch.testing.assert_close(batch.states, again, atol=1e-4, rtol=1e-4)


def test_a_head_learns_from_logits(llama, tokenizer, logits, make_rollout):
    rm = fit(llama, tokenizer, planted(make_rollout), logits, lr=0.05)
    assert rm.config.training["validation_auroc_within"] > 0.9
    assert (rm.config.layers, rm.config.base_layers) == ((3,), 3)
    fresh = planted(make_rollout)
    rewards = score(llama, tokenizer, rm, [r.prompt_ids for r in fresh], [r.response_ids for r in fresh])
    right, wrong = ([reward for reward, r in zip(rewards, fresh, strict=True) if r.label == label] for label in (1, 0))
    assert sum(r > w for r in right for w in wrong) / len(right) / len(wrong) > 0.9


def test_a_head_learns_from_logits_while_sampling(llama, tokenizer, logits, tmp_path):
    out = tmp_path / "r.jsonl"
    done = fit_online(llama, tokenizer, questions(60), logits, 6, grade=grade, out=out, settings=FitSettings(lr=0.03), **SETTINGS)
    assert done.best.auroc.value > 0.7
    again = fit_online(
        llama, tokenizer, questions(60), logits, 6, grade=grade, out=out, settings=FitSettings(lr=0.03), **SETTINGS
    )
    torch.testing.assert_close(again.rm.head.weight, done.rm.head.weight, atol=1e-3, rtol=1e-2)
    with pytest.raises(ValueError, match="'top_logprobs' is not recorded as states: sample with top_logprobs=K"):
        fit_online(llama, tokenizer, questions(60), LOGPROB_CONFIGS["top 3"], 6, grade=grade, **SETTINGS)


def test_what_cannot_be_recorded_is_refused_by_name(llama):
    with pytest.raises(ValueError, match="'top_logprobs' is not recorded as states"):
        StateRecorder(llama, (-1,), source="top_logprobs")
    with pytest.raises(ValueError, match=r"the source 'logits' cannot be recorded at the positions \('token',\)"):
        RecordingSpec((-1,), ("token",), "logits")
    with pytest.raises(ValueError, match=r"after the last layer, -1, not after the layers \(0,\)"):
        StateRecorder(llama, (0,), source="logits")


def test_feature_stores_and_probes_are_for_hidden_states(llama, tokenizer, logits, tmp_path, make_rollout):
    with FeatureWriter(tmp_path / "store", make_key()) as writer:
        fill(writer, range(12))
    store = FeatureStore(tmp_path / "store")
    for config in (logits, LOGPROB_CONFIGS["top 3"]):
        with pytest.raises(ValueError, match=f"features are of the source 'hidden', but the heads read {config.source!r}"):
            fit_features(store, config)
        with pytest.raises(
            ValueError, match=f"probed for hidden states, but the reward model reads the source {config.source!r}"
        ):
            read_states(llama, tokenizer, planted(make_rollout), SwiftConfig(32, (3,)), make_reader(config))
    plans = [HeadPlan(logits, FitSettings()), HeadPlan(SwiftConfig(len(tokenizer), (-1,)), FitSettings(), "other")]
    with pytest.raises(ValueError, match=r"share their source: 'head' reads \('logits', None\), 'other' \('hidden', None\)"):
        fit_bank(store, plans, (-1,), [("generating", "response")])
