"""What the two HiPO examples share: a reward head for the loop, the run itself, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swift_rm import SwiftConfig, SwiftRewardModel, fit, sample
from swift_rm.files.atomic_write import write_whole
from swift_rm.files.json_lines import json_line
from swift_rm.files.text import aligned
from swift_rm.hipo.cold_start.questions import difficulty_of
from swift_rm.hipo.cold_start.sft import device_settings, save_merged
from swift_rm.hipo.metrics import Row, step_metrics
from swift_rm.hipo.report.run_findings import alarms, run_log, sentences
from swift_rm.hipo.report.run_page import render_run
from swift_rm.hipo.response.template import FREE
from swift_rm.hipo.rollout import SwiftRollouts
from swift_rm.hipo.rollouts.refresh import Refresh
from swift_rm.hipo.trainer.training_progress import quiet, stopping, watch
from swift_rm.models.model_shape import model_shape
from swift_rm.tasks.homework import HomeworkTask

RATED, LABELLED = 150, 0.05  # questions whose labels a reward head is trained on before RL, and their share in RL
SHOWN = ("hipo/accuracy", "hipo/tokens", "hipo/think_rate")


def check_unfinished(run: Path) -> None:
    """Raise ValueError if the run came to its end already: gone on with, it would take one step more."""
    if (run / "config.json").exists():
        raise ValueError(f"{run} holds a finished run: choose another --out, or remove it")


def in_pass_rewards(
    model: Any, tokenizer: Any, questions: Sequence[Any], grade: Any, seed: int, **sampling: Any
) -> SwiftRollouts:
    """Train a reward head on the cold start's responses to the first questions; return rollouts that come with its rewards.

    In RL the labels of 5 % of the questions refresh it, and the others stay unused.
    """
    options = {"grade": grade, "seed": seed, "chat_template_kwargs": FREE, **sampling}
    rollouts = sample(model, tokenizer, questions[:RATED], 8, **options)
    config = SwiftConfig(model_shape(model).hidden_size, layers=(-2, -1), position="token")
    rm: SwiftRewardModel = fit(model, tokenizer, rollouts, config, seed=seed)
    return SwiftRollouts(rm, refresh=Refresh(LABELLED, seed=seed))


def reinforce(
    model: Any, tokenizer: Any, grade: Any, dataset: Any, out: Path, *, swift: SwiftRollouts | None, progress: bool,
    peft_config: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """Run HiPO, write the trained model (adapters merged) and the page of the run, and return the model.

    Ctrl-C ends the run after its present step with a checkpoint, from which the same call goes on.
    """
    from swift_rm.hipo.trainer import HiPOConfig, HiPOTrainer

    with quiet():
        args = HiPOConfig(
            output_dir=str(out), reward_source="labels" if swift is None else "swift", report_to="none", logging_steps=1,
            disable_tqdm=True, gradient_checkpointing=False, **{"save_strategy": "no", **device_settings(model), **settings},
        )  # fmt: skip
        trainer = HiPOTrainer(model, grade, args, dataset, tokenizer, rollout_func=swift, peft_config=peft_config)
        watch(trainer, "training", SHOWN, progress)
        with stopping(trainer) as stopped:
            trainer.train(any(out.glob("checkpoint-*")) or None)
        if stopped and trainer.state.global_step < args.max_steps:
            raise SystemExit(f"stopped after step {stopped[0]}: the same command goes on from there")
        trainer.save_state()  # the log, which the report reads
        save_merged(trainer, out)
    render_run(out, out / "report.html")
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def told(before: Sequence[Row], after: Sequence[Row], out: Path) -> str:
    """Return what became of unseen questions, and of the run, for people."""
    history = run_log(out)
    lines = [table({"cold start": before, "after HiPO": after}), "", *sentences(history), *alarms(history)]
    return "\n".join([*lines, "", f"model   {out}", f"report  {out / 'report.html'}"])


def table(measured: dict[str, Sequence[Row]]) -> str:
    """Return accuracy, tokens and think-on share of each set of responses, and the share by difficulty."""
    figures = {name: step_metrics(rows) for name, rows in measured.items()}
    levels = sorted({key for found in figures.values() for key in found if key.startswith("hipo/think_rate/")})
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("right (%)", "hipo/accuracy", _percent), ("tokens", "hipo/tokens", "{:.1f}".format), ("thinks (%)", SHOWN[2], _percent),
        *((f"{key.removeprefix('hipo/think_rate/')}: thinks (%)", key, _percent) for key in levels),
        ("well formed (%)", "hipo/format", _percent),
    ]  # fmt: skip
    cells = [["unseen questions", *(name for name, _, _ in columns)]]
    for name, found in figures.items():
        cells.append([name, *(form(found[key]) if key in found else "-" for _, key, form in columns)])
    return aligned(list(map(list, zip(*cells, strict=True))))


def write_questions(folder: Path, split: Any, count: int) -> Path:
    """Write homework questions as GSM8K has its own, and return the file's place."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = HomeworkTask(split, "wide").questions(count, seed=0)
    rows = [
        {"question": one.prompt[-1]["content"], "answer": f"#### {one.reference}", "level": difficulty_of(one)} for one in asked
    ]
    write_whole(folder / f"{split}.jsonl", "".join(json_line(row) + "\n" for row in rows))
    return folder / f"{split}.jsonl"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def say(text: str) -> None:
    """Show a line now, however long the rest takes."""
    print(text, flush=True)
