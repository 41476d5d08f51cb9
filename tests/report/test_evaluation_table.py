from swift_rm.evaluation.evaluate import Evaluation
from swift_rm.evaluation.intervals import Interval
from swift_rm.files.text import counted
from swift_rm.report.evaluation_table import format_table


def point(value):
    return Interval(value, value - 0.05, value + 0.05)


def evaluation(**changes):
    values = {
        "questions": 10,
        "n": 3,
        "accuracy": {"first": point(0.5), "swift_best": point(0.75), "oracle": point(0.9)},
        "paired": {"swift_best-majority": point(-0.1)},
        "auroc_within": {"swift": point(0.8)},
        "auroc_pooled": {},
        "curves": {"oracle": [point(0.5), point(0.8), point(0.9)], "swift_best": [point(0.5), point(0.7), point(0.75)]},
        "brier": point(0.2),
        "ece": point(0.1),
        "unparsable": 2,
        "mixed_questions": 7,
        "tokens_per_response": 17.25,
    }
    return Evaluation(**{**values, **changes})


def test_table():
    assert format_table(evaluation()) == (
        "10 questions x 3 responses of 17.2 tokens\n"
        "7 questions with both right and wrong responses\n"
        "2 responses without an answer\n"
        "\n"
        "rule        accuracy of 3 (%)  AUROC within questions\n"
        "-----------------------------------------------------\n"
        "first       50.0 [45.0, 55.0]                       -\n"
        "swift_best  75.0 [70.0, 80.0]    0.800 [0.750, 0.850]\n"
        "oracle      90.0 [85.0, 95.0]                       -\n"
        "\n"
        "difference                        points\n"
        "----------------------------------------\n"
        "swift_best-majority  -10.0 [-15.0, -5.0]\n"
        "\n"
        "probabilities           Brier score     calibration error\n"
        "---------------------------------------------------------\n"
        "swift          0.200 [0.150, 0.250]  0.100 [0.050, 0.150]\n"
        "\n"
        "accuracy (%) of k     1     2     3\n"
        "-----------------------------------\n"
        "swift_best         50.0  70.0  75.0\n"
        "oracle             50.0  80.0  90.0\n"
    )


def test_blocks_without_data_are_left_out():
    table = format_table(evaluation(paired={}, brier=None, ece=None, n=1, curves={"majority": [point(0.25)]}))
    assert "difference" not in table
    assert "Brier" not in table
    assert table.endswith("accuracy (%) of k     1\n-----------------------\nmajority           25.0\n")


def test_curves_are_shown_at_powers_of_two_and_at_n():
    curve = [point(k / 100) for k in range(1, 7)]
    assert "of k    1    2    4    6\n" in format_table(evaluation(n=6, curves={"majority": curve}))
    assert "of k    1    2    4\n" in format_table(evaluation(n=4, curves={"majority": curve[:4]}))


def test_one_is_not_plural():
    assert [counted(count, "question") for count in (0, 1, 2, 1319)] == [
        "0 questions", "1 question", "2 questions", "1,319 questions",
    ]  # fmt: skip
    curve = {"majority": [point(0.25)]}
    table = format_table(evaluation(questions=1, n=1, mixed_questions=1, unparsable=1, curves=curve))
    assert table.splitlines()[:3] == [
        "1 question x 1 response of 17.2 tokens",
        "1 question with both right and wrong responses",
        "1 response without an answer",
    ]
