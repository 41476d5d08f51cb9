"""The path that users are told of; the code is in :mod:`swift_rm.hipo.trainer.metrics`."""

from swift_rm.hipo.trainer.metrics import LEAK_FACTOR, Row, step_metrics

__all__ = ["LEAK_FACTOR", "Row", "step_metrics"]
