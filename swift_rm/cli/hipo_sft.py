"""`swift-rm hipo sft`: train on the cold start, so that the model knows the template."""

from __future__ import annotations

from argparse import Namespace

from swift_rm.cli.arguments import MODEL_HELP, Commands, add_loading, command, path
from swift_rm.cli.hipo_shared import (
    add_judge,
    add_logging,
    add_lora,
    check_folder,
    check_not_itself,
    load_to_train,
    template_of,
)
from swift_rm.cli.output import Result, listing, watched


def add_parser(steps: Commands) -> None:
    """Add the step and its arguments."""
    parser = command(steps, "sft", "train on the cold start, so that the model knows the template")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    add_loading(parser)
    parser.add_argument("--data", required=True, type=path, help="cold.jsonl of `hipo data`")
    parser.add_argument("--out", required=True, type=path, help="folder of the trained model")
    parser.add_argument("--epochs", type=float, default=3.0, help="default 3")
    parser.add_argument("--lr", type=float, help="default 2e-5; 2e-4 with --lora")
    parser.add_argument("--batch-size", type=int, default=16, help="responses per gradient step (default 16)")
    parser.add_argument("--add-tags", action="store_true", help="give the tokenizer the tags that it lacks")
    add_judge(parser)
    add_lora(parser)
    add_logging(parser)
    parser.add_argument("--seed", type=int, default=0)


def run(args: Namespace) -> Result:
    """Train on the cold start."""
    from swift_rm.hipo.cold_start.cold_rows import check_rows, read_rows, to_dataset
    from swift_rm.hipo.cold_start.sft import check_positive
    from swift_rm.hipo.cold_start.sft import sft as train_on
    from swift_rm.hipo.response.tags import add_tags, missing_tags
    from swift_rm.hipo.trainer.trl_version import check_trl

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
