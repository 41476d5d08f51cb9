"""Pages, the token view and text tables: what people read of an evaluation or of a response.

The charts of an evaluation can be imported from here; matplotlib is needed only once one is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_rm.files.lazy_exports import lazy_exports

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

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "plots.evaluation_charts"))
