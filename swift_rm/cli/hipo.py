"""What `swift-rm hipo data | sft | train | report` do: from parsed arguments to a text and a JSON value."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.cli.shared import Result, listing, load, open_task_of, watched
from swift_rm.files.atomic_write import check_writable, write_whole
from swift_rm.hipo.response.template import Template
from swift_rm.models.load import resolve

if TYPE_CHECKING:
    from swift_rm.hipo.cold_start.judge_text import Explainer
    from swift_rm.reward.reward_model import SwiftRewardModel


def hipo(args: Namespace) -> Result:
    """Take one step of the recipe."""
    from swift_rm.cli.hipo_train import train

    return {"data": data, "sft": sft, "train": train, "report": report}[args.step](args)


def data(args: Namespace) -> Result:
    """Sample in both modes and write the cold start; raise ValueError for options that do not go together."""
    from swift_rm.hipo.cold_start.cold_rows import write_rows
    from swift_rm.hipo.cold_start.cold_start import build, check_explainer, check_shares
    from swift_rm.hipo.cold_start.mode_sampling import sample_modes

    template = template_of(args)
    explain = _explainer(args, template)
    if args.source != "labels" and args.reward_model is None:
        raise ValueError(f"--source {args.source} reads probabilities: give --reward-model, too")
    check_shares(args.delta, args.random_share)
    for name in ("cold.jsonl", "counts.json"):
        check_folder(args.out, name)
    model, tokenizer = load(args)
    if explain is not None:
        check_explainer(explain, tokenizer, template)
    rm = load_reward_model(args, model)
    with open_task_of(args, tokenizer) as (questions, grade):
        rollouts = sample_modes(
            model, tokenizer, questions, args.n, args.out, rm=rm, modes=list(dict.fromkeys(args.modes)), grade=grade,
            seed=args.seed, batch_size=args.batch_size, max_new_tokens=args.max_new_tokens, temperature=args.temperature,
            progress=watched(),
        )  # fmt: skip
    cold = build(
        rollouts, tokenizer, template=template, explain=explain, source=args.source, rm=rm, delta=args.delta,
        random_share=args.random_share, seed=args.seed, judged=template.judge is not None,
    )  # fmt: skip
    write_whole(Path(args.out) / "counts.json", json.dumps(dict(cold.counts), indent=2) + "\n")
    if not cold.rows:
        raise ValueError(f"none of the {cold.counts['questions']} questions has a correct response: there is nothing to train on")
    write_rows(Path(args.out) / "cold.jsonl", cold.rows)
    found = {"out": args.out, **cold.counts}
    return Result(listing(found), found)


def sft(args: Namespace) -> Result:
    """Train on the cold start."""
    from swift_rm.hipo.cold_start.cold_rows import check_rows, read_rows, to_dataset
    from swift_rm.hipo.cold_start.sft import check_positive
    from swift_rm.hipo.cold_start.sft import sft as train_on
    from swift_rm.hipo.response.tags import add_tags, missing_tags
    from swift_rm.hipo.trainer.trl_range import check_trl

    check_trl()
    check_positive(epochs=args.epochs, lr=args.lr, batch_size=args.batch_size)
    check_folder(args.out)
    check_not_itself(args)
    rows = read_rows(args.data)
    template = template_of(args)
    model, tokenizer = load_to_train(args)
    missing = missing_tags(tokenizer, template)
    if missing and not args.add_tags:
        raise ValueError(
            f"the tokenizer of {args.model} has no single token for {', '.join(missing)}: "
            "give --add-tags, which adds and trains them"
        )
    added = add_tags(model, tokenizer, template) if missing else 0
    check_rows(rows, tokenizer, template)
    new = [tokenizer.convert_tokens_to_ids(tag) for tag in missing]
    found = train_on(
        model, tokenizer, to_dataset(rows, tokenizer), args.out, epochs=args.epochs, lr=args.lr, batch_size=args.batch_size,
        lora=args.lora, new_tokens=new, seed=args.seed, report_to=args.report_to, progress=watched(),
    )  # fmt: skip
    told = {"out": args.out, "tags_added": added, **found}
    return Result(listing(told), told)


def report(args: Namespace) -> Result:
    """Write the page of a run."""
    from swift_rm.hipo.report.report import sentences
    from swift_rm.hipo.report.report_page import render_run
    from swift_rm.hipo.report.run_log import run_log

    history = run_log(args.folder)
    check_writable(args.out, [history.source])
    render_run(args.folder, args.out)
    said = sentences(history)
    return Result("\n".join([*said, f"report  {args.out}"]), {"out": args.out, "findings": said, **latest(history.series)})


def latest(series: Any) -> dict[str, Any]:
    """Return the first and last tenth's mean of each figure of HiPO."""
    ends = {name: points.ends() for name, points in series.items() if name.startswith("hipo/")}
    return {"figures": {name: {"first": first, "last": last} for name, (first, last) in ends.items()}}


def template_of(args: Namespace) -> Template:
    """Return the template, without a judge block if there is to be none."""
    return Template(judge=None) if args.no_judge else Template()


def load_to_train(args: Namespace) -> tuple[Any, Any]:
    """Load the language model in float32 unless another type is asked for: small steps vanish in bfloat16 weights."""
    if args.dtype is None:
        args.dtype = "float32"
    return load(args)


def load_reward_model(args: Namespace, model: Any) -> SwiftRewardModel | None:
    """Load the reward model, if there is one, beside the language model."""
    from swift_rm.reward.reward_model import SwiftRewardModel

    if args.reward_model is None:
        return None
    return SwiftRewardModel.from_pretrained(resolve(args.reward_model)).to(model.device)


def check_folder(out: str, name: str = "config.json") -> None:
    """Raise OSError now if the file of this name, of a model say, could not be written there in the end."""
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"--out {out} is a file, not a folder")
    check_writable(os.path.join(out, name))


def check_not_itself(args: Namespace) -> None:
    """Raise ValueError if the folder to write is that of the model to begin with, which would be lost."""
    if Path(args.out).resolve() == Path(resolve(args.model)).resolve():
        raise ValueError(f"--out {args.out} is the folder of --model, which training would replace: choose another")


def _explainer(args: Namespace, template: Template) -> Explainer | None:
    from swift_rm.api.keys import without_secrets
    from swift_rm.hipo.cold_start.endpoint_explainer import EndpointExplainer
    from swift_rm.hipo.cold_start.judge_text import RuleExplainer

    if args.explainer.startswith(("http://", "https://")):
        if args.explainer_model is None:
            where = without_secrets(args.explainer)
            raise ValueError(f"--explainer {where} is an endpoint: say with --explainer-model which model to ask there")
        return EndpointExplainer(args.explainer_model, args.explainer, template=template)
    if args.explainer not in ("rule", "terse"):
        raise ValueError(f"--explainer must be rule, terse or the URL of an endpoint, got {args.explainer!r}")
    if args.explainer_model is not None:
        raise ValueError(f"--explainer-model {args.explainer_model} goes with the URL of an endpoint as --explainer")
    return RuleExplainer("terse" if args.explainer == "terse" else "words")
