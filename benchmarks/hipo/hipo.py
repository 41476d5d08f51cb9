"""HiPO on the homework world: a tiny reasoner learns when to think, from labels or from the hidden-state reward.

The embedded model that answers at once as well as it thinks (`tiny-thinker`) samples both modes; cold starts are made of
that, and every method trains one of them. Each seed draws the questions, the samples and the order of training; all are
measured on the same unseen questions. Seeds run side by side, one thread each, and go on where they were stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.hipo.methods import METHODS, UNLABELLED, Sizes
from benchmarks.recorder import RESULTS, finish, parser_of
from benchmarks.text_table import Table, shown


def main() -> None:
    """Run the seeds, put them together, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=3, help="seeds that run side by side (default 3)")
    parser.add_argument("--cache", type=Path, help="folder to keep what is done in, and to go on from")
    args = parser.parse_args()
    seeds = 1 if args.quick else args.seeds
    sizes = Sizes.small() if args.quick else Sizes()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        jobs = [(seed, sizes, folder / f"seed-{seed}") for seed in range(seeds)]
        os.environ["OMP_NUM_THREADS"] = "1"
        with multiprocessing.get_context("spawn").Pool(min(args.at_once, seeds), maxtasksperchild=1) as pool:
            seeds_found = pool.starmap(run, jobs, chunksize=1)
    found = [one["methods"] for one in seeds_found]
    result = {**put_together(found), "reward_heads_auroc": [one["heads"] for one in seeds_found]}
    result["sizes"] = vars(sizes) | {"methods": [method.name for method in METHODS if method.name in found[0]]}
    finish("hipo", args, result)


def run(seed: int, sizes: Sizes, folder: Path) -> dict[str, dict[str, Any]]:
    """Run one seed in a process of its own."""
    from benchmarks.hipo.recipe import run_seed

    return run_seed(seed, sizes, folder)


def put_together(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all seeds."""
    from benchmarks.hipo.figures import Figures

    figures = Figures(found)
    methods = figures.table()
    unlabelled = [method.name for method in UNLABELLED if method.name in figures.methods]
    overhead = RESULTS / "hipo_rollouts.json"
    return {
        "methods": table(methods),
        "against_think_on": figures.against(),
        "dominating_hipo": figures.dominating("hipo"),
        "think_rate_rise": figures.rise("hipo"),
        "leak_share": methods["hipo"]["leak_share"],
        "label_free_gain_share": {name: figures.gain_share(name) for name in unlabelled},
        "rollout_overhead": json.loads(overhead.read_text())["rollout_overhead"] if overhead.exists() else None,
        "curves": Printed({name: [one[name]["curves"] for one in found] for name in (*unlabelled, "hipo")}, "in the result file"),
        "seconds": Printed({name: [one[name]["seconds"] for one in found] for name in figures.methods}, "in the result file"),
        "seconds_of_seed": [round(sum(one["seconds"] for one in of_seed.values()), 1) for of_seed in found],
    }


class Printed(dict[str, Any]):
    """A JSON-ready mapping that prints as a text of its own."""

    def __init__(self, values: dict[str, Any], text: str) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        """Return the text."""
        return self._text


def table(methods: dict[str, Any]) -> Printed:
    """Return the methods' figures, which print as a table."""
    kinds = list(next(iter(methods.values()))["by_difficulty"])
    cells = [
        ["method", "accuracy", "tokens", "think rate", *(f"{name}, {kind}" for name in ("thinks", "right") for kind in kinds)]
    ]
    for name, figures in methods.items():
        by_kind = [figures["by_difficulty"][kind][of] for of in ("think_rate", "accuracy") for kind in kinds]
        tokens = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**figures["tokens"])
        share = [f"{100 * one['value']:.0f}" if one["value"] is not None else "-" for one in by_kind]
        cells.append([name, shown(figures["accuracy"]), tokens, shown(figures["think_rate"]), *share])
    return Printed(methods, str(Table([], cells)))


if __name__ == "__main__":
    main()
