"""What training costs: while sampling beside sampling alone, against the published recipe, from a feature store, in int8."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.recorder import arguments, finish
from benchmarks.training.published_recipe import published_training
from benchmarks.training.store_reading import make_store, store_read
from swift_rm import SwiftConfig, sample
from swift_rm.evaluation.auroc import within_question_auroc
from swift_rm.evaluation.intervals import paired_difference
from swift_rm.features.key import FeatureKey
from swift_rm.features.quantised import StoreDtype
from swift_rm.features.read_states import extract_features
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from swift_rm.models.load import load_language_model
from swift_rm.models.model_shape import model_shape
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.scoring.score import score_rollouts
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tasks.task import Grade, Question
from swift_rm.training.fit import fit_features
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.fit_while_sampling import fit_online
from swift_rm.training.head_grid import HeadPlan, plan_grid

GOOD = 256  # of the random model: token ids below it are good, and a response is right that has more of them than others


def main() -> None:
    """Measure what the issue of training while sampling asks for."""
    args = arguments(__doc__)
    quick = args.quick
    model, tokenizer = load_language_model("tiny-reasoner", progress=False)
    overheads = overhead(model, tokenizer, 24 if quick else 192, 12 if quick else 64, 1 if quick else 5)
    published = {
        "tiny-reasoner": versus_published(
            model, tokenizer, *homework(24 if quick else 256), n=8, replay=4, batch=64, epochs=2 if quick else 40
        )
    }
    random, words = random_model(2 if quick else 12, 64 if quick else 768)
    published["random Llama"] = versus_published(
        random, words, *good_words(24 if quick else 40), n=8, replay=16, batch=64, epochs=2 if quick else 3, max_new_tokens=16
    )
    with tempfile.TemporaryDirectory() as folder:
        make_store(folder, 2**26 if quick else 2**30, shard_bytes=2**24 if quick else 2**27)
        reading = store_read(folder, 3 if quick else 9)
    int8 = int8_loss(model, tokenizer, 24 if quick else 400, 12 if quick else 300, 1 if quick else 5)
    result = {
        "online_overhead": overheads["one"]["overhead"],
        "bank16_overhead": overheads["bank16"]["overhead"],
        "published_vs_online": min(one["ratio"] for one in published.values()),
        "published_reached": {name: one["reached"] for name, one in published.items()},
        "store_read_share": reading["store_read_share"],
        "int8_auroc_loss": int8["loss"]["value"],
        "overheads": overheads,
        "published": published,
        "store": reading,
        "int8": int8,
    }
    finish("training", args, result)


def bank_of_16(config: SwiftConfig) -> list[HeadPlan]:
    """Return a grid of layers, positions, losses and learning rates: sixteen heads."""
    layers = [config.layers, config.layers[-1:]]
    return plan_grid(config, layers=layers, position=["token", "generating"], loss=["bce", "dpo"], lr=[0.01, 0.003])


def overhead(model: Any, tokenizer: Any, questions: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time sampling alone, with one head and with sixteen in training, in turn; compare within each round."""
    task, config = HomeworkTask("reward"), config_of(model)
    asked = list(task.questions(questions))
    more = {"batch_size": batch, "grade": task.grade}
    ways: dict[str, Callable[[], object]] = {
        "alone": lambda: sample(model, tokenizer, asked, 8, **more),
        "one": lambda: fit_online(model, tokenizer, asked, [HeadPlan(config, FitSettings())], 8, **more),
        "bank16": lambda: fit_online(model, tokenizer, asked, bank_of_16(config), 8, **more),
    }
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + 1):
        for name in names[i % 3 :] + names[: i % 3]:  # the order turns
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {"seconds_alone": round(statistics.median(seconds["alone"][1:]), 3), "questions": questions}
    for name in names[1:]:
        ratios = sorted(a / b - 1 for a, b in zip(seconds[name][1:], seconds["alone"][1:], strict=True))  # the first is a warm-up
        found[name] = {"overhead": round(statistics.median(ratios), 4), "range": [round(ratios[0], 4), round(ratios[-1], 4)]}
    return found


def versus_published(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Question],
    grade: Callable[[Question, str], Grade],
    *,
    n: int,
    replay: int,
    batch: int,
    epochs: int,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """Return how much longer the published recipe trains until it reaches what training while sampling reached.

    Both judge by the same held-out questions. What sampling takes is counted for neither; ``ratio_with_sampling`` counts it
    for both. If the recipe does not get there in ``epochs``, the ratio is a lower bound and ``reached`` is false.
    """
    done = fit_online(
        model, tokenizer, asked, [HeadPlan(config_of(model), FitSettings())], n, grade=grade, replay=replay, batch_size=batch,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    start = time.perf_counter()
    sample(model, tokenizer, asked, n, grade=grade, batch_size=batch, max_new_tokens=max_new_tokens)
    sampling = time.perf_counter() - start
    ours = max(done.facts["seconds_training"], done.facts["seconds"] - sampling)  # with what recording the states takes
    goal = done.best.auroc.value
    run = published_training(model, done.rollouts, done.held_out, goal, epochs)
    return {
        "ratio": round(run["seconds"] / ours, 2), "reached": run["reached"], "auroc": round(goal, 4),
        "ratio_with_sampling": round((run["seconds"] + sampling) / (ours + sampling), 2),
        "published_auroc": round(run["auroc"], 4), "published_epochs": run["epochs"],
        "published_seconds": round(run["seconds"], 2), "online_seconds": round(ours, 2), "sampling_seconds": round(sampling, 2),
        "parameters": sum(p.numel() for p in model.parameters()), "questions": len(asked), "n": n,
    }  # fmt: skip


def int8_loss(model: Any, tokenizer: Any, questions: int, test_questions: int, seeds: int) -> dict[str, Any]:
    """Return what a head loses that was trained on int8 features, paired over fresh questions, and the share of the bytes."""
    task, test = HomeworkTask("reward"), HomeworkTask("test")
    more = {"batch_size": 64}
    train = sample(model, tokenizer, task.questions(questions), 8, grade=task.grade, **more)
    fresh = sample(model, tokenizer, test.questions(test_questions), 16, grade=test.grade, **more)
    config = config_of(model)
    features = extract_features(model, tokenizer, train, config)
    aurocs: dict[str, list[Any]] = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as root:
        for dtype in ("float32", "int8"):
            folder = Path(root) / dtype
            write_store(folder, model, tokenizer, dtype, train, features)  # type: ignore[arg-type]
            store = FeatureStore(folder)
            sizes[dtype] = sum(entry.checksums.bytes for entry in store.entries)
            for seed in range(seeds):
                rm = fit_features(store, store.key.config("token"), FitSettings(seed=seed))
                scored = group_by_question(score_rollouts(model, tokenizer, rm, fresh, batch_size=256)).values()
                rewards = torch.tensor([[one.reward for one in group] for group in scored]).double().numpy()
                labels = torch.tensor([[one.label for one in group] for group in scored]).double().numpy()
                aurocs.setdefault(dtype, []).append(torch.tensor(within_question_auroc(rewards, labels)))
    means = {dtype: torch.stack(found).mean(0) for dtype, found in aurocs.items()}
    told = ~torch.isnan(means["int8"])
    loss = paired_difference(means["float32"][told].numpy(), means["int8"][told].numpy())
    return {
        "loss": loss.to_dict(), "auroc_float32": float(means["float32"][told].mean()), "seeds": seeds,
        "bytes_share": round(sizes["int8"] / sizes["float32"], 4), "questions": int(told.sum()),
    }  # fmt: skip


def write_store(folder: Path, model: Any, tokenizer: Any, dtype: StoreDtype, rollouts: Sequence[Rollout], features: Any) -> None:
    """Write the same states in another dtype."""
    key = FeatureKey.of(model, tokenizer, config_of(model).layers, ("token",), dtype=dtype, n=8)
    with FeatureWriter(folder, key) as writer:
        writer.add(rollouts, features.states, features.offsets)


def config_of(model: Any) -> SwiftConfig:
    """Return a head of all layers, at the tokens themselves."""
    shape = model_shape(model)
    return SwiftConfig(shape.hidden_size, tuple(range(shape.layers + 1)), position="token")


def homework(questions: int) -> tuple[list[Question], Callable[[Question, str], Grade]]:
    """Return homework and its grader."""
    task = HomeworkTask("reward")
    return list(task.questions(questions)), task.grade


def random_model(layers: int, width: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a random Llama (110 M parameters at 12 x 768) and a tokenizer whose words are numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2 * GOOD, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({str(i): i for i in range(2 * GOOD)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")


def good_words(questions: int) -> tuple[list[Question], Callable[[Question, str], Grade]]:
    """Return prompts for the random model, and a grader that finds more good words than bad ones right."""

    def grade(question: Question, response: str) -> Grade:
        words = [int(word) for word in response.split()]
        return Grade(response, int(sum(word < GOOD for word in words) * 2 > len(words)))

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 2 * GOOD, (questions, 16), generator=generator).tolist()
    return [Question(f"q{i}", " ".join(map(str, prompt)), None) for i, prompt in enumerate(prompts)], grade


if __name__ == "__main__":
    main()
