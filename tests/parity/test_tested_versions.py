"""A version that was never tested is checked once at its first use, remembered, and refused if it fails."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from swift_rm import HiddenStateTap, StreamingReward
from swift_rm._version import __version__
from swift_rm.files import tested_versions
from swift_rm.files.tested_versions import TRANSFORMERS, TestedRange, UntestedVersion, check_untested
from swift_rm.parity import transformers_self_test
from tests.decoding.planted_generate import FAULTS, Planted
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model

RANGE = TestedRange("somelib", "1.2.0", "1.4.1")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SWIFT_RM_UNTESTED", raising=False)
    monkeypatch.setattr(tested_versions, "_failed", {})
    tested_versions._warn_once.cache_clear()


@pytest.fixture
def newer(monkeypatch):
    """Pretend that a transformers is installed that nobody has tested."""
    real = tested_versions.installed
    monkeypatch.setattr(tested_versions, "installed", lambda name: "99.1.0" if name == "transformers" else real(name))


def broken():
    raise LookupError("the cache\n  is gone")


@pytest.mark.parametrize("version", ["1.2.0", "1.3", "1.4.1", "1.4.1+cpu", "1.4.1+cu128"])
def test_a_tested_version_is_not_checked(version):
    assert check_untested(RANGE, broken, version) == version


@pytest.mark.parametrize("version", ["1.1.9", "1.2.0rc1", "1.4.2", "1.5.0.dev0", "2.0", "1.4.1.post1"])
def test_any_other_version_is_checked_and_refused_with_the_reason_and_the_way_out(version):
    with pytest.raises(UntestedVersion) as error:
        check_untested(RANGE, broken, version)
    assert str(error.value) == (
        f"somelib {version} was never tested with swift-rm {__version__}, and its check at first use failed: LookupError: the "
        'cache is gone; tested are 1.2.0 to 1.4.1: pip install "somelib==1.4.1" (SWIFT_RM_UNTESTED=1 goes on all the same)'
    )
    assert isinstance(error.value, ImportError)


def test_a_pass_is_remembered_for_later_processes_and_a_failure_for_this_one_only(tmp_path):
    calls = []
    for _ in range(2):
        check_untested(RANGE, lambda: calls.append("good"), "1.5.0")
    with pytest.raises(UntestedVersion):
        check_untested(RANGE, broken, "1.6.0")
    with pytest.raises(UntestedVersion):  # nothing is run again
        check_untested(RANGE, lambda: calls.append("other"), "1.6.0")
    assert calls == ["good"]
    file = tmp_path / "swift-rm" / "checked_versions.json"
    assert [key.split(",")[0] for key in json.loads(file.read_text())] == ["somelib 1.5.0"]
    assert f"torch {torch.__version__.split('+')[0]}" in file.read_text() and __version__ in file.read_text()
    tested_versions._failed.clear()  # as in a new process
    check_untested(RANGE, lambda: calls.append("again"), "1.6.0")
    assert calls == ["good", "again"] and len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("damage", ["", "[", '{"a": 1}', "\x00\xff", "[1, null]"])
def test_a_damaged_memory_is_no_verdict(tmp_path, damage):
    file = tmp_path / "swift-rm" / "checked_versions.json"
    file.parent.mkdir()
    file.write_bytes(damage.encode("latin-1"))
    calls = []
    check_untested(RANGE, lambda: calls.append(1), "1.5.0")
    check_untested(RANGE, lambda: calls.append(2), "1.5.0")
    assert calls == [1] and json.loads(file.read_text())[-1].startswith("somelib 1.5.0")


def test_what_cannot_be_remembered_is_checked_again(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls = []
    for _ in range(2):
        check_untested(RANGE, lambda: calls.append(1), "1.5.0")
    assert calls == [1, 1]


def test_the_override_goes_on_and_says_so_once(monkeypatch):
    monkeypatch.setenv("SWIFT_RM_UNTESTED", "1")
    with pytest.warns(UserWarning, match=r"somelib 1.6.0 was never tested .* rewards may be wrong") as said:
        for _ in range(2):
            assert check_untested(RANGE, broken, "1.6.0") == "1.6.0"
    assert len(said) == 1


def test_the_check_passes_with_the_installed_transformers_and_leaves_everything_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            transformers_self_test.check_generation()
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_transformers_is_checked_when_states_are_first_read_and_once(newer, monkeypatch):
    calls, check = [], transformers_self_test.check_generation
    monkeypatch.setattr(transformers_self_test, "check_generation", lambda: (calls.append(1), check()))
    model = tiny_model("llama")
    for _ in range(2):
        with HiddenStateTap(model) as tap:
            model(torch.tensor([[5, 6, 7]]))
        assert tap.states[-1].shape == (1, 3, 32)
    assert calls == [1] and "transformers 99.1.0" in tested_versions.memory_file().read_text()


def test_threads_wait_for_the_verdict(newer, monkeypatch):
    began, end, seen = threading.Event(), threading.Event(), []

    def slow():
        began.set()
        end.wait(10)
        raise ValueError("wrong")

    def use():
        try:
            with HiddenStateTap(tiny_model("llama")):
                seen.append("read")
        except UntestedVersion:
            seen.append("refused")

    monkeypatch.setattr(transformers_self_test, "check_generation", slow)
    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert began.wait(10) and not seen
    end.set()
    for thread in threads:
        thread.join(10)
    assert seen == ["refused"] * 3


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unknown_transformers_whose_generate_has_a_fault_is_refused(newer, monkeypatch, fault):
    build = transformers_self_test._model

    def faulty():
        model, other = build(), build()
        model.generate = Repeating(Planted(model, fault, other=other))
        return model

    monkeypatch.setattr(transformers_self_test, "_model", faulty)
    model = tiny_model("llama")
    with pytest.raises(
        UntestedVersion, match=r"transformers 99.1.0 was never tested .* first use failed: (OutOfStep|RuntimeError)"
    ):
        StreamingReward(model, make_rm()).__enter__()
    assert not any(module._forward_hooks for module in model.modules())
    assert "generate" not in vars(model)


class Repeating:
    """A planted `generate` that takes several rows a prompt, and the settings of the check."""

    def __init__(self, planted):
        self.planted = planted

    def __call__(self, input_ids, attention_mask=None, num_return_sequences=1, **settings):
        return self.planted(input_ids.repeat_interleave(num_return_sequences, dim=0), **settings)


def test_other_states_than_the_models_own_and_other_tokens_than_greedy_ones_are_found(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(HiddenStateTap, "_take", lambda self, step: self._steps.append({k: v + 1 for k, v in step.items()}) or
                      setattr(self, "_last", step))  # fmt: skip
        with pytest.raises(RuntimeError, match="the hooks see other hidden states"):
            transformers_self_test.check_generation()
    with monkeypatch.context() as patch:
        patch.setattr("swift_rm.decoding.loop.next_inputs", lambda model, ids, cache, kwargs: {"input_ids": ids})
        with pytest.raises(RuntimeError, match=r"the decoding loop says other tokens|lost step"):
            transformers_self_test.check_generation()
    with monkeypatch.context() as patch:
        patch.setattr(StreamingReward, "rewards", property(lambda self: self.partial_rewards + 0.01))
        with pytest.raises(RuntimeError, match="a streaming reward is"):
            transformers_self_test.check_generation()


def test_the_command_line_refuses_in_one_sentence(tmp_path):
    program = (
        "import sys\nfrom swift_rm.files import tested_versions\nfrom swift_rm.parity import transformers_self_test\n"
        "real = tested_versions.installed\n"
        "tested_versions.installed = lambda name: '99.1.0' if name == 'transformers' else real(name)\n"
        "def check(): raise ValueError('no cache came out')\n"
        "transformers_self_test.check_generation = check\n"
        "from swift_rm.cli.main import main\n"
        "sys.exit(main(['best-of-n', '--model', 'tiny-reasoner', '--reward-model', 'tiny-reasoner-reward', '12+34']))\n"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("swift-rm: transformers 99.1.0 was never tested with swift-rm") and done.stderr.count("\n") == 1
    assert "failed: ValueError: no cache came out; tested are" in done.stderr


def test_the_metadata_end_at_the_next_minor_version_after_the_newest_tested():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.version import Version

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [wanted] = [one for one in map(Requirement, project["dependencies"]) if one.name == "transformers"]
    newest = Version(TRANSFORMERS.newest)
    bounds = {one.operator: one.version for one in wanted.specifier}
    assert Version(bounds[">="]) == Version(TRANSFORMERS.oldest)
    assert bounds["<"] == f"{newest.major}.{newest.minor + 1}"
