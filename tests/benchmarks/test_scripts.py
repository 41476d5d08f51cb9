"""The scripts run whole at tiny sizes, so that they cannot rot; no time is measured here."""

import json
import re

import pytest

from swift_rm import SwiftRewardModel
from tests.scripts import ROOT, call, run


def test_the_scoring_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/decoding/scoring.py", "--quick", "--json"))
    assert figures["score_vs_forward"] > 0
    assert 0 < figures["peak_bytes_at_512"] < 8 * figures["peak_bytes_at_64"], "512 responses may not hold eight times the states"
    assert {"command", "device", "versions"} <= set(figures)


def test_the_engine_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/decoding/engine.py", "--quick", "--json"))
    keys = {"scoring_overhead", "best_of_n_vs_published", "best_of_n_vs_generate", "prune_tokens_saved", "stop_at_tokens_share"}
    assert keys <= set(figures)
    assert figures["best_of_n_vs_published"] > 0
    assert set(figures["prune_accuracy_loss"]) == {"value", "low", "high"}
    assert 0 < figures["prune_tokens_saved"] < 1 and 0 < figures["stop_at_tokens_share"] <= 1
    kept, stored = figures["bytes_per_candidate"], figures["stored_bytes_per_candidate"]
    assert len(set(kept.values())) == 1, "what is kept of a candidate does not depend on its length"
    assert stored["32"] == 4 * stored["8"] > kept["32"]
    shares = {one["n"]: one["share"] for one in figures["fewer_candidates_curve"]}
    assert shares[8] == 1 > shares[4] > shares[1], "a replay that reads all candidates spends all tokens"
    random = [one for one in figures["prune_curve"] if one["signal"] == "random"]
    assert all(0 <= one["saved"] < 1 for one in random) and len(random) > 1


def test_the_cpu_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/kernels/cpu.py", "--quick", "--json"))
    headlines = ("forward_share_of_sum", "forward_vs_published", "backward_share_of_sum")
    assert figures["auto"] == {"float32": "numba", "bfloat16": "numba"}
    for key in headlines:
        assert figures[key] == min(figures[dtype]["numba"][key] for dtype in ("float32", "bfloat16")) > 0
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        states = figures["layers"] * figures["width"] * size
        assert figures[dtype]["numba"]["peak_bytes_per_token"] < states / 4, "a copy of the states was made"
        assert figures[dtype]["torch"]["forward_gb_per_s"] > 0


def test_the_training_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/training/training.py", "--quick", "--json"))
    assert min(figures["online_overhead"], figures["bank16_overhead"]) > -1
    for one in figures["published"].values():
        assert one["ratio"] > 0 and 0 <= one["published_auroc"] <= 1 and 0.3 < one["auroc"] <= 1
    assert figures["published_vs_online"] == min(one["ratio"] for one in figures["published"].values())
    assert figures["store_read_share"] > 0 and figures["store"]["peak_bytes"] < figures["store"]["bytes"]
    assert abs(figures["int8_auroc_loss"]) < 0.1 and figures["int8"]["bytes_share"] < 0.27


def test_the_ray_benchmark_loses_and_doubles_nothing_when_workers_and_drivers_are_killed():
    figures = json.loads(run(ROOT / "benchmarks/ray/scaling.py", "--quick", "--json"))
    assert figures["speedup_two_actors"] > 0 and figures["responses_per_second"]["one"] > 0 and figures["ray_overhead"] < 1
    assert (figures["kills"], figures["driver_kills"]) == (2, 1)
    nothing = {
        name: figures[name] for name in ("records_lost", "records_doubled", "rewards_differ", "features_lost", "features_doubled")
    }
    assert set(nothing.values()) == {0}, nothing
    assert figures["features_error"] < 0.01
    assert figures["file_equals_one_process"] is True
    assert figures["processes_left"] == 0


def test_the_page_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/report/report_page.py", "--quick", "--json"))
    for name in ("short", "long"):
        assert 0 < figures[name]["megabytes"] < 1 and figures[name]["shown"]["candidates"] == 320
        assert figures[name]["shown"]["shaded"] == 320 and figures[name]["shown"]["shortened"] == 0


def test_the_models_can_be_made_from_nothing(tmp_path):
    trainer, out = ROOT / "examples/train_tiny_reasoner.py", tmp_path / "lm"
    log = run(trainer, "--scale", 0.25, "--layers", 2, "--width", 32, "--last", "sums", "--out", out)
    assert "sums 100" in log
    run(trainer, "--init", out, "--first", "early", "--scale", 0.004, "--out", out)
    larger = tmp_path / "larger"
    run(trainer, "--init", out, "--grow", 1, "--worlds", "homework", "rewriting", "--scale", 0.002, "--out", larger)
    assert json.loads((larger / "config.json").read_text())["num_hidden_layers"] == 3
    reward = ["--model", "tiny-reasoner", "--questions", 40, "-n", 4, "--test-questions", 10]
    table = run(ROOT / "examples/train_tiny_reward.py", *reward, "--out", tmp_path / "rm")
    assert "swift_vote" in table
    config = SwiftRewardModel.from_pretrained(tmp_path / "rm").config
    assert (config.evaluation["questions"], config.evaluation["n"]) == (10, 16)


def test_the_hipo_examples_run_whole(tmp_path):
    """The one by rewards of hidden states, the other with a file, adapters and labels; a finished run is left as it is."""
    pytest.importorskip("trl")
    for name, swift in (("hipo_homework", True), ("hipo_gsm8k", False)):
        command = [ROOT / f"examples/{name}.py", "--smoke", "--out", tmp_path / name]
        told = run(*command, "--rewards", "swift" if swift else "labels")
        first, last = map(float, re.search(r"cold start: loss ([0-9.]+) to ([0-9.]+) in", told).groups())
        assert last < first
        rows = (tmp_path / name / "data" / "cold.jsonl").read_text().splitlines()
        assert 0 < len(rows) <= 40 and all("<judge>" in json.loads(row)["completion"] for row in rows)
        assert re.search(r"unseen questions +cold start +after HiPO\n.*\nright \(%\) +[0-9.]+ +[0-9.]+\n", told)
        made = tmp_path / name / "run"
        assert "<svg" in (made / "report.html").read_text() and f"report  {made / 'report.html'}" in told
        log = json.loads((made / "trainer_state.json").read_text())["log_history"]
        assert [entry["step"] for entry in log if "hipo/accuracy" in entry] == [1, 2]
        assert (made / "model.safetensors").exists() and not (made / "adapter_model.safetensors").exists()
        assert json.loads((made / "hipo.json").read_text())["reward_source"] == ("swift" if swift else "labels")
    again = call(*command)
    assert again.returncode == 1 and "holds a finished run" in again.stderr


def test_the_gpu_benchmark_runs_in_tritons_interpreter(tmp_path):
    results = ROOT / "benchmarks/results/gpu.json"
    before = results.read_bytes() if results.exists() else None
    out = tmp_path / "gpu.json"
    figures = json.loads(run(ROOT / "benchmarks/kernels/gpu.py", "--interpret", "--json", "--out", out))
    assert json.loads(out.read_text()) == figures
    assert set(figures["goals"]) == set(figures["met"]) <= set(figures)
    assert set(figures["met"].values()) == {None}, "the interpreter's times say nothing about goals"
    assert set(figures["parity"]) == {"bfloat16", "float16", "float32"}
    assert all(one["kernels"] < 1e-4 < one["torch"] for name, one in figures["parity"].items() if name != "float32")
    assert figures["step_us_eager"] > 0 and figures["generation_overhead"] > -1 and figures["forward_vs_eager"] > 0
    assert figures["step_us_graph"] is figures["memory"] is figures["forward_vs_compile"] is None
    assert figures["interpreted"] and figures["rows"] and {"command", "device", "gpu_versions", "blocks"} <= set(figures)
    assert (results.read_bytes() if results.exists() else None) == before, "nothing is written beside --out"


def test_the_closed_api_example_runs_whole_and_goes_on(tmp_path):
    """Against a small server of its own; what was sampled is not sampled again."""
    pytest.importorskip("openai")
    command = [ROOT / "examples/closed_api.py", "--smoke", "--out", tmp_path / "api"]
    told = run(*command)
    assert re.search(r"96 responses to train on, .*\none response \(%\) +[0-9.]+\nmajority vote \(%\) +[0-9.]+\nreranked", told)
    records = (tmp_path / "api" / "train.jsonl").read_text()
    assert len(records.splitlines()) == 96 and '"response_ids": []' in records
    assert SwiftRewardModel.from_pretrained(tmp_path / "api" / "reward-model").config.source == "top_logprobs"
    assert run(*command).splitlines()[0] == told.splitlines()[0]
    assert (tmp_path / "api" / "train.jsonl").read_text() == records


def test_the_benchmark_of_sources_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/heads/sources.py", "--quick", "--json"))
    for name in ("hidden", "logits", "top_20", "top_5", "chosen_only", "min_logprob", "self_certainty", "deepconf_mean"):
        row = figures["sources"][name]
        assert 0 <= row["auroc_within"]["value"] <= 1 and 0 <= row["best_of_16"]["value"] <= 1
        assert row["seconds_per_1000_tokens"] > 0
    assert figures["sources"]["logits"]["parameters"] == 2 * 40 + 2
    assert set(figures["sources"]["majority"]) == {"best_of_16"}
    assert {"logits-hidden", "top_20-mean_logprob", "top_20-deepconf_lowest"} <= set(figures["paired"])


@pytest.mark.servers
def test_the_gateway_benchmark_prints_its_figures():
    figures = json.loads(run(ROOT / "benchmarks/gateway/gateway.py", "--quick", "--json"))
    assert figures["requests"] > 0 == figures["lost"] == figures["mixed"] == figures["over_limit_other"]
    assert figures["mixed_if_swapped"] > 0.9 * figures["requests"], "a mix-up would be noticed"
    assert 0 < figures["rejected_429"] <= figures["burst"] - figures["queue"]
    assert figures["throughput_share_of_engine"] > 0 and figures["direct_ms"] > 0 and "added_latency_ms" in figures
    plain, shrunk = (figures["suffixes"][name]["tokens_per_request"] for name in ("tiny-reasoner", "swift-shrunk-16"))
    assert 8 * plain < shrunk < 32 * plain
