"""What `swift-rm train` does: heads from rollouts, preference pairs, a feature store, or while sampling."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from swift_rm.cli.shared import (
    Result,
    listing,
    load,
    open_model,
    open_task_of,
    parse_layers,
    read_rollout_files,
    sampling_of,
    watched,
)
from swift_rm.cli.source_options import check_source, config_of
from swift_rm.files.atomic_write import check_writable, write_whole
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.reward_model import check_folder
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan, bank_layers, bank_views, plan_grid
from swift_rm.training.head_validation import Judged, best_of

if TYPE_CHECKING:
    from swift_rm.features.key import FeatureKey
    from swift_rm.features.read_states import FeatureSource
    from swift_rm.features.row_selection import View
    from swift_rm.records.rollouts import Rollout

SOURCES = ("rollouts", "pairs", "features", "online")
READ, STORED, SAMPLED = ("rollouts", "pairs"), ("rollouts", "pairs", "features"), ("online",)
ONLY_WITH = {  # options that other sources would ignore
    "batch_size": READ, "max_gib": READ, "skip_bad_lines": READ, "epochs": STORED, "label_curve": STORED,
    "source": ("rollouts", "pairs", "online"), "chat_template_kwargs": ("pairs", "online"),
    **dict.fromkeys(
        ("task", "questions", "grading", "grade_timeout", "n", "save_rollouts", "questions_per_batch", "replay", "replay_gib",
         "temperature", "top_p", "top_k", "max_new_tokens", "ray", "actors"), SAMPLED,
    ),
}  # fmt: skip


class Trained(NamedTuple):
    """The heads, what is said of their training, and what gives the label curve of one of them, if it was asked for."""

    judged: Sequence[Judged]
    facts: Mapping[str, Any]
    curve: Callable[[HeadPlan], dict[str, Any]] | None = None


def train(args: Namespace) -> Result:
    """Train a bank of heads (often of one), save the best and report them all."""
    check_folder(args.out)
    given = [name for name in SOURCES if getattr(args, name)]
    if len(given) != 1:
        raise ValueError(f"train needs one of --rollouts, --pairs, --features and --online, got {len(given)}")
    _refuse_ignored(args, given[0])
    check_source(args, given[0])
    ways: dict[str, Callable[[Namespace], Trained]] = {
        "rollouts": _from_rollouts, "pairs": _from_pairs, "features": _from_features, "online": _from_sampling,
    }  # fmt: skip
    if args.label_curve:
        check_writable(args.label_curve, [*(args.rollouts or ()), *(args.pairs or ())])
    judged, facts, curve = ways[given[0]](args)
    best = best_of(judged)
    best.rm.save_pretrained(args.out)
    data = {
        "out": args.out, "source": best.rm.config.source, "parameters": best.row["parameters"],
        **best.rm.config.training, **facts,
    }  # fmt: skip
    stopped = None
    if curve is not None:
        try:
            write_whole(args.label_curve, json.dumps(curve(best.plan), indent=2) + "\n")
            data["label_curve"] = args.label_curve
        except KeyboardInterrupt:
            stopped = f"stopped; the reward model is in {args.out}, but there is no label curve"
    if len(judged) == 1:
        return Result(listing(data), data, stopped=stopped)
    data = {**data, "head": best.plan.name, "heads": [one.row for one in judged]}
    text = f"{listing({key: value for key, value in data.items() if key != 'heads'})}\n\n{heads_table(judged)}"
    return Result(text, data, stopped=stopped)


def _refuse_ignored(args: Namespace, source: str) -> None:
    """Raise ValueError for an option that was given and that this source of states has no use for."""
    for name, sources in ONLY_WITH.items():
        if source not in sources and getattr(args, name) != args.usual[name]:
            ways = " or ".join(f"--{one}" for one in sources)
            raise ValueError(f"--{name.replace('_', '-')} goes with {ways}, not with --{source}")


def heads_table(judged: Sequence[Judged]) -> str:
    """Return the heads by their held-out AUROC, the best first, a line each."""
    width = max(len(one.plan.name) for one in judged)
    ranked = sorted(judged, key=lambda one: -one.auroc.value)
    lines = [
        f"{one.plan.name:{width}}  {one.auroc.value:.3f} [{one.auroc.low:.3f}, {one.auroc.high:.3f}]  {one.row['parameters']:,}"
        for one in ranked
    ]
    title = f"{'head':{width}}  AUROC within questions  parameters"
    return "\n".join([title, "-" * len(title), *lines])


def plans_of(args: Namespace, config: SwiftConfig, every: tuple[int, ...]) -> list[HeadPlan]:
    """Return the heads that the options and ``--bank`` ask for; ``every`` are the layers that there are to read."""
    ranks = args.pairs or config.source == "top_logprobs"  # log-probabilities say less of a question than of its responses
    settings = FitSettings(
        args.loss or ("dpo" if ranks else "bce"), lr=args.lr, epochs=args.epochs, validation=args.validation, seed=args.seed,
        calibration=args.calibration, prefixes=args.prefixes, standardise=args.standardise, balance=args.balance,
        centre=args.centre, ensemble=args.ensemble, pessimism=args.pessimism,
    )  # fmt: skip
    try:
        choices = json.loads(args.bank) if args.bank else {}
    except ValueError as error:
        raise ValueError(f"--bank must be a JSON object of lists, got {args.bank!r}: {error}") from error
    if not isinstance(choices, dict):
        raise ValueError(f"--bank must be a JSON object of lists, got {args.bank!r}")
    if isinstance(choices.get("layers"), list):
        choices["layers"] = [_layers(one, every) for one in choices["layers"]]
    return plan_grid(config, settings, **choices)


def _layers(value: Any, known: tuple[int, ...]) -> Any:
    if value == "all":
        return known
    return parse_layers(value, None) if isinstance(value, str) else value


def _plans_for(args: Namespace, model: Any) -> list[HeadPlan]:
    """Return the heads for a language model, or, where it is None, for what records hold."""
    from swift_rm.models.model_shape import model_shape

    return plans_of(args, config_of(args, model), () if model is None else tuple(range(model_shape(model).layers + 1)))


def _from_rollouts(args: Namespace) -> Trained:
    rollouts = read_rollout_files(args)
    model, tokenizer = load(args) if args.model is not None else (None, None)
    return _fit(args, model, tokenizer, rollouts)


def _from_pairs(args: Namespace) -> Trained:
    from collections import Counter

    from swift_rm.records.preference_pairs import pairs_to_rollouts, read_pairs

    skipped: Counter[str] = Counter()
    pairs = [pair for path in args.pairs for pair in read_pairs(path, skip_bad_lines=args.skip_bad_lines, skipped=skipped)]
    model, tokenizer = load(args)
    rollouts = pairs_to_rollouts(
        tokenizer, pairs, args.chat_template_kwargs, model=model, skip_bad_lines=args.skip_bad_lines, skipped=skipped
    )
    trained = _fit(args, model, tokenizer, rollouts)
    facts = {"pairs": len(pairs), **trained.facts, **{f"skipped_{what}": count for what, count in skipped.items()}}
    return trained._replace(facts=facts)


def _fit(args: Namespace, model: Any, tokenizer: Any, rollouts: Sequence[Rollout]) -> Trained:
    from swift_rm.models.generation_config import is_only_end_token, model_end_tokens
    from swift_rm.reward.recorded_logprobs import is_empty
    from swift_rm.training.fit import describe_plans, read_rollouts_for

    graded = [rollout for rollout in rollouts if rollout.label is not None]
    facts = {"ungraded_responses": len(rollouts) - len(graded)}
    if args.source == "top_logprobs":
        ends = None if model is None else model_end_tokens(model)
        spoken = [one for one in graded if not (is_empty(one) if ends is None else is_only_end_token(ends, one.response_ids))]
        facts["empty_responses"], graded = len(graded) - len(spoken), spoken
    facts = {what: count for what, count in facts.items() if count}
    plans = describe_plans(_plans_for(args, model), model, tokenizer, graded)
    features = read_rollouts_for(
        plans, model, tokenizer, graded, forward_batch_size=args.batch_size,
        max_bytes=int(args.max_gib * 2**30) if args.max_gib else None, progress=watched(),
    )  # fmt: skip
    return _fit_states(args, features, plans, bank_layers(plans), bank_views(plans), facts, [one.answer for one in graded])


def _fit_states(
    args: Namespace,
    source: FeatureSource,
    plans: Sequence[HeadPlan],
    layers: Sequence[int],
    views: Sequence[View],
    facts: Mapping[str, Any],
    answers: Sequence[str | None] | None = None,
) -> Trained:
    from swift_rm.training.fit import fit_bank
    from swift_rm.training.label_curve import label_counts, label_curve

    curve = None
    if args.label_curve:
        label_counts(source, plans[0])  # refuses too few questions before the heads are trained
        curve = partial(label_curve, source, layers=layers, views=views, answers=answers, progress=watched())
    return Trained(fit_bank(source, plans, layers, views, progress=watched()), facts, curve)


def _from_features(args: Namespace) -> Trained:
    from swift_rm.features.store import FeatureStore

    key = FeatureStore(args.features, verify=False).key
    config = key.config(args.position, args.region, gate=not args.no_gate)
    if args.layers not in (None, "all"):
        config = replace(config, layers=parse_layers(args.layers, None))
    plans = [replace(plan, config=plan.config.for_base(key.base_layers)) for plan in plans_of(args, config, key.layers)]
    views = bank_views(plans)
    store = FeatureStore(args.features, views, _tokenizer(args, key, views))
    facts = {"shards": len(store), **({"ungraded_responses": store.ungraded} if store.ungraded else {})}
    return _fit_states(args, store, plans, key.layers, views, facts)


def _tokenizer(args: Namespace, key: FeatureKey, views: Sequence[View]) -> Any:
    """Return the tokenizer of ``--model``, which finds the markers of regions, if it is the one that sampled the features."""
    if args.model is None:
        marked = [region for _, region in views if region != "response"]
        if marked:
            raise ValueError(f"the region {marked[0]!r} needs the tokenizer: give --model, of which nothing else is loaded")
        return None
    from transformers import AutoTokenizer

    from swift_rm.models.load import resolve
    from swift_rm.reward.identity import fingerprint

    tokenizer = AutoTokenizer.from_pretrained(resolve(args.model), revision=args.revision)
    if fingerprint(tokenizer) != key.fingerprint:
        raise ValueError(
            f"{args.features} was sampled by {key.base_model}, whose vocabulary and chat template have fingerprint "
            f"{key.fingerprint}, but those of {args.model} have {fingerprint(tokenizer)}"
        )
    return tokenizer


def _from_sampling(args: Namespace) -> Trained:
    from swift_rm.training.fit_while_sampling import fit_online

    if args.task is None:
        raise ValueError("--online needs the questions: --task")
    with open_model(args) as (model, tokenizer, workers), open_task_of(args, tokenizer) as (questions, grade):
        done = fit_online(
            model, tokenizer, questions, _plans_for(args, model), args.n, grade=grade, out=args.save_rollouts,
            replay=args.replay, replay_bytes=int(args.replay_gib * 2**30), batch_size=args.questions_per_batch, seed=args.seed,
            grade_timeout=args.grade_timeout, max_new_tokens=args.max_new_tokens, progress=watched(),
            chat_template_kwargs=args.chat_template_kwargs, workers=workers, **sampling_of(args),
        )  # fmt: skip
    return Trained(done.judged, done.facts)
