"""The path that users are told of; the code is in :mod:`swift_rm.scoring.external`."""

from swift_rm.scoring.external import SequenceClassificationReward

__all__ = ["SequenceClassificationReward"]
