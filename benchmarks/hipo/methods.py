"""What `hipo` compares: each method's start, its algorithm, and where its rewards come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Start = Literal["base", "on", "both", "unjudged"]


@dataclass(frozen=True)
class Method:
    """One row of the table: a start, and what RL makes of it (None: it is measured as it is).

    Starts: "base" has had no cold start, "on" one of think-on responses without a judge block, "both" one of both modes,
    "unjudged" the same without judge blocks. ``settings`` are those of `HiPOConfig`. ``scorer`` makes the reward that of the
    hidden states: "refreshed" and "stale" read the policy's own, with and without labels of 5 % of the questions to learn
    on from, "frozen" those of the start. The reward head is trained on responses of the cold start in the mode that it chooses;
    with ``both_modes``, on as many responses in each mode, so that it has seen hard questions answered at once.
    """

    name: str
    start: Start
    settings: Mapping[str, Any] | None = None
    scorer: Literal["refreshed", "stale", "frozen"] | None = None
    both_modes: bool = False

    @property
    def judged(self) -> bool:
        """Tell whether its responses have a judge block."""
        return self.start == "both"


@dataclass(frozen=True)
class Sizes:
    """How much is sampled, trained and measured in one seed."""

    questions: int = 400  # to make the cold start from, and to train on, of the difficulty that is tested
    hard_questions: int = 200  # beside them: few of the others need thinking
    tries: int = 8  # responses to each in each mode
    epochs: int = 4  # of the cold start
    reward_questions: int = 150  # of those, the ones whose labels the reward head is trained on, before RL
    steps: int = 40
    prompts: int = 16  # a step
    rollouts: int = 8  # a prompt
    updates: int = 2  # optimiser steps on each step's rollouts
    learning_rate: float = 4e-4
    test_questions: int = 250
    test_tries: int = 4
    methods: tuple[str, ...] = field(default=())  # all

    @classmethod
    def small(cls) -> Sizes:
        """Return sizes that only show that it runs."""
        return cls(
            questions=40, hard_questions=20, tries=4, epochs=2, reward_questions=40, steps=2, prompts=4, rollouts=4,
            test_questions=20, test_tries=2, methods=("think_on", "cold_start", "grpo", "hipo", "hipo_swift_refreshed"),
        )  # fmt: skip


def _hipo(name: str, start: Start = "both", scorer: Any = None, both_modes: bool = False, **settings: Any) -> Method:
    return Method(name, start, {"advantages": "hipo", **settings}, scorer, both_modes)


MAIN = (
    Method("think_on", "on"),
    Method("cold_start", "both"),
    Method("think_on_grpo", "on", {"advantages": "grpo"}),
    Method("grpo", "both", {"advantages": "grpo"}),
    Method("adaptthink", "both", {"advantages": "adaptthink", "forced_modes": True}),
    Method("hgpo", "both", {"advantages": "hgpo", "forced_modes": True}),
    _hipo("hipo"),
)
ABLATIONS = (
    _hipo("hipo_no_bias", bias="none"),
    _hipo("hipo_gamma_0", gamma=0.0),
    _hipo("hipo_no_judge", "unjudged"),
    _hipo("hipo_no_cold_start", "base"),
    _hipo("hipo_forced_modes", forced_modes=True),
)
UNLABELLED = (
    _hipo("hipo_swift_refreshed", scorer="refreshed"),
    _hipo("hipo_swift_stale", scorer="stale"),
    _hipo("hipo_swift_frozen", scorer="frozen"),
    _hipo("hipo_swift_refreshed_both_modes", scorer="refreshed", both_modes=True),
    _hipo("hipo_swift_frozen_both_modes", scorer="frozen", both_modes=True),
)
METHODS = (*MAIN, *ABLATIONS, *UNLABELLED)
