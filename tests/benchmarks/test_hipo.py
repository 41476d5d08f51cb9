"""The HiPO benchmark: its figures by hand, and one method of each kind run whole at tiny sizes."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.hipo.figures import Figures
from benchmarks.hipo.methods import METHODS, Sizes
from benchmarks.hipo.recipe import run_seed


def measured(accuracy: list[float], tokens: list[int], mode: list[int | None], answer: list[int] | None = None) -> dict:
    return {
        "question": ["a", "a", "b", "b"], "difficulty": ["1 step", "1 step", "2 steps", "2 steps"], "accuracy": accuracy,
        "tokens": tokens, "judge_tokens": [1] * 4, "answer_tokens": answer or [5] * 4, "mode": mode,
        "formatted": [one is not None for one in mode],
    }  # fmt: skip


def seed() -> dict:
    return {
        "think_on": measured([1, 0, 1, 0], [20, 20, 40, 40], [1, 1, 1, 1]),
        "cold_start": measured([1, 0, 1, 0], [10, 10, 40, 40], [0, 0, 1, 1]),
        "hipo": measured([1, 1, 1, 1], [10, 10, 40, 20], [0, 0, 1, None], [5, 11, 5, 5]),
        "half": measured([1, 1, 1, 0], [10, 10, 40, 40], [0, 0, 1, 1]),
        "better": measured([1, 1, 1, 1], [10, 10, 30, 20], [0, 0, 1, 1]),
    }


def test_the_figures_are_means_over_responses_questions_and_seeds():
    figures = Figures([seed(), seed()])
    table = figures.table()
    assert table["think_on"]["accuracy"]["value"] == 0.5 and table["think_on"]["tokens"]["value"] == 30
    assert table["hipo"]["think_rate"]["value"] == 0.5  # the response without a mode is left out
    assert table["hipo"]["by_difficulty"]["2 steps"]["tokens"]["value"] == 30
    assert table["hipo"]["leak_share"]["value"] == 0.5  # 11 is more than twice the 5 after thinking
    against = figures.against()["hipo"]
    assert against["accuracy"]["value"] == 0.5 and against["tokens_saved"]["value"] == pytest.approx(1 - 20 / 30, abs=1e-4)
    assert against["thinking_saved"]["value"] == 0.5
    assert figures.gain_share("half")["value"] == 0.5
    assert figures.dominating("hipo") == ["better"] and figures.dominating("better") == []
    assert figures.rise("hipo")["value"] == 1.0


def test_a_method_that_a_seed_lacks_is_left_out():
    less = seed()
    del less["half"]
    assert "half" not in Figures([seed(), less]).methods


def test_the_recipe_runs_and_goes_on_where_it_was(tmp_path):
    sizes = dataclasses.replace(
        Sizes.small(), questions=30, hard_questions=6, steps=1, prompts=2, test_questions=4, reward_questions=30, epochs=3,
        methods=("think_on", "hipo_swift_refreshed"),
    )  # fmt: skip
    whole = run_seed(0, sizes, tmp_path)
    first = whole["methods"]
    assert set(whole["heads"]) == {"the mode it chooses"}
    assert list(first) == ["think_on", "hipo_swift_refreshed"] and len(first["think_on"]["accuracy"]) == 8
    assert len(first["hipo_swift_refreshed"]["curves"]) == 1
    assert run_seed(0, sizes, tmp_path) == whole


def test_every_method_has_a_name_of_its_own():
    assert len({method.name for method in METHODS}) == len(METHODS)
