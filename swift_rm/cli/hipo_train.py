"""`swift-rm hipo train`: reinforce a model on a task, with checkpoints, and with rewards of hidden states if asked for."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.arguments import REWARD_HELP, Commands, command, path
from swift_rm.cli.hipo_shared import (
    SOURCES,
    add_judge,
    add_logging,
    add_lora,
    add_questions,
    check_folder,
    check_not_itself,
    latest,
    load_reward_model,
    load_to_train,
    template_of,
)
from swift_rm.cli.loading import open_task_of
from swift_rm.cli.output import Result, listing, watched

if TYPE_CHECKING:
    from swift_rm.hipo.response.template import Template
    from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts

SHOWN = ("hipo/accuracy", "hipo/tokens", "hipo/think_rate")


def add_parser(steps: Commands) -> None:
    """Add the step and its arguments."""
    parser = command(steps, "train", "reinforce: sample, reward, and move the model towards what did better than its group")
    add_questions(parser)
    parser.add_argument("--out", required=True, type=path, help="folder of checkpoints and of the trained model")
    parser.add_argument("--steps", type=int, default=200, help="gradient steps (default 200)")
    parser.add_argument("--prompts-per-step", type=int, default=16, help="questions per step (default 16)")
    parser.add_argument("--num-generations", type=int, default=8, help="responses per question (default 8)")
    parser.add_argument("--batch-size", type=int, help="responses per forward pass and process (default: all of a step)")
    parser.add_argument("--max-completion-length", type=int, default=1024, help="tokens of a response (default 1,024)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--lr", type=float, help="default 1e-6; 1e-5 with --lora")
    parser.add_argument("--beta", type=float, default=0.0, help="weight of the KL to the model at the start (default 0)")
    parser.add_argument("--epsilon", type=float, default=0.2, help="bound of the clipped ratio (default 0.2)")
    algorithm = parser.add_argument_group("algorithm")
    algorithm.add_argument("--advantages", default="hipo", choices=("hipo", "grpo", "adaptthink", "hgpo", "step_srpo"))
    algorithm.add_argument("--gamma", type=float, default=0.3, help="HiPO: weight of a response's own reward in its choice (0.3)")
    algorithm.add_argument("--omega", type=float, default=0.01, help="HiPO: how far think-off may be behind and win (0.01)")
    algorithm.add_argument("--bias", default="mean", choices=("mean", "sample", "none"), help="HiPO: what that moves")
    algorithm.add_argument("--off-bonus", type=float, default=0.05, help="AdaptThink: reward of think-off (0.05)")
    algorithm.add_argument("--baseline", type=path, help="AdaptThink: graded rollouts (JSONL) of the model before training")
    algorithm.add_argument("--margin", type=float, default=0.2, help="HGPO: by how much think-on must be better (0.2)")
    algorithm.add_argument("--forced-modes", action="store_true", help="make half of a question's responses think, and half not")
    algorithm.add_argument("--format-weight", type=float, default=0.2, help="reward of keeping to the template (0.2)")
    algorithm.add_argument("--length-cap", type=float, help="punish think-off answers longer than so many times the usual answer")
    add_judge(algorithm)
    swift = parser.add_argument_group("rewards of hidden states")
    swift.add_argument("--reward-model", help=REWARD_HELP)
    swift.add_argument("--reward-source", default="labels", choices=SOURCES, help="where accuracy is from (default: labels)")
    swift.add_argument("--dense", type=float, default=0.0, help="weight of the probability as an additional reward (default 0)")
    swift.add_argument("--scorer", default="policy", choices=("policy", "frozen"), help="whose states are read (default: policy)")
    swift.add_argument("--refresh", type=float, metavar="SHARE", help="train the reward model on, with labels of such a share")
    swift.add_argument("--oversample", type=int, metavar="M", help="sample M responses per question, keep the most informative")
    swift.add_argument("--prune", choices=("halving", "confidence"), help="with --oversample: drop hopeless ones on their way")
    add_lora(parser)
    add_logging(parser)
    parser.add_argument(
        "--save-every", type=int, default=50, help="steps between checkpoints, of which two are kept (default 50)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)


def run(args: Namespace) -> Result:
    """Train; Ctrl-C ends the run after its step, with a checkpoint. Raises ValueError for options that do not go together."""
    from swift_rm.hipo.trainer.trl_version import check_trl

    check_trl()
    _check(args)
    from swift_rm.hipo.cold_start.questions import answer_grader, hipo_rows
    from swift_rm.hipo.cold_start.sft import lora_config, save_merged
    from swift_rm.hipo.report.run_log import run_log
    from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer
    from swift_rm.hipo.trainer.resume import last_checkpoint, steps_of
    from swift_rm.hipo.trainer.training_progress import quiet, stopping, watch

    baseline = _baseline(args.baseline) if args.baseline else None
    template = template_of(args)
    model, tokenizer = load_to_train(args)
    with open_task_of(args, tokenizer) as (questions, grade), quiet():
        if baseline is not None and not any(question.question_id in baseline for question in questions):
            raise ValueError(f"--baseline {args.baseline} has none of the {len(questions)} questions of {args.task}")
        if len(questions) < args.prompts_per_step:
            raise ValueError(f"{args.task} gives {len(questions)} questions, fewer than the {args.prompts_per_step} of a step")
        trainer = HiPOTrainer(
            model, answer_grader(grade), _config(args, model), hipo_rows(questions, baseline), tokenizer, template=template,
            rollout_func=_rollouts(args, model, template),
            peft_config=None if args.lora is None else lora_config(model, args.lora),
        )  # fmt: skip
        watch(trainer, "training", SHOWN, watched())
        last = last_checkpoint(args.out)
        with stopping(trainer) as stopped:
            if last is not None and steps_of(last) >= args.steps:  # what was stopped while the model was being saved
                _restore(trainer, last)
            else:
                try:
                    trainer.train(args.resume or None)
                except KeyboardInterrupt:  # a second one, which waits for no step to end
                    if (last := last_checkpoint(args.out)) is None:
                        raise
                    return Result("", None, stopped=_kept(last.name))
    trainer.save_state()  # with the log, which the report reads
    if not stopped or trainer.state.global_step >= args.steps:
        save_merged(trainer, args.out)
        stopped.clear()
    figures = latest(run_log(args.out).series)
    told = {"out": args.out, "steps": trainer.state.global_step, "questions": len(questions), **figures}
    said = listing({name: told[name] for name in ("out", "steps", "questions")} | _shown(figures["figures"]))
    return Result(said, told, stopped=_kept(f"checkpoint-{stopped[0]}") if stopped else None)


def _kept(checkpoint: str) -> str:
    return f"stopped; {checkpoint} is kept, and the same command with --resume goes on from there"


def _restore(trainer: Any, checkpoint: Path) -> None:
    """Put what a checkpoint holds into the trainer, without a further step."""
    from transformers import TrainerState

    from swift_rm.hipo.trainer.resume import check_settings

    check_settings(checkpoint, trainer.run_settings)
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _shown(figures: dict[str, dict[str, float]]) -> dict[str, str]:
    return {
        name.removeprefix("hipo/"): f"{figures[name]['first']:.3g} -> {figures[name]['last']:.3g}"
        for name in SHOWN if name in figures
    }  # fmt: skip


def _check(args: Namespace) -> None:
    """Raise ValueError or OSError for what would go wrong later."""
    from swift_rm.hipo.cold_start.sft import check_positive
    from swift_rm.hipo.trainer.resume import last_checkpoint, steps_of

    check_positive(lr=args.lr, epsilon=args.epsilon, temperature=args.temperature)
    if not 0 <= args.beta < math.inf:
        raise ValueError(f"--beta must be a finite number, 0 or more, got {args.beta}")
    check_folder(args.out)
    check_not_itself(args)
    last = last_checkpoint(args.out)
    if last is not None and not args.resume:
        raise ValueError(f"{args.out} holds {last.name} of a run: go on with it by --resume, or choose another folder")
    if args.resume and last is None:
        raise ValueError(f"--resume goes on from a checkpoint, but {args.out} holds none")
    if last is not None and steps_of(last) >= args.steps >= 1 and (Path(args.out) / "config.json").is_file():
        raise ValueError(f"{args.out} holds {last.name}, so the --steps {args.steps} are done: to go on, ask for more")
    if args.reward_model is None:
        wanted = {
            "--reward-source": args.reward_source != "labels", "--dense": args.dense, "--scorer": args.scorer != "policy",
            "--refresh": args.refresh is not None, "--oversample": args.oversample is not None, "--prune": args.prune,
        }  # fmt: skip
        if given := [name for name, value in wanted.items() if value]:
            raise ValueError(f"{given[0]} is about rewards of hidden states: give --reward-model, too")
    if (args.baseline is None) == (args.advantages == "adaptthink"):
        how = "needs --baseline, graded rollouts of the model before training" if args.baseline is None else "has no --baseline"
        raise ValueError(f"--advantages {args.advantages} {how}")


def _config(args: Namespace, model: Any) -> Any:
    from swift_rm.hipo.cold_start.sft import device_settings
    from swift_rm.hipo.trainer.hipo_trainer import HiPOConfig

    return HiPOConfig(
        output_dir=args.out, advantages=args.advantages, gamma=args.gamma, omega=args.omega, bias=args.bias,
        off_bonus=args.off_bonus, margin=args.margin, forced_modes=args.forced_modes, format_weight=args.format_weight,
        reward_source=args.reward_source, dense=args.dense, length_cap=args.length_cap, max_steps=args.steps,
        num_generations=args.num_generations, max_completion_length=args.max_completion_length,
        temperature=args.temperature, learning_rate=args.lr or (1e-6 if args.lora is None else 1e-5), beta=args.beta,
        epsilon=args.epsilon, logging_steps=1, save_steps=args.save_every, save_total_limit=2, report_to=args.report_to,
        seed=args.seed, disable_tqdm=True, gradient_checkpointing=False, **_batches(args), **device_settings(model),
    )  # fmt: skip


def _batches(args: Namespace) -> dict[str, Any]:
    """Return how a step's responses are spread over processes and forward passes."""
    for name, least in {"steps": 1, "prompts_per_step": 1, "save_every": 1, "num_generations": 2}.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    responses = args.prompts_per_step * args.num_generations
    one_pass = args.batch_size or responses // processes
    if one_pass < 1 or responses % (one_pass * processes):
        raise ValueError(
            f"{args.prompts_per_step} questions x {args.num_generations} responses = {responses} do not spread over "
            f"{processes} processes in passes of {one_pass}: choose --batch-size, or --prompts-per-step, so that they do"
        )
    return {
        "per_device_train_batch_size": one_pass, "gradient_accumulation_steps": responses // (one_pass * processes)
    }  # fmt: skip


def _rollouts(args: Namespace, model: Any, template: Template) -> SwiftRollouts | None:
    """Return rollouts with rewards of hidden states, if there is a reward model."""
    rm = load_reward_model(args, model)
    if rm is None:
        return None
    from swift_rm.hipo.rollouts.refresh import Refresh
    from swift_rm.hipo.rollouts.swift_rollouts import SwiftRollouts

    return SwiftRollouts(
        rm, scorer=args.scorer, oversample=args.oversample, prune=args.prune, forced_modes=args.forced_modes, template=template,
        frozen_model=load_to_train(args)[0] if args.scorer == "frozen" else None,
        refresh=None if args.refresh is None else Refresh(args.refresh, seed=args.seed),
    )  # fmt: skip


def _baseline(path: str) -> dict[str, float]:
    """Return the accuracy of the graded responses to each question in a rollout file."""
    from swift_rm.records.rollouts import group_by_question, read_rollouts

    found: dict[str, float] = {}
    for question_id, group in group_by_question(list(read_rollouts(path))).items():
        labels = [rollout.label for rollout in group if rollout.label is not None]
        if labels:
            found[question_id] = sum(labels) / len(labels)
    if not found:
        raise ValueError(f"--baseline {path} has no graded responses")
    return found
