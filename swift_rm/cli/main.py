"""The `swift-rm` command: finds the module of each command, and says its result or its error. Needs no torch until one runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from swift_rm._version import __version__

# In the order of the help. Each is a module of this room with `add_parser(commands)`, `run(args)`, which returns a `Result`,
# and, where a command that was stopped goes on when it is called again, `resumes(args)`. Their imports are light until they run.
COMMANDS = (
    "demo", "sample", "train", "score", "evaluate", "compare", "best-of-n", "explain", "features", "probe", "check-model",
    "check-engine", "import-published", "hipo", "serve",
)  # fmt: skip


def module_of(command: str) -> ModuleType:
    """Return the module of a command."""
    return importlib.import_module(f"swift_rm.cli.{command.replace('-', '_')}")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="swift-rm", description="Pick the best of N answers from what the language model already knows."
    )
    parser.add_argument("--version", action="version", version=f"swift-rm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        module_of(command).add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for misuse, 1 for failure, 130 after Ctrl-C."""
    args = build_parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
    warnings.formatwarning = lambda message, *_, **__: f"swift-rm: {message}\n"
    try:
        result = module_of(args.command).run(args)
    except KeyboardInterrupt:
        kept = "what was finished is kept, and the same command goes on from there"
        return _fail(f"stopped; {kept if _resumes(args) else 'nothing was written'}", 130)
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        return _left()
    except (OSError, RuntimeError, ImportError) as error:
        return _fail(str(error), 1)
    try:
        if result.data is not None:
            said = json.dumps(result.data, ensure_ascii=False) if args.json else result.text
            print(
                said.encode(errors="backslashreplace").decode()
            )  # half a surrogate pair, which JSON can bring, cannot be written
        sys.stdout.flush()
    except BrokenPipeError:
        return _left()
    if result.stopped:
        return _fail(result.stopped, 130)
    if result.failed:
        return _fail(result.failed, 1)
    return 0 if result.ok else 1


def _joined(arguments: Sequence[str]) -> list[str]:
    """Write ``--layers -4,-3`` as ``--layers=-4,-3``, which argparse would take for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--layers":
            joined[-1] = f"--layers={argument}"
        else:
            joined.append(argument)
    return joined


def _resumes(args: argparse.Namespace) -> bool:
    """Tell whether the command writes what it goes on from when it is called again."""
    asked = getattr(module_of(args.command), "resumes", None)
    return asked is not None and bool(asked(args))


def _left() -> int:
    """Say nothing more to a reader, `head` say, that has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    print(f"swift-rm: {' '.join(message.split()).removeprefix('[Errno 2] ')}", file=sys.stderr)
    return code
