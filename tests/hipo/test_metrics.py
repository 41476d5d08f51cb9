"""The figures of a step, from rows made by hand."""

import pytest

from swift_rm.hipo.response.template import CUT, Parsed
from swift_rm.hipo.trainer.metrics import ModeHistory, Row, step_metrics


def row(mode, judge, think, answer, right=None, *, error=None, question="q", difficulty=None, p=None, reward=0.0, labelled=True):
    text = None if error else "7"
    parsed = Parsed(mode, text, text if mode == "on" else None, text, error, judge, think, answer)
    return Row(question, difficulty, parsed, judge + think + answer, right, reward, p, labelled)


def test_every_figure_by_hand():
    rows = [
        row("on", 4, 20, 2, 1.0, difficulty="hard"),
        row("on", 4, 40, 4, 0.0, difficulty="hard"),
        row("off", 6, 0, 6, 1.0, difficulty="easy"),
        row("off", 6, 0, 7, 1.0, difficulty="easy"),  # 2 x mean(2, 4) = 6 is not passed by 6, but by 7
        row("off", 5, 24, 7, 0.0, error=CUT, difficulty="easy", reward=None),
        row(None, 0, 0, 9, 0.0, error="no mode marker", difficulty="hard", reward=float("nan")),
    ]
    assert step_metrics(rows) == pytest.approx(
        {
            "hipo/accuracy": 3 / 6,
            "hipo/format": 4 / 6,
            "hipo/cut": 1 / 6,
            "hipo/tokens": (26 + 48 + 12 + 13 + 36 + 9) / 6,
            "hipo/tokens_judge": 25 / 6,
            "hipo/tokens_think": (20 + 40 + 24) / 6,
            "hipo/tokens_answer": 35 / 6,
            "hipo/think_rate": 2 / 5,
            "hipo/think_rate/easy": 0.0,
            "hipo/think_rate/hard": 1.0,
            "hipo/accuracy/easy": 2 / 3,
            "hipo/accuracy/hard": 1 / 3,
            "hipo/think_off_answer_tokens": 44 / 3,
            "hipo/think_off_answer_tokens_max": 31,
            "hipo/leak_share": 1 / 2,
            "hipo/skipped": 2,
        }
    )
    parts = step_metrics(rows)
    assert parts["hipo/tokens"] == pytest.approx(sum(parts[f"hipo/tokens_{part}"] for part in ("judge", "think", "answer")))
    assert step_metrics(rows, leak_factor=3.0)["hipo/leak_share"] == 0


def test_what_has_no_data_is_left_out():
    assert step_metrics([]) == {}
    only_on = step_metrics([row("on", 1, 5, 2, None)])
    assert set(only_on) == {
        "hipo/format", "hipo/cut", "hipo/tokens", "hipo/tokens_judge", "hipo/tokens_think", "hipo/tokens_answer",
        "hipo/think_rate", "hipo/skipped",
    }  # fmt: skip
    only_off = step_metrics([row("off", 1, 0, 50, 1.0)])
    assert "hipo/leak_share" not in only_off  # no think-on response to compare with
    assert only_off["hipo/think_off_answer_tokens"] == 50
    assert "hipo/think_rate" not in step_metrics([row(None, 0, 0, 3, 0.0, error="no mode marker")])


def test_few_labels_stand_for_all_well_formed_responses():
    rows = [row("on", 1, 1, 1, 1.0), row("on", 1, 1, 1, 0.0), row("on", 1, 1, 1, None), row("on", 1, 1, 1, None)]
    rows += [row("off", 1, 1, 1, 0.0, error=CUT)] * 4  # which all count as wrong, labelled or not
    assert step_metrics(rows)["hipo/accuracy"] == pytest.approx(0.5 * 4 / 8)
    assert "hipo/accuracy" not in step_metrics([row("on", 1, 1, 1, None), row("off", 1, 1, 1, 0.0, error=CUT)])
    assert step_metrics([row("off", 1, 1, 1, 0.0, error=CUT)])["hipo/accuracy"] == 0


def test_the_reward_model_is_watched_on_labelled_well_formed_responses():
    rows = [
        row("on", 1, 1, 1, 1.0, question="a", p=0.9),
        row("on", 1, 1, 1, 0.0, question="a", p=0.4),
        row("off", 1, 0, 1, 1.0, question="b", p=0.5),
        row("off", 1, 0, 1, 0.0, question="b", p=0.6),  # ranked wrongly
        row("off", 1, 0, 1, 1.0, question="c", p=0.6),  # its question has no wrong one
        row("on", 1, 1, 1, 0.0, question="a", p=1.0, labelled=False),
        row("on", 1, 1, 1, 0.0, question="a", p=1.0, error=CUT),
        row("on", 1, 1, 1, 0.0, question="a", p=float("nan")),
        row("on", 1, 1, 1, None, question="a", p=1.0),
    ]
    found = step_metrics(rows)
    assert found["hipo/drift_auroc"] == pytest.approx((1 + 0) / 2)
    assert found["hipo/hacking_gap"] == pytest.approx(3.0 / 5 - 3 / 5)
    assert step_metrics(rows[4:5])["hipo/hacking_gap"] == pytest.approx(0.6 - 1)
    assert "hipo/drift_auroc" not in step_metrics(rows[4:5])


def test_oscillation_is_the_mean_change_of_the_last_steps():
    history = ModeHistory(steps=3)
    assert history.step({"hipo/think_rate": 0.5}) == {}
    assert history.step({"hipo/think_rate": 0.7}) == pytest.approx({"hipo/think_rate_oscillation": 0.2})
    assert history.step({}) == pytest.approx({"hipo/think_rate_oscillation": 0.2})  # a step in which no response had a mode
    assert history.step({"hipo/think_rate": 0.4}) == pytest.approx({"hipo/think_rate_oscillation": 0.25})
    assert history.step({"hipo/think_rate": 0.4}) == pytest.approx({"hipo/think_rate_oscillation": 0.5 / 3})
    assert history.step({"hipo/think_rate": 1.0}) == pytest.approx({"hipo/think_rate_oscillation": 0.9 / 3})
    with pytest.raises(ValueError, match="at least 1 change of the think rate, got 0"):
        ModeHistory(steps=0)


def test_a_resumed_run_has_its_history_from_the_log():
    log = [{"step": 1, "hipo/think_rate": 0.1}, {"step": 2, "loss": 1.0}, {"step": 3, "hipo/think_rate": 0.3}]
    assert ModeHistory.from_log(log).step({"hipo/think_rate": 0.8}) == pytest.approx({"hipo/think_rate_oscillation": 0.35})
