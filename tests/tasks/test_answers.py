"""Finding the final answer in a response, as words and as an exact number."""

import time
from fractions import Fraction

import pytest

from swift_rm.tasks.answers import boxed, find_answer, normalise, same_text
from swift_rm.tasks.numeric import find_number, read_number, same_number


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>4</answer> no, <answer> 5 </answer>", "5"),
        ("so <answer>7", "7"),
        ("<answer>5</answer>, as I said in <answer>", "5"),
        (r"<answer>It is \boxed{\frac{1}{2}}.</answer>", r"\frac{1}{2}"),
        (r"first \boxed{1}, then $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{3} and an unfinished \boxed{4", "3"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"so $\boxed 9$", "9"),
        (r"<answer>1</answer> but \boxed{2}", "1"),
        ("48 / 2 = 24\n48 + 24 = 72\n#### 72", "72"),
        ("#### 72\n\nQuestion: another one", "72"),
        ("#### Step 1\nadd them\n#### Step 2\nThe answer is **12**.", "12"),
        ("**Answer:** Paris. It is in France.", "Paris"),
        ("The final answer is: $x^2$", "x^2"),
        ("I thought the answer is 3.\nBut no, the answer is 3.14. Done", "3.14"),
        ("<think>the answer is 1, \\boxed{1}</think>The answer is 2", "2"),
        ("<think>\\boxed{1}</think>I give up.\nSorry.", None),
        ("Paris", "Paris"),
        ("A longer text\nof two lines", None),
        ("word " * 40, None),
        ("<answer></answer>", None),
        (r"\boxed{ }", None),
        ("", None),
    ],
)
def test_find_answer(response: str, answer: str | None) -> None:
    assert find_answer(response) == answer


def test_words_are_compared_without_mark_up() -> None:
    assert same_text("Evelyn", r" $\text{evelyn}$. ")
    assert same_text("New  York", "new york")
    assert same_text("B", "(B)") and same_text(r"\text{(B)}", "**B**")
    assert not same_text("B", "C") and not same_text("Evelyn", "Evelyn and Ann")
    assert normalise(r"\textbf{Not   Enough} information.") == "not enough information"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("1,234.50", Fraction("1234.5")),
        ("-3/4", Fraction(-3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1e3", 1000),
        (r"3 \times 10^{5}", 300_000),
        (r"\$32,\!348", 32_348),
        ("\N{MINUS SIGN}5", -5),
        (".50", Fraction(1, 2)),
        ("$18 per day", 18),
        ("5 cm^2", 5),
        (r"5.4 \text{ cents}", Fraction("5.4")),
        (r"90^\circ", 90),
        ("x = 5", 5),
        ("48 + 24 = 72 clips", 72),
        ("The total is 72 dollars.", 72),
    ],
)
def test_read_number(text: str, value: int | Fraction) -> None:
    number = read_number(text)
    assert number is not None and number.value == value


@pytest.mark.parametrize(
    "text",
    [
        r"2\sqrt{3}",
        r"2 \pi",
        "2x",
        "2xy",
        "2 i",
        "2(3)",
        "5 or 6",
        "2 million",
        "negative 5",
        "10-3",
        "(3, 4)",
        "5^2",
        "5!",
        "2516_8",
        "1/0",
        "x2",
        "",
        "five",
        "1e999999999",
        "-1e-999999999",
        "10 x 10^99999999999",
        "9" * 401,
        "1,2,3",
    ],
)
def test_what_is_no_single_number_is_not_read_as_one(text: str) -> None:
    assert read_number(text) is None


def test_units_may_follow_a_bare_number_but_no_words_may_precede_it() -> None:
    assert read_number("72 clips", bare=True) is not None
    assert read_number("Room 72", bare=True) is None and read_number("Room 72") is not None


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("48 + 24 = 72\n#### 72", "72"),
        ("She has 3 cats and so 12 legs.", "12"),
        (r"It is \boxed{1{,}000} m, not 5", "1000"),
        (r"\boxed{2\sqrt{3}} is about 3.46", None),
        ("<answer>none</answer> 5", None),
        ("The answer is that she sold 48 and then 72", "72"),
        ("<think>7</think>so 8", "8"),
        ("1e999999999", None),
        ("no number", None),
    ],
)
def test_find_number(response: str, number: str | None) -> None:
    found = find_number(response)
    assert (None if found is None else str(found)) == number


def test_equal_numbers_are_spelt_alike() -> None:
    for texts in (["0.5", "1/2", ".50", r"\frac{2}{4}"], ["1000", "1,000.0", "1e3"], ["2/3", "4/6"], ["-0.025", "-1/40"]):
        assert {str(read_number(text)) for text in texts} == {str(read_number(texts[0]))}
    assert [str(read_number(text)) for text in ("1/2", "4/6", "-1/40", "1e3", "-0")] == ["0.5", "2/3", "-0.025", "1000", "0"]


def test_percent_signs_on_one_side_only_are_forgiven() -> None:
    half, fifty, percent, other = (read_number(text) for text in ("0.5", "50", "50%", "0.5%"))
    assert half and fifty and percent and other
    assert same_number(half, percent) and same_number(percent, half) and same_number(fifty, percent)
    assert not same_number(half, fifty) and not same_number(percent, other)


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "}",
        "\\boxed{",
        "<answer>",
        "</answer>",
        "####",
        "answer is ",
        "answer" + " " * 50,
        "9",
        "1,",
        "9/",
        "-",
        "\\",
        "*",
        "\\text{",
        "$",
        "\\frac{1}{",
        "1 ",
        "1.",
        ".",
        "* ",
        "e1",
        "<think>",
        "</think>",
        "(",
        "\n",
    ],
)
def test_ten_megabytes_of_anything_take_no_time(unit: str) -> None:
    response = unit * (10_000_000 // len(unit))
    start = time.monotonic()
    find_answer(response), find_number(response), boxed(response[-50_000:])
    assert time.monotonic() - start < 2
