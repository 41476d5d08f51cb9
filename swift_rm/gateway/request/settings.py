"""What `swift-rm serve` can be told: one list for flags, environment variables and a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from swift_rm.api.keys import is_loopback


class SettingError(ValueError):
    """A setting that cannot be: its ``name``, and ``why`` without the name."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name.replace('_', '-')} {why}")
        self.name, self.why = name, why


def _said(default: Any, said: str, kind: type = str, choices: tuple[str, ...] = ()) -> Any:
    """Return a setting's field: its default, one line that explains it, and the type of its values."""
    return field(default=default, metadata={"help": said, "kind": kind, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """The settings of the gateway; each field's metadata has one line of help, its type and its choices.

    Raises SettingError, with the value, for one that cannot be.
    """

    model: str = _said("", "language model: folder or Hub id; with an upstream its name there")
    reward_model: str = _said("", "folder or Hub id of the reward model; SIGHUP loads it again")
    upstream: str = _said("", "OpenAI-compatible server to stand in front of, instead of a model here: http://host:8000/v1")
    name: str = _said("", "name of a model here in the API (default: the last part of --model)")
    host: str = _said("127.0.0.1", "address to listen on; any but loopback needs a token")
    port: int = _said(8000, "port to listen on; 0 takes any free one", int)
    token_env: str = _said("SWIFT_RM_TOKEN", "environment variable with the bearer token that clients must bring")
    api_key_env: str = _said("OPENAI_API_KEY", "environment variable with the upstream's key")
    any_model: bool = _said(False, "the reward model may be of a model of another name than the upstream's", bool)
    revision: str = _said("", "revision of the language model on the Hub")
    device: str = _said("", "cpu, cuda, ... (default: a GPU if there is one)")
    dtype: str = _said("", "float32, bfloat16, ... (default: the file's)")
    threads: int = _said(0, "CPU threads of a model here (0: all cores but one, which is left for the requests)", int)
    batch_rows: int = _said(256, "candidates decoded at once, across users", int)
    batch_wait_ms: float = _said(5.0, "how long a request waits for others to share its batch, in milliseconds", float)
    queue: int = _said(256, "requests taken in at once, waiting or worked on; more are answered 429", int)
    max_n: int = _said(64, "candidates a request may ask for", int)
    max_tokens: int = _said(0, "new tokens a candidate may have; also the default (0: what the model holds, up to 1,024)", int)
    max_prompt_chars: int = _said(100_000, "characters a prompt may have", int)
    max_body_kib: int = _said(1024, "KiB a request's body may have", int)
    timeout_s: float = _said(300.0, "seconds a request may take, and an upstream's reply", float)
    concurrency: int = _said(32, "requests under way at the upstream", int)
    retries: int = _said(2, "further tries of an upstream's request that failed, for the best of N", int)
    drain_s: float = _said(30.0, "seconds that requests under way get to end after SIGTERM", float)
    page: bool = _said(True, "serve a page for questions at /", bool)
    log_format: str = _said("json", "json: an object a line; text: for people", str, ("json", "text"))
    log_level: str = _said("info", "least that is logged", str, ("debug", "info", "warning", "error"))
    log_content: bool = _said(False, "log prompts and answers, too", bool)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("serve needs a --model: a language model to load or, with --upstream, its name there")
        if not self.upstream and not self.reward_model:
            raise ValueError("serve needs a --reward-model: a folder or Hub id; 'tiny-reasoner-reward' comes with the package")
        if not self.host:
            raise SettingError("host", "must be an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine's")
        for name, least, most in (
            ("port", 0, 65535), ("threads", 0, 4096), ("batch_rows", 1, 2**20), ("batch_wait_ms", 0, 60_000),
            ("queue", 1, 2**20), ("max_n", 1, 4096), ("max_tokens", 0, 2**24), ("max_prompt_chars", 1, 2**30),
            ("max_body_kib", 1, 2**20), ("timeout_s", 0.001, 1e6), ("concurrency", 1, 1000), ("retries", 0, 100),
            ("drain_s", 0, 1e6),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise SettingError(name, f"must be from {least:,} to {most:,}, got {getattr(self, name)}")
        for one in fields(self):
            if (choices := one.metadata["choices"]) and getattr(self, one.name) not in choices:
                raise SettingError(one.name, f"must be one of {', '.join(choices)}, got {getattr(self, one.name)!r}")
        useless = ("name", "revision", "device", "dtype", "threads") if self.upstream else ("any_model",)
        for name in useless:
            if getattr(self, name):
                where = "applies to a local model, not to --upstream" if self.upstream else "goes with --upstream"
                raise SettingError(name, where)

    @property
    def loopback(self) -> bool:
        """Tell whether only this machine can reach the server."""
        return is_loopback(self.host)
