"""llama.cpp's own server, which nobody here wrote, serves the tiny reasoner: from its replies to a head that reranks them."""

import json

import pytest

from swift_rm.cli.main import main
from tests.scripts import ROOT

pytestmark = pytest.mark.servers
KEY = "a-key-of-no-value-4711"
PLAIN = ["--extra-body", '{"top_k": 0, "min_p": 0}']


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("xllamacpp")
    from benchmarks.api.llama_cpp_server import llama_cpp_server

    with pytest.MonkeyPatch.context() as patch, llama_cpp_server(ROOT / "swift_rm/assets/tiny-reasoner", key=KEY) as address:
        patch.setenv("OPENAI_API_KEY", KEY)
        yield address


def test_a_head_of_its_replies_beats_its_own_order_and_is_that_of_the_local_logits(address, tmp_path):
    from benchmarks.api.real_server import measured

    figures = measured(address, tmp_path, 300, 120, 16)
    assert figures["offline"]["swift_best-first_choice"]["low"] > 0
    assert figures["online"]["best_of_n-first_choice"]["low"] > 0
    assert figures["parity"]["responses"] > 1900
    apart, spread = figures["parity"], figures["parity"]["spread_of_rewards"]
    assert apart["median"] < 1e-4 * spread and apart["of_1000_all_but_one"] < 1e-2 * spread and apart["largest"] < 0.1 * spread
    assert figures["usage"]["completion_tokens"] >= figures["tokens"]  # the end tokens, which no head reads, cost too


def test_the_commands_go_from_samples_to_an_answer(address, tmp_path, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert KEY not in out + err
        return code, out, err

    api = ("--api", address, "--model", "tiny-reasoner")
    records, rm, scored = (tmp_path / name for name in ("api.jsonl", "rm", "scored.jsonl"))
    sample = ("sample", *api, *PLAIN, "--task", "homework", "--questions", 60, "-n", 12, "--out", records, "--json")
    code, out, _ = run(*sample)
    assert code == 0 and json.loads(out)["responses"] == 720  # 12 responses a question: more than the server has slots
    assert run(*sample)[1].startswith("{") and len(records.read_text().splitlines()) == 720
    assert run("train", "--rollouts", records, "--source", "top_logprobs", "--out", rm, "--json")[0] == 0
    assert run("score", "--reward-model", rm, "--input", records, "--out", scored, "--json")[0] == 0
    code, out, _ = run("evaluate", scored, "--json")
    assert code == 0 and json.loads(out)["auroc_within"]["swift"]["value"] > 0.6
    code, out, _ = run("best-of-n", *api, *PLAIN, "--reward-model", rm, "-n", 4, "27+15", "--json")
    assert code == 0 and len(json.loads(out)[0]["candidates"]) == 4
    assert KEY not in records.read_text() + scored.read_text() + "".join(path.read_text() for path in rm.glob("*.json"))


def test_a_wrong_key_and_a_wrong_name_are_told(address, tmp_path, capsys, monkeypatch):
    sample = ["sample", "--api", address, "--task", "homework", "--questions", "2", "--out", str(tmp_path / "a.jsonl")]
    assert main([*sample, "--model", "another-model"]) == 2
    assert "another-model" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0815-wrong")
    assert main([*sample, "--model", "tiny-reasoner"]) == 2
    told = capsys.readouterr().err
    assert "OPENAI_API_KEY" in told and "wrong-0815" not in told
