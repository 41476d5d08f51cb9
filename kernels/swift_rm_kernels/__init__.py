"""The arithmetic of the hidden-state reward: gated means over packed tokens."""

from swift_rm_kernels.reference import gated_pool_reference, gated_step_reference

__all__ = ["gated_pool_reference", "gated_step_reference"]
