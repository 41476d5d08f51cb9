"""HiPOConfig: what a HiPO run is set by, beside everything that TRL's GRPOConfig has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swift_rm.hipo.trainer.trl_version import check_trl

check_trl()

from trl import GRPOConfig  # noqa: E402

from swift_rm.hipo.response.template import FREE  # noqa: E402
from swift_rm.hipo.rewards.advantages import ADVANTAGES, AdvantageSettings  # noqa: E402
from swift_rm.hipo.rewards.rollout_reward import RewardSettings  # noqa: E402


@dataclass
class HiPOConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of `HiPOTrainer`. TRL's own keep their meaning and defaults, except ``scale_rewards``, which has no effect.

    TRL's ``delta`` and ``epsilon`` are bounds of the clipped ratio; AdaptThink's delta is ``off_bonus`` here.
    ``mask_truncated_completions`` works (a cut response then takes part in its group's means only), and so does
    ``importance_sampling_level="sequence"`` (one ratio for a response, times each token's advantage). Raises ValueError
    for a value that is none, and for options of TRL that HiPO cannot be combined with.
    """

    chat_template_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: dict(FREE),
        metadata={"help": "Arguments of the chat template. By default it leaves the choice of the mode to the model."},
    )
    advantages: str = field(default="hipo", metadata={"help": "Algorithm: 'hipo', 'grpo', 'adaptthink', 'hgpo' or 'step_srpo'."})
    gamma: float = field(
        default=0.3, metadata={"help": "HiPO: how much a response's own reward counts in its choice of the mode."}
    )
    omega: float = field(
        default=0.01,
        metadata={"help": "HiPO: think-off wins a tie, and where think-on is better by at most this share of its mean reward."},
    )
    bias: str = field(
        default="mean",
        metadata={"help": "HiPO: what that adjustment moves: the mode's 'mean', each 'sample', or 'none' for no adjustment."},
    )
    eps: float = field(
        default=0.01,
        metadata={"help": "Added to every standard deviation. As small as omega, so that ties weigh about as much as wins."},
    )
    off_bonus: float = field(default=0.05, metadata={"help": "AdaptThink: reward of think-off itself (the paper's delta)."})
    margin: float = field(default=0.2, metadata={"help": "HGPO: by how much think-on must be better to win."})
    forced_modes: bool = field(
        default=False, metadata={"help": "Whether half of a question's rollouts are made to think and half not to."}
    )
    format_weight: float = field(default=0.2, metadata={"help": "Reward of keeping to the template."})
    reward_source: str = field(
        default="labels",
        metadata={
            "help": "Where accuracy is from: 'labels', 'swift' (probabilities of the reward model), 'both' (labels first)."
        },
    )
    dense: float = field(default=0.0, metadata={"help": "Weight of the probability as an additional term of the reward."})
    length_cap: float | None = field(
        default=None,
        metadata={"help": "Punish think-off answers longer than so many times the mean of what follows </think>."},
    )
    cap_penalty: float = field(default=-2.0, metadata={"help": "The reward of those."})

    def __post_init__(self) -> None:
        if self.num_generations is not None and self.num_generations < 2:
            raise ValueError(
                f"the responses to a question are compared: num_generations must be at least 2, got {self.num_generations}"
            )
        if self.advantages not in ADVANTAGES:
            raise ValueError(f"advantages must be one of {', '.join(ADVANTAGES)}, got {self.advantages!r}")
        _ = self.advantage_settings, self.reward_settings  # which check their values
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(f"HiPO sums rewards first, not multi_objective_aggregation={self.multi_objective_aggregation!r}")
        if self.forced_modes and self.use_vllm:
            raise ValueError("forced_modes=True steers generation token by token, which use_vllm=True cannot: give only one")
        if self.forced_modes and (self.num_generations or 0) % 2:
            raise ValueError(f"forced_modes=True needs an even num_generations, got {self.num_generations}")
        super().__post_init__()

    @property
    def advantage_settings(self) -> AdvantageSettings:
        """The part that the algorithm reads."""
        return AdvantageSettings(
            gamma=self.gamma, omega=self.omega, bias=self.bias, eps=self.eps, delta=self.off_bonus, margin=self.margin  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def reward_settings(self) -> RewardSettings:
        """The part that the reward reads."""
        return RewardSettings(
            format_weight=self.format_weight, source=self.reward_source, dense=self.dense, length_cap=self.length_cap,  # type: ignore[arg-type]
            cap_penalty=self.cap_penalty,
        )  # fmt: skip
