"""The arithmetic of the hidden-state reward: gated means over packed tokens."""

from swift_rm_kernels.gated_pool import gated_pool
from swift_rm_kernels.gated_pool_heads import gated_pool_heads, head_scores, pool_heads
from swift_rm_kernels.gated_step import gated_step
from swift_rm_kernels.reference import gated_pool_reference, gated_step_reference, new_running, running_rewards
from swift_rm_kernels.token_scores import token_scores

__all__ = [
    "gated_pool",
    "gated_pool_heads",
    "gated_pool_reference",
    "gated_step",
    "gated_step_reference",
    "head_scores",
    "new_running",
    "pool_heads",
    "running_rewards",
    "token_scores",
]
