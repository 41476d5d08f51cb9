"""`swift-rm serve`: OpenAI's API with the best of N, with a flag for each of the gateway's settings."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from swift_rm.cli.arguments import Commands, path
from swift_rm.cli.output import Result
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.request.settings_sources import CONFIG, ENVIRONMENT, flag, read_settings

_EPILOG = f"""Each setting is also a key of the --config file (max-n: 16) and an environment variable ({ENVIRONMENT}MAX_N=16); a
flag counts before a variable, a variable before the file. SIGHUP loads the reward model again, SIGTERM ends what is under
way and then the server."""


def add_parser(commands: Commands) -> None:
    """Add the command; what is not given is not in the result, so that other sources may say it."""
    summary = "serve OpenAI's API with the best of N, of a model here or in front of a server elsewhere"
    description = summary[0].upper() + summary[1:] + "."
    serve = commands.add_parser(
        "serve", help=summary, description=description, epilog=_EPILOG, argument_default=argparse.SUPPRESS
    )
    serve.add_argument("--config", metavar="FILE", type=path, help=f"YAML file of settings (variable {CONFIG})")
    for one in fields(Settings):
        kind, choices = one.metadata["kind"], one.metadata["choices"]
        said = (one.metadata["help"] + default_of(one.name, one.default)).replace("%", "%%")
        if kind is bool:
            serve.add_argument(flag(one.name), action=argparse.BooleanOptionalAction, help=said)
        elif choices:
            serve.add_argument(flag(one.name), choices=choices, help=said)
        else:
            named = {str: None, int: "N", float: "X"}[kind]
            serve.add_argument(flag(one.name), type=kind, metavar=named, help=said)


def run(args: argparse.Namespace) -> Result:
    """Serve; raise ValueError for settings that cannot be, and what loading raises."""
    from swift_rm.gateway.process.serving import serve as serve_until_told

    given = {one.name: getattr(args, one.name) for one in fields(Settings) if hasattr(args, one.name)}
    serve_until_told(read_settings(given, getattr(args, "config", None)))
    return Result("", None)


def default_of(name: str, default: Any) -> str:
    """Return what is said of a default; nothing where it is empty, no, or explained already."""
    if default == "" or default is False or name == "max_tokens":
        return ""
    return f" (default {'yes' if default is True else f'{default:g}' if isinstance(default, float) else default})"
