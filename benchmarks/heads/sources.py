"""What can be read where: hidden states, output logits, or only log-probabilities, beside what needs no training.

On homework of mixed difficulty, with the embedded tiny reasoner. Each seed draws the training questions, the split and the
first weights. ``seconds_per_1000_tokens`` is what a reward costs once the language model has given what it reads: states,
logits, or a reply's log-probabilities; ``at_scale`` the same for the sizes of a large model, with random numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.heads.question_figures import FIGURES, Floats, TestQuestions, stacked
from benchmarks.heads.worlds import CANDIDATES, TINY, Asked, arguments, draw_questions, drawn, language_model, open_cache
from benchmarks.recorder import finish
from benchmarks.text_table import NamedTable, shown
from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.evaluation.intervals import SeedResamples
from swift_rm.features.read_states import Features, extract_features
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.identity import describe_base
from swift_rm.reward.logprob_features import features_of
from swift_rm.reward.logprobs import TokenLogprobs, logprobs_of
from swift_rm.selection.baselines import baseline_scores
from swift_rm.training.fit import fit_features
from swift_rm.training.fit_settings import FitSettings

WINDOW = 16  # DeepConf's, about one step of homework
UNTRAINED = {name: score for name, score in baseline_scores(WINDOW).items() if name != "length"}
LARGE = {"width": 4096, "layers": 2, "vocabulary": 128_256}  # of an 8B model
TIMED = 64  # responses
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a head reads, and the loss it is trained with."""

    config: SwiftConfig
    loss: str = "bce"


@dataclass(frozen=True)
class Size:
    """How many questions there are, 8 responses to each training question, and how heads are trained."""

    pool: int
    train: int
    test: int
    seeds: int
    rounds: int
    settings: Mapping[str, Any]
    bootstrap: int


FULL = Size(1200, 800, 400, 5, 7, {}, 2000)
QUICK = Size(24, 20, 8, 2, 2, {"epochs": 2}, 100)


def main() -> None:
    """Sample, train and judge; print or write the table."""
    args = arguments(__doc__)
    size, start = (QUICK if args.quick else FULL), time.perf_counter()
    with open_cache(args.cache) as folder:
        train = drawn(Asked(TINY, "homework", "mixed", "reward", size.pool, 8, 7), folder)
        test = drawn(Asked(TINY, "homework", "mixed", "test", size.test, CANDIDATES, 11), folder)
    questions, resamples = TestQuestions(test), SeedResamples(size.seeds, size.test, bootstrap=size.bootstrap)
    figures: dict[str, dict[str, Floats]] = {}
    rows: dict[str, Row] = {}
    for name, source in sources_of().items():
        figures[name], rm = judged(source, train, test, questions, size)
        rows[name] = {"loss": source.loss, "parameters": sum(one.numel() for one in rm.parameters())}
        rows[name] |= intervals(resamples, figures[name]) | {"seconds_per_1000_tokens": source_seconds(rm, test, size.rounds)}
    timed = test[:TIMED]
    for name, score in UNTRAINED.items():
        figures[name] = stacked([questions.of_score(score)] * size.seeds)
        cost = seconds_per_1000(lambda score=score: [score(one) for one in timed], tokens_of(timed), size.rounds)  # type: ignore[misc]
        rows[name] = {**intervals(resamples, figures[name]), "seconds_per_1000_tokens": cost}
    majority = stacked([questions.figures(np.zeros_like(questions.labels))] * size.seeds)["vote_of_16"]
    rows["majority"] = {"best_of_16": resamples.interval(resamples.figures(majority)).to_dict()}
    best = max(UNTRAINED, key=lambda name: rows[name]["auroc_within"]["value"])
    pairs = [
        ("logits", "hidden"),
        ("logits", "hidden_all_layers"),
        ("top_20", "logits"),
        ("top_20", "top_5"),
        ("top_5", "chosen_only"),
    ]
    pairs += [(name, best) for name in ("top_5", "chosen_only")] + [("top_20", name) for name in UNTRAINED]
    lost = {f"{a}-{b}": intervals(resamples, {key: figures[a][key] - figures[b][key] for key in FIGURES}) for a, b in pairs}
    result = {
        "sources": NamedTable(rows, cells(rows)), "paired": NamedTable(lost, cells(lost, signed=True)),
        "best_untrained": best, "at_scale": at_scale(size.rounds, 100 if args.quick else 1000), "large": LARGE,
        "world": "homework, mixed", "train_questions": size.train, "train_n": 8, "test_questions": size.test,
        "test_n": CANDIDATES,
        "seeds": size.seeds, "deepconf_window": WINDOW, "fit": dict(size.settings),
        "intervals": "bootstrap over test questions and seeds", "total_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    finish("sources", args, result)


def sources_of() -> dict[str, Source]:
    """Return what heads read, by name; the hidden states are those of the last two layers, as by default, or of all."""
    model, tokenizer = language_model(TINY)
    shape = model.config
    layers = tuple(range(shape.num_hidden_layers + 1))
    configs = {
        "hidden": SwiftConfig(shape.hidden_size, layers[-2:]),
        "hidden_all_layers": SwiftConfig(shape.hidden_size, layers),
        "logits": SwiftConfig.of_logits(shape.vocab_size),
        **{name: SwiftConfig.of_top_logprobs(top) for name, top in (("top_20", 20), ("top_5", 5), ("chosen_only", 0))},
    }
    usual, other = {}, {}
    for name, config in configs.items():
        described = describe_base(config, model, tokenizer)
        losses = ("dpo", "bce") if config.source == "top_logprobs" else ("bce", "dpo")
        usual[name], other[f"{name}_{losses[1]}"] = (Source(described, loss) for loss in losses)
    return {**usual, **other}


def judged(
    source: Source, train: Sequence[Rollout], test: Sequence[Rollout], questions: TestQuestions, size: Size
) -> tuple[dict[str, Floats], SwiftRewardModel]:
    """Train a head a seed; return the figures [S, Q] by name, and the last head."""
    learnt, asked = features(source.config, train), features(source.config, test)
    by_seed = []
    for seed in range(size.seeds):
        settings = FitSettings(source.loss, seed=seed, **size.settings)
        rm = fit_features(draw_questions(learnt, size.train, seed), source.config, settings)
        with torch.no_grad():
            by_seed.append(questions.figures(rm(asked.states, asked.offsets)))
    return stacked(by_seed), rm


def features(config: SwiftConfig, rollouts: Sequence[Rollout]) -> Features:
    """Read what a head reads of rollouts by a pass of the language model."""
    return extract_features(*language_model(TINY), rollouts, config, batch_size=256)


def intervals(resamples: SeedResamples, figures: Mapping[str, Floats]) -> Row:
    """Return the intervals of figures [S, Q], JSON-ready, by the names that others read."""
    named = {{"auroc": "auroc_within"}.get(name, name): values for name, values in figures.items()}
    return {name: resamples.interval(resamples.figures(values)).to_dict() for name, values in named.items()}


def source_seconds(rm: SwiftRewardModel, test: Sequence[Rollout], rounds: int) -> float:
    """Return what rewards cost, in seconds for 1,000 tokens, once the language model has given what the head reads."""
    config, timed = rm.config, test[:TIMED]
    if config.source != "top_logprobs":
        read = features(config, timed)
        return seconds_per_1000(partial(rm, read.states, read.offsets), len(read.states), rounds)
    logits = features(SwiftConfig.of_logits(language_model(TINY)[0].config.vocab_size), timed)
    tokens = torch.tensor([token for one in timed for token in one.response_ids])
    replies = replies_of(logits.states, tokens, logits.offsets, config.top_logprobs or 0)
    return seconds_per_1000(partial(replies_rewards, rm, replies), len(tokens), rounds)


def replies_of(logits: Tensor, tokens: Tensor, offsets: Tensor, top: int) -> list[TokenLogprobs]:
    """Return what a server would of ``logits [T, V]``, responses apart."""
    chosen, others = (one.split(offsets.diff().tolist()) for one in logprobs_of(logits, tokens, top))
    return [TokenLogprobs(own.tolist(), alternatives.tolist()) for own, alternatives in zip(chosen, others, strict=True)]


def replies_rewards(rm: SwiftRewardModel, replies: Sequence[TokenLogprobs]) -> Tensor:
    """Return the rewards [B] of replies that came with log-probabilities."""
    rewards: Tensor = rm(*features_of(replies, rm.config.top_logprobs or 0))
    return rewards


def at_scale(rounds: int, tokens: int) -> dict[str, float]:
    """Return what rewards of 10 responses cost where a model has the sizes ``LARGE``, in seconds for 1,000 tokens."""
    offsets = torch.arange(0, tokens + 1, tokens // 10)
    found = {}
    for name, width in (("hidden", LARGE["width"] * LARGE["layers"]), ("logits", LARGE["vocabulary"])):
        rm, states = SwiftRewardModel(SwiftConfig(width, (-1,))), torch.randn(tokens, width)
        found[name] = seconds_per_1000(partial(rm, states, offsets), tokens, rounds)
        del states
    replies = replies_of(torch.randn(tokens, 64), torch.zeros(tokens, dtype=torch.long), offsets, 20)
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(20))
    return {**found, "top_20": seconds_per_1000(partial(replies_rewards, rm, replies), tokens, rounds)}


@torch.no_grad()
def seconds_per_1000(run: Callable[[], object], tokens: int, rounds: int) -> float:
    """Return the median time of ``run`` for 1,000 of its ``tokens``, after one round that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1000 / tokens


def tokens_of(rollouts: Sequence[Rollout]) -> int:
    """Return how many tokens there are in all."""
    return sum(len(one.response_ids) for one in rollouts)


def cells(rows: Mapping[str, Row], signed: bool = False) -> list[list[str]]:
    """Return the rows as texts."""
    names = ["auroc_within", *FIGURES[1:]]
    lines = [["source", "loss", *names, "s / 1,000 tokens"]]
    for name, one in rows.items():
        cost = f"{one['seconds_per_1000_tokens']:.5f}" if "seconds_per_1000_tokens" in one else "-"
        lines.append([name, one.get("loss", "-"), *(shown(one[key], signed) if key in one else "-" for key in names), cost])
    return lines


if __name__ == "__main__":
    main()
