"""The log, the sentences, the charts and the page of a run, from a trainer's state made by hand."""

import json
import math
import re

import pytest

from swift_rm.hipo.report.charts import PLANS, charts, left_out
from swift_rm.hipo.report.run_findings import alarms, ends_table, sentences
from swift_rm.hipo.report.run_log import Points, run_log
from swift_rm.hipo.report.run_page import render_run
from swift_rm.hipo.report.step_picture import Axis, Line, running_means, step_picture, thinned, window


def entry(step, **changes):
    """One logged step of a run of 20, whose accuracy and think rate change by 1 % a step, and tokens by 2."""
    figures = {
        "hipo/accuracy": 0.5 + step / 100,
        "hipo/tokens": 100.0 - 2 * step,
        "hipo/think_rate": 0.8 - step / 100,
        "hipo/think_rate/10 steps": 0.9,
        "hipo/think_rate/2 steps": 0.1,
        "hipo/leak_share": 0.01,
        "hipo/hacking_gap": 0.02,
    }
    return {"step": step, "epoch": 0.1, **figures, **changes}


def write(folder, log):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": log}))
    return folder


@pytest.fixture
def history(tmp_path):
    return lambda **changes: run_log(write(tmp_path / "run", [entry(step, **changes) for step in range(1, 21)]))


def test_the_log_is_read_as_logged_last_and_without_what_is_no_number(tmp_path):
    log = [
        entry(2),
        entry(1, **{"hipo/accuracy": None, "hipo/tokens": math.nan, "hipo/format": True, "kl": 10**400}),
        entry(2, **{"hipo/accuracy": 0.9}),
        {"step": 2, "train_runtime": 3.0},
        {"hipo/accuracy": 1.0},
        {"step": "3", "hipo/accuracy": 1},
        {"step": 10**400, "hipo/accuracy": 1},
    ]
    found = run_log(write(tmp_path, log))
    assert found.series["hipo/accuracy"] == Points((2,), (0.9,))
    assert found.series["hipo/tokens"] == Points((2,), (96.0,))
    assert found.series["hipo/think_rate"].steps == (1, 2)
    assert "hipo/format" not in found.series and "kl" not in found.series
    assert found.steps == (1, 2, 2)
    assert found.levels("hipo/think_rate") == ["2 steps", "10 steps"]


def test_difficulties_that_were_never_meant_as_such(history):
    """Digits that are no numbers sort, and what drives a terminal or reorders text is shown by its code point."""
    names = ["\u00b2", "3", "\u0663", "", "\x1b[31m", "\u202ex", "\ud800"]
    found = history(**{f"hipo/think_rate/{name}": 0.5 for name in names})
    assert sorted(found.levels("hipo/think_rate")) == sorted([*names, "10 steps", "2 steps"])
    said = "".join(sentences(found))
    assert "\u2039U+001B\u203a[31m" in said and not set("\x1b\u202e\ud800") & set(said)


@pytest.mark.parametrize(("values", "bottom"), [((0.5, 1.0), 0.0), ((-1e-9, -2e-9), -2.05e-9)])
def test_an_axis_from_zero_does_not_turn_over_for_what_is_below(values, bottom):
    axes = step_picture([Line("KL", Points((1, 2), values), values)], Axis("KL", from_zero=True)).axes[0]
    low, high = axes.get_ylim()
    assert low == pytest.approx(bottom, abs=1e-12) and low <= min(values) < max(values) <= high


def test_the_last_checkpoint_stands_in_for_a_run_that_goes_on(tmp_path):
    for step in (900, 1000):
        write(tmp_path / f"checkpoint-{step}", [entry(step)])
    (tmp_path / "checkpoint-2000").mkdir()  # of which nothing was written yet
    write(tmp_path / "checkpoint-x", [entry(5)])
    assert run_log(tmp_path).source == tmp_path / "checkpoint-1000" / "trainer_state.json"
    assert run_log(tmp_path / "checkpoint-900" / "trainer_state.json").steps == (900, 900, 1)
    write(tmp_path, [entry(1)])
    assert run_log(tmp_path).source == tmp_path / "checkpoint-1000" / "trainer_state.json"  # went on from step 1, and was stopped
    state = tmp_path / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 1', '"global_step": 1000'))
    assert run_log(tmp_path).source == state


def test_what_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run at .*nowhere"):
        run_log(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no trainer_state.json, nor does a checkpoint"):
        run_log(tmp_path)
    state = tmp_path / "trainer_state.json"
    for text, said in [
        ('{"log_history": [', "is damaged: it is not JSON"),
        ("[" * 100_000, "is damaged"),
        ("[]", 'no "log_history"'),
        ('{"log_history": [1]}', 'no "log_history"'),
        ('{"log_history": [{"step": 1, "loss": 2}]}', r"no figures of a HiPO run .* in its 1 log entries"),
    ]:
        state.write_text(text)
        with pytest.raises(ValueError, match=said) as refused:
            run_log(tmp_path)
        assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
    state.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="is damaged"):
        run_log(tmp_path)


def test_the_sentences_are_the_means_of_the_first_and_last_tenth(history):
    first, levels = sentences(history())
    # of 20 steps the first two and the last two: accuracy 51.5 and 69.5, tokens 97 and 61, think rate 78.5 and 60.5
    assert first == (
        "From the first tenth to the last of 20 logged steps (1 to 20): accuracy 51.5 to 69.5 %; "
        "tokens a response 97.0 to 61.0 (\u221237 %); think-on 78.5 to 60.5 % of the responses."
    )
    assert levels == "Think-on by difficulty in the last tenth: 2 steps 10 %, 10 steps 90 %."
    assert sentences(history(**{"hipo/skipped": 3}))[2].endswith("took no part: 3 a step.")
    assert ends_table(history())[1] == ("tokens a response", "97.0", "61.0", "\u221236.0")


def test_one_step_is_said_to_be_one(tmp_path):
    found = run_log(write(tmp_path, [entry(7)]))
    assert sentences(found)[0].startswith("The log has one step only (7), so nothing can be said of changes: accuracy 57.0 %;")
    assert all("nan" not in chart.svg() for chart in charts(found))


def test_alarms_go_off_above_their_thresholds_only(history):
    quiet = "No alarm: looked for reasoning in think-off answers, collapse into one mode, a reward model that is gamed."
    assert alarms(history()) == [quiet]
    assert alarms(history(**{"hipo/leak_share": 0.05, "hipo/think_rate": 0.02})) == [quiet]
    assert alarms(history(**{"hipo/leak_share": 0.051}))[0].startswith("Reasoning leaks: around step 2, 5.1 % of the think-off")
    off = "The choice collapsed: in the last tenth 1.0 % of the responses think, so that nearly all are think-off"
    assert alarms(history(**{"hipo/think_rate": 0.01}))[0].startswith(off)
    assert "nearly all are think-on" in alarms(history(**{"hipo/think_rate": 0.99}))[0]


def test_the_alarm_of_a_gamed_reward_model_is_about_growth(tmp_path):
    for last, gamed in ((0.3, False), (0.31, True)):  # from -0.2 + 0.4 = 0.2
        log = [entry(step, **{"hipo/hacking_gap": 0.2 if step < 10 else last}) for step in range(1, 21)]
        found = alarms(run_log(write(tmp_path, log)))
        assert found[0].startswith("The reward model is gamed") is gamed
    assert "from +20.0 to +31.0 points" in found[0]
    bare = run_log(write(tmp_path, [{"step": 1, "hipo/format": 1.0}]))
    assert alarms(bare) == ["Nothing that alarms watch was logged."]
    assert sentences(bare) == []


def test_thinning_and_smoothing_by_hand():
    points, size = thinned(Points(range(1, 8), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 20.0]), most=3)
    assert (size, points.steps, points.values) == (3, [3, 6, 7], [3.0, 9.0, 20.0])
    assert thinned(Points([4], [1.0])) == (Points([4], [1.0]), 1)
    assert [window(count) for count in (1, 5, 12, 18, 30, 54, 120)] == [1, 1, 3, 3, 5, 9, 9]
    values = [0.0, 3.0, 6.0] * 4  # a window of 3
    assert running_means(values)[:3] == pytest.approx([1.5, 3.0, 3.0])
    assert running_means(values)[-1] == pytest.approx(4.5)
    assert running_means([1.0, 2.0]) == [1.0, 2.0]


def test_charts_have_what_is_drawn_and_the_others_are_named(history):
    pytest.importorskip("matplotlib")
    drawn = {chart.name: chart for chart in charts(history())}
    assert list(drawn) == ["accuracy", "tokens", "think_rate", "leak", "hacking_gap"]
    missing = left_out(history())
    assert len(missing) + len(drawn) == len(PLANS)
    assert 'No chart "KL divergence from the reference": the log has no kl; TRL logs it where beta is above 0.' in missing
    rate = drawn["think_rate"]
    assert rate.alt.startswith("First tenth of the steps to the last: all 78.5 to 60.5 %; 2 steps 10.0 to 10.0 %; 10 steps")
    assert "lines are running means of 3 of them" in rate.alt
    assert len(rate.rows) == 3 * 20
    assert rate.rows[0] == ("all", 1, 0.79, pytest.approx((0.79 + 0.78) / 2))
    assert [line.partition(":")[0] for line in rate.key()] == ["all", "2 steps", "10 steps"]


def test_more_difficulties_than_looks_are_said_to_be_left_out(history):
    pytest.importorskip("matplotlib")
    many = {f"hipo/think_rate/{'x' * 30}{level}{'y' * 30}": 0.5 for level in range(10)}
    chart = next(chart for chart in charts(history(**many)) if chart.name == "think_rate")
    assert len({row[0] for row in chart.rows}) <= 7 and len(chart.key()) == 7
    assert chart.alt.endswith("Drawn are the first 6 of 12 difficulties.")


def test_the_page_is_whole_escaped_and_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    evil = "hipo/think_rate/<script>alert(1)</script>\u202e$x_1"
    folder = write(tmp_path / "a<b>&\u202e", [entry(step, **{evil: 0.3, "kl": 0.1}) for step in range(1, 31)])
    page = render_run(folder, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page == render_run(folder)
    assert "<script" not in page and "\u202e" not in page and "a<b>" not in page
    assert "&lt;script&gt;" in page and "\u2039U+202E\u203a" in page and "a&lt;b&gt;&amp;" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("<figure") == 6
    assert str(tmp_path) not in page
