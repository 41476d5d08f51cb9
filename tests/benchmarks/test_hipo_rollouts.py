import json

from tests.scripts import ROOT, run


def test_the_benchmark_of_rollouts_prints_its_figures():
    """At tiny sizes; no time is judged here, but the script refuses rewards that are not those of scoring."""
    figures = json.loads(run(ROOT / "benchmarks/hipo/rollouts.py", "--quick", "--json"))
    assert set(figures["rollout_overhead"]) == {"tiny", "llama"}
    for name in ("tiny", "tiny_natural_lengths", "tiny_generating", "llama"):
        one = figures[name]
        assert one["overhead_range"][0] <= one["overhead"] <= one["overhead_range"][1]
        assert one["scoring_pass_vs_in_pass"] > 0
        assert one["seconds"]["trl"] > 0
    assert figures["tiny"]["position"] == "token"
    assert figures["tiny_generating"]["position"] == "generating"
    assert {"command", "device", "versions"} <= set(figures)
