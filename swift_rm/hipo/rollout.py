"""The path that users are told of; the code is in :mod:`swift_rm.hipo.rollouts.swift_rollouts`."""

from swift_rm.hipo.rollouts.swift_rollouts import SCORERS, Rollout, Scorer, SwiftRollouts

__all__ = ["SCORERS", "Rollout", "Scorer", "SwiftRollouts"]
