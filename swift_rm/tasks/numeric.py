r"""Read numbers out of answers and compare them exactly, as fractions.

Read are ``1,234.50``, ``-3/4``, ``1 1/2``, ``\frac{3}{4}``, ``1e3``, ``3 \times 10^5``, with a currency sign, a percent
sign or a unit in words. Not read, so that they are never mistaken for their first number: ``2\sqrt{3}``, ``2x``,
``5 or 6``, ``2 million``. Sizes are bounded: beyond 400 digits or an exponent of +-400 it is no number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from swift_rm.tasks.answers import TEXT_COMMAND, after_hashes, answer_block, answer_sentence, boxed, final_part

MAX_DIGITS = 400
MAX_EXPONENT = 400
MAX_CHARS = 1_000

_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]}]) (?P<sign>[-+]) \s?+ )?  (?<!\w)
    (?P<mixed> [0-9]++ (?= \s*+\\[dt]?frac | \s++[0-9]++/[0-9] ) \s*+ )?
    (?: \\[dt]?frac \s*+ (?: \{\s*+ (?P<top>-?[0-9]++) \s*+\}\s*+\{\s*+ (?P<bottom>[0-9]++) \s*+\}
                           | (?P<top_digit>[0-9]) (?P<bottom_digit>[0-9]) )
      | (?P<decimal> (?: [0-9]{1,3} (?:,[0-9]{3})++ (?![0-9]) | [0-9]++ ) (?:\.[0-9]++)? | \.[0-9]++ )
        (?: [eE] (?P<exponent>[-+]?[0-9]++)
          | \s*+ (?: \\times | \\cdot | [\u00d7x*] ) \s*+ 10 \s*+ \^ \s*+ \{?+ \s*+ (?P<power>[-+]?[0-9]++) \s*+ \}?+
          | \s*+ / \s*+ (?P<denominator>[0-9]++) )? )
    (?P<percent> \s*+ (?: % | percent\b ) )?
    """,
    re.VERBOSE,
)
_REMOVED = re.compile(
    r"\\[!,]|\\?[$€£¥₹]|\\left|\\right|\*\*|`|\^\s*\{?\s*\\circ\b\s*\}?|\\degree\b|°|(?<=[ckm]m|ft|in)\^\{?[23]\}?"
)
_SPACES = re.compile(r"\\[;: ]|~")
_EQUALS = re.compile(r"(?<![<>!])=|\\approx\b|≈")
# Letters that touch the number may be a product of variables (2xy), unless they are long or a common unit.
_UNIT = r"(?:[^\W\d_]{4,}|cm|mm|km|kg|mg|ml|ft|lbs?|mph|kmh|hrs?|min|am|pm)"
_WORD = r"(?:[^\W\d_]{3,}|[ao][fn]|to|by|in|is|it|at|as|a|cm|mm|km|kg|mg|ml|ft|lb|hr|am|pm)"
_BEFORE = re.compile(r"(?:[^\W\d_]++[ ,:'\u2019-]++)*+")
_AFTER = re.compile(rf"(?:(?:\s*-?{_UNIT}|[\s(-]+{_WORD})(?:[ ,.:;/'()\u2019-]+[^\W\d_]++)*+)?[\s.,;:?)]*+")
_CHANGING = re.compile(
    r"\b(?:negative|minus|not|half|quarters?|thirds?|dozens?|hundreds?|thousands?|[mbtr]+illions?|squared|cubed"
    r"|pi|sqrt|root|plus|or|over|divided)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """An exact number; with ``percent``, ``value`` is what stands before the percent sign."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        """Return one spelling for all equal numbers: a plain decimal where there is one, otherwise a fraction."""
        top, bottom, places = self.value.numerator, self.value.denominator, 0
        while (factor := 10 if bottom % 10 == 0 else 5 if bottom % 5 == 0 else 2) and bottom % factor == 0:
            # One more decimal place takes a 10, or a 5 or 2 alone, out of the denominator.
            top, bottom, places = top * (10 // factor), bottom // factor, places + 1
        if bottom != 1 or places == 0:
            return str(self.value)
        digits = f"{abs(top):0{places + 1}d}"
        return f"{'-' if top < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def read_number(text: str, *, bare: bool = False) -> Number | None:
    """Return the one number that a short answer states, or None; ``bare`` allows no words before it, only a unit."""
    if len(text) > MAX_CHARS:
        return None
    text = _EQUALS.split(_clean(text))[-1].strip()
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    if (bare and before) or not _BEFORE.fullmatch(before) or not _AFTER.fullmatch(after):
        return None
    return None if _CHANGING.search(before) or _CHANGING.search(after) else _value(found[0])


def find_number(response: str) -> Number | None:
    """Return the response's answer as a number: the one in its answer block or box, else the last one, or None."""
    text = final_part(response)
    for find in (answer_block, boxed):
        if (marked := find(text)) is not None:
            return read_number(marked)
    for find in (after_hashes, answer_sentence):
        if (marked := find(text)) is not None and (number := read_number(marked)) is not None:
            return number
    found = list(_NUMBER.finditer(_clean(text)))
    return _value(found[-1]) if found else None


def same_number(reference: Number, answer: Number) -> bool:
    """Tell whether two numbers are equal; where only one has a percent sign, 50 % equals both 50 and 0.5."""
    if reference.value == answer.value:
        return True
    if reference.percent == answer.percent:
        return False
    percent, plain = (reference, answer) if reference.percent else (answer, reference)
    return percent.value / 100 == plain.value


def _clean(text: str) -> str:
    """Take out what surrounds a number without changing it: currency, spacing, degrees, text commands."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",").replace(r"\%", "%")
    return _SPACES.sub(" ", _REMOVED.sub("", TEXT_COMMAND.sub(r" \1 ", text)))


def _value(match: re.Match[str]) -> Number | None:
    """Work out a matched number, or None if it is too large or divides by zero."""
    if len(match[0]) > MAX_DIGITS:
        return None
    exponent = int(match["exponent"] or match["power"] or 0)
    bottom = int(match["bottom"] or match["bottom_digit"] or match["denominator"] or 1)
    if abs(exponent) > MAX_EXPONENT or bottom == 0:
        return None
    top = Fraction((match["top"] or match["top_digit"] or match["decimal"]).replace(",", ""))
    value = int(match["mixed"] or 0) + top * Fraction(10) ** exponent / bottom
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)
