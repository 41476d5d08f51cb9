"""HiPOTrainer overrides methods that TRL does not promise to keep: when they change, somebody has to look."""

import importlib
import importlib.metadata
import inspect

import pytest

from swift_rm.files import tested_versions
from swift_rm.files.tested_versions import UntestedVersion
from swift_rm.hipo.trainer import trl_version as trl_range
from swift_rm.hipo.trainer.trl_version import METHODS, digest

pytest.importorskip("trl")


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_trl_that_the_trainer_builds_on_are_those_it_was_written_for(name):
    from trl import GRPOTrainer

    found, (known, look) = digest(getattr(GRPOTrainer, name)), METHODS[name]
    version = importlib.metadata.version("trl")
    assert found == known, (
        f"GRPOTrainer.{name} of trl {version} is not the one that HiPOTrainer was written for: {look} "
        f"If all is well, record {found!r} here."
    )


def test_the_trainer_overrides_these_three_and_no_other_of_trl():
    from transformers import Trainer
    from trl import GRPOTrainer

    from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer

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


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tested_versions, "_failed", {})


NEWER = ["1.17.0", "2.0.0", "1.17.0.dev0", "main"]


@pytest.mark.parametrize("version", ["1.15.9", "0.29.0", "1.16.0rc1"])
def test_older_versions_of_trl_are_refused_with_the_line_that_installs_one(monkeypatch, version):
    monkeypatch.setattr(trl_range, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf'trl>=1.16,<1.17, but trl {version} is installed: pip install "swift-rm\[rl\]"'):
        trl_range.check_trl()


@pytest.mark.parametrize("version", NEWER)
def test_a_newer_trl_whose_methods_are_others_is_refused(monkeypatch, version):
    from trl import GRPOTrainer

    def _prepare_inputs(self, inputs):
        return inputs

    monkeypatch.setattr(trl_range, "version", lambda name: version)
    monkeypatch.setattr(GRPOTrainer, "_prepare_inputs", _prepare_inputs)
    said = rf'trl {version} was never tested .*trl>=1.16,<1.17, whose GRPOTrainer._prepare_inputs has changed .*"swift-rm\[rl\]"'
    with pytest.raises(UntestedVersion, match=said):
        trl_range.check_trl()
    monkeypatch.setenv("SWIFT_RM_UNTESTED", "1")
    with pytest.warns(UserWarning, match="rewards may be wrong"):
        trl_range.check_trl()


@pytest.mark.parametrize("version", NEWER)
def test_a_newer_trl_that_has_lost_a_method_is_refused_and_one_that_is_as_ever_is_taken(monkeypatch, version):
    from trl import GRPOTrainer

    monkeypatch.setattr(trl_range, "version", lambda name: version)
    with monkeypatch.context() as patch:
        patch.setattr("trl.GRPOTrainer", type("GRPOTrainer", (), {"_calculate_rewards": GRPOTrainer._calculate_rewards}))
        with pytest.raises(UntestedVersion, match=r"GRPOTrainer._generate_and_score_completions is gone"):
            trl_range.check_trl()
    monkeypatch.setattr(tested_versions, "_failed", {})
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
