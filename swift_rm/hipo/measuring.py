"""The path that users are told of; the code is in :mod:`swift_rm.hipo.trainer.policy_evaluation`."""

from swift_rm.hipo.trainer.policy_evaluation import measure

__all__ = ["measure"]
