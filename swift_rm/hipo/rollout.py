"""The path that users are told of; the code is in :mod:`swift_rm.hipo.rollouts.rollout`."""

from swift_rm.hipo.rollouts.rollout import SCORERS, Rollout, Scorer, SwiftRollouts

__all__ = ["SCORERS", "Rollout", "Scorer", "SwiftRollouts"]
