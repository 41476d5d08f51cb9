"""What `swift-rm train --source` reads: the options that go with each source, and the configuration they make."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from swift_rm.cli.loading import layers_of, parse_layers
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.logprobs import MOST_ALTERNATIVES

OF_A_MODEL = ("device", "dtype", "revision", "ray", "actors", "chat_template_kwargs", "batch_size")


def check_source(args: Namespace, learns_from: str) -> None:
    """Raise ValueError for a source that cannot be had in this way of training, and for options that it would ignore."""
    if args.top is not None and args.source != "top_logprobs":
        raise ValueError(f"--top goes with --source top_logprobs, not with --source {args.source}")
    if args.source == "top_logprobs" and learns_from == "online":
        raise ValueError(
            "--online learns from hidden states or logits: for the source top_logprobs sample with "
            "`swift-rm sample --top-logprobs`, then train from its --rollouts"
        )
    if args.model is not None or learns_from == "features":
        return
    if args.source != "top_logprobs" or learns_from != "rollouts":
        raise ValueError(f"--{learns_from} needs the language model: --model")
    refuse_without_model(args)


def refuse_without_model(args: Namespace) -> None:
    """Raise ValueError for an option that says how a language model runs where there is none."""
    given = [name for name in OF_A_MODEL if getattr(args, name) != args.usual[name]]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} goes with --model: without it the records' log-probabilities are read")


def config_of(args: Namespace, model: Any) -> SwiftConfig:
    """Return what a head reads by ``--source`` and its options, of a language model (None where the records are read)."""
    from swift_rm.models.model_shape import model_shape, output_width

    reads = {"position": args.position or "generating", "region": args.region, "gate": not args.no_gate}
    if args.source == "hidden":
        shape = model_shape(model)
        return SwiftConfig(shape.hidden_size, layers_of(args, shape.layers), **reads)
    layers = None if model is None else model_shape(model).layers
    if args.layers is not None and parse_layers(args.layers, layers) not in ((-1,), (layers,)):
        raise ValueError(
            f"--layers {args.layers} goes with --source hidden: the source {args.source!r} is made after the last layer"
        )
    if args.source == "logits":
        return SwiftConfig.of_logits(output_width(model), **reads)
    return SwiftConfig.of_top_logprobs(MOST_ALTERNATIVES if args.top is None else args.top, **reads)
