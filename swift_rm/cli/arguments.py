"""Arguments that several commands of `swift-rm` share."""

from __future__ import annotations

import argparse
import json
from typing import TypeAlias

# Of `swift-rm`: what every command adds its parser to.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
MODEL_HELP = "folder or Hub id of the language model; 'tiny-reasoner' is the one that comes with the package"
TASK_HELP = "homework or rewriting (with :test, :test:hard), or a JSONL file with questions and answers"
REGION_HELP = "'response', 'after:<marker>', e.g. after:</think>, or 'steps:<marker>': the tokens that complete a marker"
BANK_HELP = 'train a grid of heads and keep the best, e.g. \'{"layers": ["all", "-1"], "loss": ["bce", "dpo"]}\''
REWARD_HELP = "folder or Hub id of the reward model; 'tiny-reasoner-reward' comes with the package"


def command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    """Add a command with its summary; every command can print JSON."""
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the language model and how it is loaded."""
    parser.add_argument("--model", required=required, help=MODEL_HELP)
    add_loading(parser)


def add_task(parser: argparse._ActionsContainer, required: bool = False) -> None:
    """Add the questions: where from, how many, how graded."""
    parser.add_argument("--task", required=required, help=TASK_HELP)
    parser.add_argument("--questions", type=int, help="number of questions (default: 400 of a world, all of a file)")
    parser.add_argument("--grading", default="auto", choices=("auto", "exact", "numeric", "math"), help="how a file is graded")
    parser.add_argument("--grade-timeout", type=float, default=60.0, help="seconds for grading one answer (default 60)")
    parser.add_argument("-n", type=int, default=8, help="responses per question (default 8)")


def add_layers(parser: argparse._ActionsContainer, default: str | None = "all", said: str = "all") -> None:
    """Add the layers to read."""
    parser.add_argument("--layers", default=default, help=f"'all', or indices such as -4,-3,-2,-1 or 16-32 (default: {said})")


def add_source(parser: argparse._ActionsContainer) -> None:
    """Add what a head reads."""
    parser.add_argument(
        "--source",
        default="hidden",
        choices=("hidden", "logits", "top_logprobs"),
        help="what the head reads: hidden states (default), output logits, or the log-probabilities of APIs, from the records "
        "of --rollouts if there is no --model",
    )
    parser.add_argument("--top", type=int, metavar="K", help="of top_logprobs: alternatives a token, 0 to 20 (default 20)")


def add_top_logprobs(parser: argparse._ActionsContainer) -> None:
    """Add what a record keeps of each token's alternatives."""
    said = "keep each token's K likeliest alternatives' log-probabilities (0 to 20), to train and score without the model"
    parser.add_argument("--top-logprobs", type=int, metavar="K", help=f"{said} (default: none; 20 of an API)")


def add_api(parser: argparse.ArgumentParser) -> None:
    """Add an endpoint that is asked instead of a language model here, and how."""
    api = parser.add_argument_group("a language model behind an API, instead of one here")
    api.add_argument("--api", metavar="URL", type=path, help="OpenAI-compatible endpoint; --model is its name there")
    api.add_argument("--concurrency", type=int, help="requests under way at once (default 8)")
    api.add_argument("--timeout", type=float, help="seconds that a reply may take (default 60)")
    api.add_argument("--retries", type=int, help="further tries of a request that failed (default 5)")
    api.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key (default OPENAI_API_KEY)")
    api.add_argument("--extra-body", type=json.loads, metavar="JSON", help="what else each request says, e.g. '{\"top_k\": 40}'")


def add_store(parser: argparse._ActionsContainer) -> None:
    """Add how a feature store keeps states."""
    dtypes = ("bfloat16", "float8_e4m3", "int8", "float16", "float32")
    parser.add_argument("--features-dtype", default="bfloat16", choices=dtypes, help="how features are kept (default bfloat16)")
    parser.add_argument("--stride", type=int, default=1, help="keep every so many-th token's states (default 1)")
    positions = ("generating", "token")
    parser.add_argument("--positions", nargs="+", default=["generating"], choices=positions, help="default: generating")


def add_ray(parser: argparse._ActionsContainer) -> None:
    """Add spreading over Ray."""
    where = "host:port, or auto"
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help=f"spread over Ray: a cluster ({where}), or this machine's cores",
    )
    parser.add_argument(
        "--actors", type=int, help="with --ray: replicas of the language model (default: one a GPU, else one a core)"
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add how a language model is loaded."""
    parser.add_argument("--revision", help="revision of the language model on the Hub")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="float32, bfloat16, ... (default: the file's)")


def add_sampling(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add how responses are sampled, batch by batch."""
    add_temperature(parser)
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"questions per batch (default {batch_size})")
    parser.add_argument("--seed", type=int, default=0)
    add_template(parser)


def add_temperature(parser: argparse._ActionsContainer) -> None:
    """Add how tokens are drawn."""
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, help="default: what the context holds, up to 1,024")


def add_template(parser: argparse.ArgumentParser) -> None:
    """Add what the chat template is told."""
    parser.add_argument(
        "--chat-template-kwargs",
        type=json.loads,
        metavar="JSON",
        help="for the chat template, e.g. '{\"enable_thinking\": false}'",
    )


def path(text: str) -> str:
    """Refuse the empty path, which an unset variable of a shell leaves."""
    if not text:
        raise argparse.ArgumentTypeError("a path must not be empty")
    return text
