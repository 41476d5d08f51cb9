"""The path that users are told of; the code is in :mod:`swift_rm.decoding.pruning`."""

from swift_rm.decoding.pruning import PRUNING_RULES as RULES
from swift_rm.decoding.pruning import Confidence, Halving, Prune, check_guide, get_prune

__all__ = ["RULES", "Confidence", "Halving", "Prune", "check_guide", "get_prune"]
