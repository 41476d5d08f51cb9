"""HiPOTrainer overrides methods that TRL does not promise to keep: when they change, somebody has to look."""

import hashlib
import importlib
import importlib.metadata
import inspect

import pytest

from swift_rm.hipo import trl_range

pytest.importorskip("trl")

KNOWN = {  # of trl 1.16.0
    "_calculate_rewards": "8ffa0c7ca9307c40",
    "_generate_and_score_completions": "8ad618f3882bc520",
    "_generate": "428bb9b5cd77ca6a",
    "_tokenize_prompts": "c5df2fec534b862d",
    "_compute_loss": "765e782ef258696a",
    "_prepare_inputs": "d8617f874014c408",
    "_get_train_sampler": "77de8ae531b5b0c4",
}
LOOK = {
    "_calculate_rewards": "does it still return the rewards of all processes, [N, functions], in their order?",
    "_generate_and_score_completions": 'is output["advantages"] what the loss reads, and _logs["advantages"] what is shown?',
    "_generate": "are rollout_func's further lists still columns of the reward functions?",
    "_tokenize_prompts": "does it still return ids, images and further fields?",
    "_compute_loss": "are advantages [B, T] still taken as they are?",
    "_prepare_inputs": "is the batch still shuffled and split after the advantages are made?",
    "_get_train_sampler": "are the responses to a question still next to each other over all processes?",
}


def digest(method):
    """A hash of the code, its comments and layout aside."""
    lines = (line.strip() for line in inspect.getsource(method).splitlines())
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", KNOWN)
def test_the_methods_of_trl_that_the_trainer_builds_on_are_those_it_was_written_for(name):
    from trl import GRPOTrainer

    found = digest(getattr(GRPOTrainer, name))
    version = importlib.metadata.version("trl")
    assert found == KNOWN[name], (
        f"GRPOTrainer.{name} of trl {version} is not the one that HiPOTrainer was written for: {LOOK[name]} "
        f"If all is well, record {found!r} here."
    )


def test_the_trainer_overrides_these_three_and_no_other_of_trl():
    from transformers import Trainer
    from trl import GRPOTrainer

    from swift_rm.hipo.trainer import HiPOTrainer

    own = {name for name, value in vars(HiPOTrainer).items() if inspect.isfunction(value)}
    overridden = {"_calculate_rewards", "_generate_and_score_completions", "_get_train_sampler"}
    assert own & set(dir(GRPOTrainer)) == {"__init__", "train", *overridden}
    assert "train" in dir(Trainer)


def test_a_changed_line_is_noticed_and_a_comment_is_not(tmp_path, monkeypatch):
    found = []
    for name, body in (("a", "return x"), ("b", "# a comment\n\n    return x"), ("c", "return -x")):
        (tmp_path / f"guarded_{name}.py").write_text(f"def f(x):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        found.append(digest(importlib.import_module(f"guarded_{name}").f))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("version", ["1.15.9", "1.17.0", "0.29.0", "2.0.0", "1.17.0.dev0", "main"])
def test_other_versions_of_trl_are_refused_with_the_line_that_installs_one(monkeypatch, version):
    monkeypatch.setattr(trl_range, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf'trl>=1.16,<1.17, but trl {version} is installed: pip install "swift-rm\[rl\]"'):
        trl_range.check_trl()


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3", "1.16.0.post1"])
def test_versions_within_the_range_are_taken(monkeypatch, version):
    monkeypatch.setattr(trl_range, "version", lambda name: version)
    trl_range.check_trl()


def test_missing_trl_is_said_with_the_line_that_installs_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trl_range, "version", missing)
    with pytest.raises(ImportError, match=r'not installed: pip install "swift-rm\[rl\]"'):
        trl_range.check_trl()


def test_what_trl_needs_and_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(trl_range, "find_spec", lambda name: None if name == "datasets" else object())
    with pytest.raises(ImportError, match=r'whose datasets is not there: pip install "swift-rm\[rl\]"'):
        trl_range.check_trl()
