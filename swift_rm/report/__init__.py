"""Pages, the token view and text tables: what people read of an evaluation or of a response.

The charts of an evaluation can be imported from here; matplotlib is needed only once one is drawn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_rm.report.plots.evaluation_charts import (
        CHARTS,
        accuracy_by_n,
        accuracy_by_tokens,
        auroc_by_layer,
        calibration,
        charts,
        differences,
        label_efficiency,
        left_out,
    )

__all__ = [
    "CHARTS",
    "accuracy_by_n",
    "accuracy_by_tokens",
    "auroc_by_layer",
    "calibration",
    "charts",
    "differences",
    "label_efficiency",
    "left_out",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("swift_rm.report.plots.evaluation_charts"), name)
    raise AttributeError(f"module 'swift_rm.report' has no attribute {name!r}")
