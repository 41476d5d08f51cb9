import json
import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.records.rollouts import Rollout
from swift_rm.report.plots.evaluation_charts import (
    CHARTS,
    accuracy_by_n,
    accuracy_by_tokens,
    auroc_by_layer,
    calibration,
    charts,
    differences,
    label_efficiency,
    left_out,
)

pytest.importorskip("matplotlib")


BIN = {"low": 0.0, "high": 1.0, "responses": 30, "probability": 0.5, "right": {"value": 0.5, "low": 0.4, "high": 0.6}}


def figure(value, half=0.05):
    return {"value": value, "low": value - half, "high": value + half}


def curve(*values):
    return [{"k": k, **figure(value)} for k, value in enumerate(values, start=1)]


def report(**changes):
    data = {
        "questions": 10,
        "n": 3,
        "accuracy": {"first": figure(0.5), "swift_best": figure(0.75)},
        "paired": {"swift_best-majority": figure(-0.1), "swift_vote-majority": figure(0.2, 0.3)},
        "curves": {"swift_best": curve(0.5, 0.7, 0.75), "length": curve(0.5, 0.48, 0.45), "oracle": curve(0.5, 0.8, 0.9)},
        "ece": figure(0.1),
        "tokens_per_response": 12.5,
        "calibration": [
            {"low": 0.0, "high": 0.5, "responses": 20, "probability": 0.2, "right": figure(0.15)},
            {"low": 0.5, "high": 1.0, "responses": 10, "probability": 0.9, "right": figure(0.6)},
        ],
        "layers": [{"layer": k, "mean": figure(0.5 + k / 10), "last": figure(0.5 + k / 20)} for k in range(3)],
        "label_efficiency": [
            {"questions": 50, "auroc": figure(0.7), "best": figure(0.6), "shrunk": figure(0.65)},
            {"questions": 25, "auroc": figure(0.6), "best": figure(0.5), "shrunk": figure(0.55)},
        ],
    }
    return {**data, **changes}


def texts(chart):
    root = ElementTree.fromstring(chart.svg())
    return [element.text for element in root.iter() if element.tag.endswith("text")]


def rollouts(questions, n, *, reward=True, tokens=3):
    rng = np.random.default_rng(0)
    return [
        Rollout(str(q), "?", [1], "!", [2] * tokens, "stop", str(label), label, float(rng.normal() + label) if reward else None)
        for q in range(questions)
        for label in rng.integers(0, 2, n).tolist()
    ]


def test_a_real_evaluation_has_four_charts_and_says_how_to_get_the_others(tmp_path):
    data = json.loads(json.dumps(evaluate(rollouts(12, 5), bootstrap=30).to_dict(), allow_nan=False))
    drawn = charts(data)
    assert [chart.name for chart in drawn] == ["accuracy_by_n", "accuracy_by_tokens", "differences", "calibration"]
    without = left_out(data)
    assert ["--probe" in without[0], "--label-curve" in without[1], len(without)] == [True, True, 2]
    (tmp_path / "report.json").write_text(json.dumps(data))
    assert [chart.svg() for chart in charts(tmp_path / "report.json")] == [chart.svg() for chart in drawn]
    points = {(rule, k): value for rule, k, value, *_ in drawn[0].rows}
    for rule, rows in data["curves"].items():
        assert [points[rule, k] for k in range(1, 6)] == [row["value"] for row in rows]
    assert sum(row[2] for row in drawn[3].rows) == 60


def test_all_charts_have_figures_in_words_and_a_table_of_what_is_drawn():
    drawn = charts(report())
    assert [chart.name for chart in drawn] == list(CHARTS)
    assert left_out(report()) == []
    for chart in drawn:
        assert {len(row) for row in chart.rows} == {len(chart.header)}
        assert 40 < len(chart.alt) < 700
        assert re.search(r"\d", chart.alt)
        assert chart.alt in chart.svg()


def test_accuracy_by_n():
    chart = accuracy_by_n(report())
    assert chart.header == ("rule", "responses", "accuracy", "low", "high")
    assert chart.rows[0] == ("first", 1, 0.5, 0.45, 0.55)
    assert [row[:3] for row in chart.rows if row[0] == "length"] == [("length", 1, 0.5), ("length", 2, 0.48), ("length", 3, 0.45)]
    assert len(chart.rows) == 1 + 3 * 3
    assert {"swift_best 75.0", "oracle 90.0", "first 50.0", "1 other baseline", "3", "responses per question"} <= set(
        texts(chart)
    )
    assert chart.alt.startswith(
        "With 3 responses per question, accuracy in % with its interval: oracle 90.0 [85.0, 95.0], swift_best"
    )
    assert "a single response 50.0 [45.0, 55.0]" in chart.alt


def test_tokens_are_responses_times_their_mean_length():
    chart = accuracy_by_tokens(report())
    assert chart.header[1] == "tokens"
    assert [row[1] for row in chart.rows if row[0] in ("first", "oracle")] == [12.5, 12.5, 25.0, 37.5]
    assert "(38 tokens)" in chart.alt
    with pytest.raises(ValueError, match='no chart "accuracy_by_tokens": the report has no "tokens_per_response"'):
        accuracy_by_tokens(report(tokens_per_response=0.0))  # records without token ids


def test_long_curves_are_thinned_but_keep_powers_of_two_and_the_last():
    chart = accuracy_by_n(report(curves={"swift_best": curve(*np.linspace(0.5, 0.9, 1000).tolist())}, accuracy={}))
    ks = [row[1] for row in chart.rows]
    assert ks == sorted(set(ks))
    assert {*range(1, 17), 32, 64, 128, 256, 512, 1000} <= set(ks)
    assert len(ks) < 80
    assert all(row[2] == np.linspace(0.5, 0.9, 1000)[row[1] - 1] for row in chart.rows)
    assert len(chart.svg()) < 20_000


def test_layers():
    chart = auroc_by_layer(report())
    assert chart.rows[2] == ("mean", 2, 0.7, pytest.approx(0.65), 0.75)
    assert [row[:2] for row in chart.rows[3:]] == [("last", 0), ("last", 1), ("last", 2)]
    assert (
        "0.700 [0.650, 0.750] from the mean state of layer 2 and 0.600 [0.550, 0.650] from the last state of layer 2" in chart.alt
    )
    assert {"mean state", "last state", "chance", "0", "1", "2"} <= set(texts(chart))


def test_calibration():
    chart = calibration(report())
    assert chart.header == ("from", "to", "responses", "mean probability", "share right", "low", "high")
    assert chart.rows[1] == (0.5, 1.0, 10, 0.9, 0.6, pytest.approx(0.55), 0.65)
    assert "30 responses" in chart.alt
    assert "10 with a mean probability of 90.0 %, of which 60.0 [55.0, 65.0] % are right" in chart.alt
    assert "calibration error is 0.100 [0.050, 0.150]" in chart.alt


def test_label_efficiency_with_and_without_models():
    chart = label_efficiency(report())
    assert [row[:3] for row in chart.rows[:3]] == [("", "AUROC", 25), ("", "AUROC", 50), ("", "shrunk mean", 25)]
    assert chart.alt.startswith("AUROC 0.600 [0.550, 0.650] with 25 labelled questions, 0.700 [0.650, 0.750] with 50")
    rows = [{"model": model, "questions": 30, "auroc": figure(0.6), "best_of_16": figure(0.5)} for model in ("one", "x" * 99)]
    chart = label_efficiency(report(label_efficiency=rows))
    assert [row[:3] for row in chart.rows] == [
        ("one", "AUROC", 30),
        ("one", "best of 16", 30),
        ("x" * 99, "AUROC", 30),
        ("x" * 99, "best of 16", 30),
    ]
    assert {"one", "accuracy of 16 (%)", f"{'x' * 8}\u2026{'x' * 7}"} <= set(texts(chart))


def test_differences():
    chart = differences({"paired": report()["paired"]})
    assert chart.rows[0] == ("swift_best-majority", -0.1, pytest.approx(-0.15), -0.05)
    assert "swift_best \u2212 majority \u221210.0 [\u221215.0, \u22125.0]" in chart.alt
    assert "+20.0 [\u221210.0, +50.0]" in texts(chart)
    filled = re.findall(r"fill: (#\w+); stroke: #527bce", chart.svg())
    assert filled == ["#527bce", "#ffffff"]  # the interval of the second holds zero


def test_one_response_and_one_question_are_drawn():
    for given in (rollouts(1, 1), rollouts(1, 4), rollouts(3, 1)):
        data = evaluate(given, bootstrap=10).to_dict()
        assert [chart.name for chart in charts(data)] == list(CHARTS)[:4]
    one = {key: value[:1] for key, value in report().items() if key in ("calibration", "layers", "label_efficiency")}
    assert len([chart.svg() for chart in charts(report(**one))]) == 6


def test_rollouts_without_rewards_have_no_calibration():
    data = evaluate(rollouts(4, 3, reward=False, tokens=0), bootstrap=10).to_dict()
    assert [chart.name for chart in charts(data)] == ["accuracy_by_n"]
    assert [name for sentence in left_out(data) for name in re.findall('no chart "(.*?)"', sentence)] == list(CHARTS)[1:]
    assert all(sentence.count("swift-rm ") for sentence in left_out(data))


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_figures_that_are_not_defined_leave_gaps(hole):
    def punched(value):
        if isinstance(value, dict) and value.keys() >= {"value", "low", "high"}:
            return {**value, "low": hole, "high": hole} | ({"value": hole} if value["value"] > 0.6 else {})
        if isinstance(value, dict):
            return {key: punched(one) for key, one in value.items()}
        return [punched(one) for one in value] if isinstance(value, list) else value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chart in charts(punched(report())):
            svg = chart.svg()
            assert "nan" not in re.sub(r"Nan|nano", "", svg)
            assert "inf" not in svg
            assert None in {cell for row in chart.rows for cell in row}
    assert "swift_best \u2212 majority \u221210.0 [\u2013, \u2013]" in differences(punched(report())).alt
    assert "mean state" in texts(auroc_by_layer(punched(report())))  # its last point is not defined
    nothing = {"value": None, "low": None, "high": None}
    assert "oracle" not in accuracy_by_n(report(curves={"oracle": [{"k": 1, **nothing}]})).alt


@pytest.mark.parametrize("draw", CHARTS.values(), ids=list(CHARTS))
def test_a_report_without_the_data_is_one_sentence_with_the_way_to_get_them(draw):
    for data in ({}, report(curves={}, tokens_per_response=None, paired={}, calibration=None, layers=[], label_efficiency=[])):
        with pytest.raises(ValueError, match=r'^no chart ".*": the report has no "\w+"; .*`swift-rm ') as caught:
            draw(data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curves": [1]}, '"curves" must be an object, got [1]'),
        ({"curves": {"oracle": {}}}, '"curves.oracle" must be a list, got {}'),
        ({"curves": {"oracle": [{"value": 1}]}}, '"curves.oracle[0]" has no "k"'),
        ({"curves": {"oracle": [{"k": 0, **figure(0.5)}]}}, '"curves.oracle[0].k" must be a whole number from 1, got 0'),
        ({"curves": {"oracle": [{"k": 1, "value": 1}]}}, '"curves.oracle[0]" must have the numbers value, low and high'),
        ({"curves": {"oracle": []}}, '"curves" has no points'),
        ({"accuracy": {"first": 3}}, '"accuracy.first" must have the numbers value, low and high, got 3'),
        ({"tokens_per_response": "many"}, "\"tokens_per_response\" must be a number, got 'many'"),
        ({"paired": {"a-b": {"value": "x", "low": 0, "high": 0}}}, "\"paired.a-b.value\" must be a number, got 'x'"),
        ({"calibration": [{"low": 0}]}, '"calibration[0]" has no "high"'),
        ({"calibration": [7]}, '"calibration[0]" has no "low": 7'),
        ({"layers": [{"layer": None, "mean": figure(0), "last": figure(0)}]}, '"layers[0].layer" must be a number, got None'),
        ({"layers": [{"layer": 1.5, "mean": figure(0), "last": figure(0)}]}, '"layers[0].layer" must be a whole number from 0'),
        ({"layers": [{"layer": -1, "mean": figure(0), "last": figure(0)}]}, '"layers[0].layer" must be a whole number from 0'),
        (
            {"calibration": [{**BIN, "responses": 1e308}]},
            '"calibration[0].responses" must be a whole number from 0 to 9,007,199,',
        ),
        ({"calibration": [{**BIN, "responses": 2.5}]}, '"calibration[0].responses" must be a whole number from 0, got 2.5'),
        ({"calibration": [{**BIN, "probability": 10**400}]}, '"calibration[0].probability" must be a number, got 1000'),
        ({"tokens_per_response": -(10**400)}, '"tokens_per_response" must be a number, got -1000'),
        ({"paired": {"a-b": {"value": 10**400, "low": 0, "high": 0}}}, '"paired.a-b.value" must be a number, got 1000'),
        ({"label_efficiency": [{"questions": 5}]}, '"label_efficiency" has no row with "auroc", "best" or "shrunk"'),
        ({"label_efficiency": [{"auroc": figure(0)}]}, '"label_efficiency[0]" has no "questions"'),
    ],
)
def test_a_report_of_another_shape_is_one_sentence(changes, words):
    with pytest.raises(ValueError) as caught:
        charts(report(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_file_that_is_no_report(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not JSON: "):
        charts(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json is not JSON: "):
        charts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.json is not JSON: "):
        left_out(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"a report is a JSON object, .* got \[1\]"):
        differences(str(path))
    with pytest.raises(FileNotFoundError):
        charts(tmp_path / "none.json")


def test_hostile_names_are_text():
    name = "</svg><script>\u202e\x00$x_\\frac{\n\ud800"
    rows = [{"model": name, "questions": 30, "auroc": figure(0.6)}, {"model": "b", "questions": 30, "auroc": figure(0.7)}]
    data = report(label_efficiency=rows, paired={name: figure(0.1)}, curves={name: curve(0.5, 0.6), "oracle": curve(0.5, 0.6)})
    for chart in charts(data):
        svg = chart.svg()
        ElementTree.fromstring(svg)
        assert "<script" not in svg
        assert "\u202e" not in svg + chart.csv()
        assert "\x00" not in svg + chart.csv()
        (svg + chart.csv()).encode()
