"""What `swift-rm serve` does: read the settings, and serve until a signal ends it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields

from swift_rm.cli.shared import Result
from swift_rm.gateway.request.settings import Settings
from swift_rm.gateway.request.settings_sources import read_settings


def serve(args: Namespace) -> Result:
    """Serve; raise ValueError for settings that cannot be, and what loading raises."""
    from swift_rm.gateway.process.serving import serve as serve_until_told

    given = {one.name: getattr(args, one.name) for one in fields(Settings) if hasattr(args, one.name)}
    serve_until_told(read_settings(given, getattr(args, "config", None)))
    return Result("", None)
