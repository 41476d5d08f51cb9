"""The matrix of versions: which pairs are run, what comes of them, and that its tables stand in the docs."""

import json
import subprocess

import pytest

from benchmarks.versions import versions
from swift_rm.files.tested_versions import TRANSFORMERS
from tests.scripts import ROOT

ROWS = [
    {"transformers": "5.5.0", "torch": "2.6.0", "ok": True, "trl": "1.16.0", "passed": 10, "tests_failed": 0},
    {"transformers": "5.5.0", "torch": "2.13.0", "ok": True, "trl": "1.16.0", "passed": 10, "tests_failed": 0},
    {"transformers": "9.9.0", "torch": "2.13.0", "ok": False, "trl": "1.16.0", "passed": 8, "tests_failed": 2, "reason": "t.py and 1 more"},  # noqa: E501
]  # fmt: skip


def test_the_ends_are_run_with_both_versions_of_torch_and_two_between():
    pairs = versions.pairs_of("9.9.0", "8.8.0")
    assert [(one.transformers, one.torch) for one in pairs] == [
        (TRANSFORMERS.oldest, "2.6.0"), (TRANSFORMERS.oldest, "8.8.0"), ("5.11.0", "8.8.0"), ("5.17.0", "8.8.0"),
        ("9.9.0", "2.6.0"), ("9.9.0", "8.8.0"),
    ]  # fmt: skip
    assert len({one.folder for one in pairs}) == 6


def test_a_version_passes_if_all_that_was_run_with_it_did():
    found = versions.summary(ROWS)
    assert found["tested"] == {
        "transformers": {"5.5.0": True, "9.9.0": False}, "torch": {"2.6.0": True, "2.13.0": False}
    }  # fmt: skip
    assert found["failed"] == 1 and versions.summary(ROWS[:2])["failed"] == 0
    text = versions.table(found).splitlines()
    assert len(text) == 5 and text[2].endswith("| 10 | 0 | passes |") and text[4].endswith("| **fails**: t.py and 1 more |")


def test_the_core_is_there():
    for name in versions.CORE:
        assert (ROOT / "tests" / f"{name}.py").is_file(), name


def test_the_committed_result_is_of_every_version_that_the_metadata_claim_and_stands_in_the_docs():
    result = json.loads(versions.RESULT.read_text())
    assert result["failed"] == 0 and all(all(tested.values()) for tested in result["tested"].values())
    assert {TRANSFORMERS.oldest, TRANSFORMERS.newest, *versions.BETWEEN} <= set(result["tested"]["transformers"])
    page = versions.PAGE.read_text()
    assert versions.with_table(page, "versions", versions.table(result)) == page
    assert versions.with_table(page, "internals", versions.internals_table()) == page
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"transformers=={TRANSFORMERS.newest}\n" in constraints


def test_a_version_that_does_not_exist_is_a_failure_with_pips_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "_dependencies", list)
    pair = versions.Pair("0.0.0.dev99", "0.0.0.dev99")
    monkeypatch.setattr(subprocess, "run", fake_pip(pair))
    row = versions._run(pair, None)
    assert row["ok"] is False and row["reason"] == "pip: ERROR: No matching distribution found for torch==0.0.0.dev99"


def fake_pip(pair):
    def run(command, **kwargs):
        assert command[1:3] in (["-m", "venv"], ["-m", "pip"])
        stderr = "WARNING: slow\nERROR: No matching distribution found for torch==0.0.0.dev99\n"
        return subprocess.CompletedProcess(command, int(command[2] == "pip"), stdout="", stderr=stderr)

    return run


@pytest.mark.parametrize("asked", [["5.24.0"], ["5.24.0+2.13.0"]])
def test_a_pair_is_named_by_both_or_by_transformers_alone(asked):
    assert versions._pair(asked[0]) == versions.Pair("5.24.0", versions._newest_torch())
