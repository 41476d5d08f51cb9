"""Best-of-N in lm-evaluation-harness: import this and ``--model swift-rm`` and the filter ``best_of_n`` are there.

``python -m swift_rm.integrations.lm_eval`` is the harness's own command line with both; plain ``lm_eval`` has them too where
``--tasks`` names the file of a task that imports this, as examples/lm_eval_homework does.
"""

from __future__ import annotations

from swift_rm.integrations.lm_eval_filter import BestOfNFilter
from swift_rm.integrations.lm_eval_model import SwiftLM
from swift_rm.integrations.scored_text import ScoredText

__all__ = ["BestOfNFilter", "ScoredText", "SwiftLM", "main"]


def main() -> None:
    """Run the harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
