"""What `swift-rm features` does: describe a feature store, or say how large one will be."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from swift_rm.cli.arguments import Commands, add_layers, add_store, command

if TYPE_CHECKING:
    from swift_rm.cli.output import Result

FACTS = ("questions", "responses", "right", "wrong", "ungraded", "tokens", "rows")


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = command(commands, "features", "describe a feature store, or say how large one will be")
    parser.add_argument("folder", nargs="?", help="what `sample --features` wrote")
    parser.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    parser.add_argument("--model", help="for an estimate instead: folder or Hub id (only its configuration is read)")
    parser.add_argument("--revision", help="revision of the language model on the Hub")
    parser.add_argument("--questions", type=int, default=1000, help="questions to be sampled (default 1,000)")
    parser.add_argument("-n", type=int, default=8, help="responses per question (default 8)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a response (default 1,024)")
    add_layers(parser)
    add_store(parser)


def run(args: Namespace) -> Result:
    """Describe the store in a folder, or estimate that of a model."""
    if (args.folder is None) == (args.model is None):
        raise ValueError("name either the folder of a feature store or, for an estimate, --model")
    return _estimate(args) if args.folder is None else _describe(args)


def _estimate(args: Namespace) -> Result:
    from swift_rm.cli.loading import parse_layers
    from swift_rm.cli.output import Result, listing
    from swift_rm.features.estimate import FeatureEstimate, shape_of
    from swift_rm.reward.config import resolve_layer

    shape = shape_of(args.model, args.revision)
    layers = {resolve_layer(layer, shape.layers) for layer in parse_layers(args.layers, shape.layers)}
    estimate = FeatureEstimate(
        args.questions, args.n, args.tokens, len(layers), shape.hidden_size, args.features_dtype, args.stride,
        len(set(args.positions)),
    )  # fmt: skip
    figures = {
        "bytes": estimate.bytes,
        "bytes_per_token": estimate.bytes_per_token,
        "free_here": shutil.disk_usage(".").free,
    }
    smaller = {way: less.bytes for way, less in estimate.smaller().items()}
    return Result(f"{estimate.advice()}\n{listing(figures)}", {**figures, "smaller": smaller})


def _describe(args: Namespace) -> Result:
    from swift_rm.cli.output import Result, listing
    from swift_rm.features.estimate import readable
    from swift_rm.features.index import ShardEntry, read_index
    from swift_rm.features.shard_file import broken, read_head

    folder = Path(args.folder)
    index = read_index(folder)

    def reason(entry: ShardEntry) -> str | None:
        if args.verify:
            return broken(folder / entry.name, entry.checksums)
        try:
            read_head(folder / entry.name, entry.checksums)
        except ValueError as error:
            return str(error)
        return None

    watched = tqdm(index.shards, desc="checking shards", unit="shard", disable=not sys.stderr.isatty(), delay=1)
    bad = {entry.name: found for entry in watched if (found := reason(entry))}
    data: dict[str, Any] = {
        "folder": str(folder),
        "bytes": sum(entry.checksums.bytes for entry in index.shards),
        "shards": len(index.shards),
        **{fact: sum(getattr(entry, fact) for entry in index.shards) for fact in FACTS},
        "key": index.key.to_dict(),
        "broken": bad,
        "verified": bool(args.verify),
    }
    shown = {**data, "bytes": f"{data['bytes']:,} ({readable(data['bytes'])})", **data["key"]}
    del shown["key"], shown["broken"]
    lines = [listing(shown), *(f"broken: {name}: {found}" for name, found in bad.items())]
    if bad:
        lines.append("run the command that made the store again: it redoes the broken shards only")
    return Result("\n".join(lines), data, ok=not bad)
