"""The token view's colours: 21 of rewards, 5 shades of gates, each in light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from swift_rm.report.html_page import DARK_INK, LIGHT_INK

REWARD_STEPS, GATE_STEPS = 21, 5

# Red, green and blue of the lowest reward, of 0 and of the highest, and of the ink: orange and blue are told apart by
# colour-blind eyes too, and each mode's ink can be read on all of its colours.
LIGHT = ((240, 140, 45), (222, 222, 218), (90, 165, 225)), LIGHT_INK
DARK = ((176, 80, 0), (68, 68, 72), (18, 98, 172)), DARK_INK
SHADES = (0.08, 0.35, 0.6, 0.8, 1.0)  # opacity by gate; even the palest keeps a hint of its colour


def colour(step: int, palette: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Return red, green and blue of one of the 21 colours, from the lowest reward (0) to the highest (20)."""
    middle = REWARD_STEPS // 2
    end = palette[0] if step < middle else palette[2]
    share = abs(step - middle) / middle
    red, green, blue = (round(zero + share * (full - zero)) for zero, full in zip(palette[1], end, strict=True))
    return red, green, blue


def palette_style() -> str:
    """Return the CSS of the colours r0 ... r20 and the shades g0 ... g4, in light and dark: what paints ``.t``."""

    def mode(palette: Sequence[Sequence[int]]) -> str:
        return "\n".join(f".r{k}{{--c:{' '.join(map(str, colour(k, palette)))}}}" for k in range(REWARD_STEPS))

    shades = "\n".join(f".g{k}{{--a:{opacity}}}" for k, opacity in enumerate(SHADES))
    return f"{shades}\n{mode(LIGHT[0])}\n@media (prefers-color-scheme: dark){{\n{mode(DARK[0])}\n}}"
