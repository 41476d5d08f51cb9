import pytest
import torch

from swift_rm import SwiftConfig, score
from swift_rm.features.read_states import Features
from swift_rm.tasks.task import Grade
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.fit_while_sampling import fit_online
from swift_rm.training.head_grid import plan_grid
from swift_rm.training.online_trainer import ReplayBuffer
from tests.training.sampled_tasks import SETTINGS, grade, questions


def config(**changes):
    return SwiftConfig(32, (0, 1, 2, 3), **{"position": "token", **changes})


def test_a_head_is_trained_while_sampling_and_knows_fresh_responses(llama, tokenizer):
    done = fit_online(llama, tokenizer, questions(80), config(), 6, grade=grade, settings=FitSettings(lr=0.03), **SETTINGS)
    assert done.best.auroc.value > 0.85
    assert len(done.rollouts) == 480
    training = done.rm.config.training
    assert training["online"] and training["questions"] == 64 and training["validation_questions"] == 16
    assert done.facts["gradient_steps"] == (8 * 1) * 5
    assert done.rm.config.fingerprint and done.rm.calibration is not None
    rewards = score(llama, tokenizer, done.rm, [r.prompt_ids for r in done.rollouts], [r.response_ids for r in done.rollouts])
    right = [x for x, r in zip(rewards, done.rollouts, strict=True) if r.label]
    wrong = [x for x, r in zip(rewards, done.rollouts, strict=True) if not r.label]
    assert sum(a > b for a in right for b in wrong) / len(right) / len(wrong) > 0.8, "what it learnt from is what score reads"


def test_nothing_is_run_twice(llama, tokenizer):
    tokens = 0

    def count(module, args, kwargs):
        nonlocal tokens
        tokens += kwargs["input_ids"].numel() if "input_ids" in kwargs else args[0].numel()

    def run(**more):
        nonlocal tokens
        tokens = 0
        with_hook = llama.register_forward_pre_hook(count, with_kwargs=True)
        try:
            fit_online(llama, tokenizer, questions(), config(**more), 4, grade=grade, **SETTINGS)
        finally:
            with_hook.remove()
        return tokens

    from swift_rm.sampling.sample import sample

    handle = llama.register_forward_pre_hook(count, with_kwargs=True)
    sample(llama, tokenizer, questions(), 4, grade=grade, **SETTINGS)
    handle.remove()
    alone = tokens
    assert run(position="generating") == alone
    assert run(position="token") <= alone + 60 * 4, "the state at the last token costs one step a batch"


def test_a_bank_shares_the_states_and_the_best_is_kept(llama, tokenizer):
    plans = plan_grid(
        config(), FitSettings(lr=0.03), layers=[(0, 1, 2, 3), (0,)], position=["token", "generating"], loss=["bce", "dpo"]
    )
    done = fit_online(llama, tokenizer, questions(), plans, 4, grade=grade, **SETTINGS)
    assert len(done.judged) == 8
    assert done.best.auroc.value == max(one.auroc.value for one in done.judged)
    alone = fit_online(llama, tokenizer, questions(), [plans[0]], 4, grade=grade, **SETTINGS)
    assert alone.judged[0].auroc.value == pytest.approx(done.judged[0].auroc.value, abs=0.02)


def test_a_stopped_run_goes_on_and_comes_out_the_same(llama, tokenizer, tmp_path):
    def run(out, asked=None):
        return fit_online(
            llama, tokenizer, asked or questions(), config(), 4, grade=grade, settings=FitSettings(lr=0.03), out=out, **SETTINGS
        )

    whole = run(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_text("".join(lines[:99]) + lines[99][:50])  # killed in the middle of a batch
    again = run(tmp_path / "half.jsonl")
    assert (tmp_path / "half.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert torch.allclose(again.rm.head.weight, whole.rm.head.weight, atol=2e-2)
    assert again.best.auroc.value == pytest.approx(whole.best.auroc.value, abs=0.02)


def test_answers_that_cannot_be_graded_are_left_out_and_counted(llama, tokenizer):
    def moody(question, response):
        if question.question_id == "q7":
            raise KeyError("no key")
        return grade(question, response)

    with pytest.warns(UserWarning, match=r"4 of 240 answers could not be graded .* 'q7'"):
        done = fit_online(llama, tokenizer, questions(), config(), 4, grade=moody, **SETTINGS)
    assert done.facts["ungraded_responses"] == 4


def test_held_out_states_that_do_not_fit_are_said_and_training_questions_counted(llama, tokenizer):
    with pytest.warns(UserWarning, match=r"by \d+ held-out questions only: the states of \d+ more did not fit into 9,000 b"):
        done = fit_online(llama, tokenizer, questions(), config(), 4, grade=grade, replay_bytes=9000, **SETTINGS)
    training = done.rm.config.training
    assert training["questions"] == 48 and 0 < training["validation_questions"] < 12
    assert done.facts["forgotten_questions"] >= 12 - training["validation_questions"]


def test_a_head_that_diverges_does_not_take_the_others_with_it(llama, tokenizer):
    good, diverged = fit_online(
        llama, tokenizer, questions(), plan_grid(config(), lr=[0.01, 1e30]), 4, grade=grade, **SETTINGS
    ).judged
    alone = fit_online(llama, tokenizer, questions(), config(), 4, grade=grade, **SETTINGS).judged[0]
    assert good.auroc.value == pytest.approx(alone.auroc.value, abs=0.02)
    assert diverged.row["best_epoch"] == 0 and torch.isfinite(diverged.rm.head.weight).all()


def test_labels_that_cannot_teach_are_refused_and_the_rollouts_kept(llama, tokenizer, tmp_path):
    out = tmp_path / "rollouts.jsonl"
    with pytest.raises(ValueError, match="all 240 responses are right"):
        fit_online(llama, tokenizer, questions(), config(), 4, grade=lambda q, r: Grade("1", 1), out=out, **SETTINGS)
    assert len(out.read_text().splitlines()) == 240
    with pytest.raises(ValueError, match="replay must be 0 or more gradient steps, got -1"):
        fit_online(llama, tokenizer, questions(), config(), 4, grade=grade, replay=-1, **SETTINGS)
    with pytest.raises(ValueError, match="settings go with a configuration"):
        fit_online(llama, tokenizer, questions(), plan_grid(config()), grade=grade, settings=FitSettings())


def shard(start, count=4, n=3, size=5):
    states = torch.arange(count * n * size, dtype=torch.float32)[:, None] + 1000 * start
    question = torch.arange(start, start + count).repeat_interleave(n)
    return Features(states, torch.arange(0, count * n * size + 1, size), torch.ones(count * n, dtype=torch.long), question)


def test_the_replay_buffer_forgets_the_oldest_and_draws_whole_questions():
    buffer = ReplayBuffer(max_bytes=2 * 4 * 3 * 5 * 4)
    for start in (0, 4, 8):
        buffer.add(shard(start))
    assert (len(buffer), buffer.forgotten, buffer.bytes) == (2, 4, 480)
    assert sorted(set(buffer.question.tolist())) == [4, 5, 6, 7, 8, 9, 10, 11]
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        batch = buffer.draw(3, generator)
        assert len(batch.labels) == 9 and torch.bincount(batch.question).unique().tolist() == [0, 3]
        assert torch.equal(batch.states[batch.offsets[:-1], 0] // 1000, batch.question // 4 * 4)
        seen |= set(batch.question.tolist())
    assert seen == set(range(4, 12))
    assert len(buffer.draw(99, generator).labels) == 24
    small = ReplayBuffer(1)
    small.add(shard(0))
    assert len(small) == 1, "the newest is always kept"
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        ReplayBuffer(0)
