"""What `swift-rm train` learns from: rollouts, pairs, a feature store, or responses as they are sampled."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from swift_rm.cli.loading import load, open_model, open_task_of, parse_layers, read_rollout_files, sampling_of
from swift_rm.cli.output import watched
from swift_rm.cli.train_options import config_of
from swift_rm.reward.config import SwiftConfig
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan, bank_layers, bank_views, plan_grid
from swift_rm.training.head_validation import ValidatedHead

if TYPE_CHECKING:
    from swift_rm.features.key import FeatureKey
    from swift_rm.features.read_states import FeatureSource
    from swift_rm.features.row_selection import Reading
    from swift_rm.records.rollouts import Rollout


class Trained(NamedTuple):
    """The heads, what is said of their training, and what gives the label curve of one of them, if it was asked for."""

    judged: Sequence[ValidatedHead]
    facts: Mapping[str, Any]
    curve: Callable[[HeadPlan], dict[str, Any]] | None = None


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


def from_rollouts(args: Namespace) -> Trained:
    """Train on the graded responses of ``--rollouts``."""
    rollouts = read_rollout_files(args)
    model, tokenizer = load(args) if args.model is not None else (None, None)
    return _fit(args, model, tokenizer, rollouts)


def from_pairs(args: Namespace) -> Trained:
    """Train on the preferences of ``--pairs``."""
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
    views: Sequence[Reading],
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


def from_features(args: Namespace) -> Trained:
    """Train on the states of a feature store, ``--features``."""
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


def _tokenizer(args: Namespace, key: FeatureKey, views: Sequence[Reading]) -> Any:
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


def from_sampling(args: Namespace) -> Trained:
    """Train on the states of the responses to ``--task`` while they are sampled."""
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
