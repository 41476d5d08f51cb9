"""Where the gateway's settings come from: flags, else environment variables, else a YAML file, else the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from swift_rm.gateway.request.settings import SettingError, Settings

ENVIRONMENT = "SWIFT_RM_SERVE_"  # before a setting's name in capitals
CONFIG = f"{ENVIRONMENT}CONFIG"  # the variable that names the file
FOLDERS = ("model", "reward_model")  # settings that may be paths
SAID = {str: "text (in quotes, where it looks like a number)", bool: "true or false", int: "a whole number", float: "a number"}
TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def read_settings(given: Mapping[str, Any], file: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: those ``given`` as flags, else of the environment, else of a YAML file, else the defaults.

    An empty variable, and one without a value in the file, is not set. ``~`` is the home folder; a model's path that begins
    with a dot is one from the file's folder on. Raises ValueError that names the flag, the variable or the file, for a file
    that is no mapping of settings, an unknown name, or a value that cannot be; OSError for a file that cannot be read.
    """
    environment = os.environ if environment is None else environment
    file = file or environment.get(CONFIG)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in (_of_file(file) if file else {}, _of_environment(environment), _of_flags(given)):
        for origin, (name, value) in source.items():
            values[name], origins[name] = value, origin
    for name in FOLDERS:
        if values.get(name, "").startswith("~"):
            values[name] = os.path.expanduser(values[name])
    try:
        return Settings(**values)
    except SettingError as error:
        raise ValueError(f"{origins.get(error.name, error.name)} {error.why}") from None


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _of_flags(given: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    return {flag(name): (name, value) for name, value in given.items()}


def _of_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Return the values of environment variables with the settings' names, by the variable."""
    found = {}
    for key, text in environment.items():
        if key.startswith(ENVIRONMENT) and key != CONFIG and text:
            name = _known(key.removeprefix(ENVIRONMENT).lower(), f"the environment variable {key}", str.upper, ENVIRONMENT)
            found[key] = name, _value(text, name, key)
    return found


def _of_file(path: str) -> dict[str, tuple[str, Any]]:
    """Return the values of a YAML file, by "file: name"."""
    import yaml

    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(read, dict | None):
        raise ValueError(f"{path} must be a mapping of settings to values, such as 'port: 8000', got {type(read).__name__}")
    found = {}
    for key, value in (read or {}).items():
        name = _known(str(key).replace("-", "_"), f"{path}: {str(key)!r}")
        if value is None:
            continue
        origin = f"{path}: {key}"
        read_value = _value(value, name, origin)
        if name in FOLDERS and read_value.startswith(("./", "../")):
            read_value = os.path.normpath(Path(path).parent.absolute() / read_value)
        found[origin] = name, read_value
    return found


def _known(name: str, where: str, spelled: Any = str, before: str = "") -> str:
    """Return a setting's name; raise ValueError, with a name that is like it, if there is none such."""
    names = [one.name for one in fields(Settings)]
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {before}{spelled(near[0])}?" if near else "`swift-rm serve --help` lists them"
    raise ValueError(f"{where} is no setting of serve: {hint}")


def _value(given: Any, name: str, where: str) -> Any:
    """Return a value as the setting's type; text is read as one; raise ValueError if it is of another."""
    kind = next(one.metadata["kind"] for one in fields(Settings) if one.name == name)
    try:
        if isinstance(given, str):
            return TRUTHS[given.strip().lower()] if kind is bool else kind(given)
        if isinstance(given, bool) == (kind is bool) and isinstance(given, (int, float) if kind is float else kind):
            return kind(given)
    except (KeyError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where} must be {SAID[kind]}, got {given!r}")
