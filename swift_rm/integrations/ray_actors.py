"""Replicas of a language model in Ray Data actors: on the cores of this machine, or on a cluster's GPUs."""

from __future__ import annotations

import logging
import os
import platform
import re
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swift_rm._version import __version__
from swift_rm.files.time_limit import call_within
from swift_rm.integrations.ray_cluster import LOCAL, RayRow, check_address, connect, required_addresses, rows_while_reachable
from swift_rm.models.load import TINY, load_language_model, load_outline
from swift_rm.sampling.batch_runner import Job, Result, Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT = "what was finished is kept, and the same command goes on from there"
IN_FLIGHT = 2  # jobs that an actor has at a time: one under way, one to go on with
RETRIES = 8  # of a job whose actor died under it, or before it came to its turn
FEWER = "take fewer questions at once (--batch-size, or --questions-per-batch)"
ERROR_KINDS: tuple[type[Exception], ...] = (
    ValueError,
    ImportError,
    OSError,
    RuntimeError,
)  # what a job's error is here, first match
Failure = tuple[Callable[[str], Exception], str, str]  # kind, message, traceback


@dataclass(frozen=True)
class Replica:
    """How an actor loads its language model, and which versions it must have."""

    model: str
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load model and tokenizer; raise RuntimeError that names the versions if these are not those of the driver."""
        here = _versions()
        if other := sorted(name for name in self.versions if here[name] != self.versions[name]):
            raise RuntimeError(
                f"a worker has {other[0]} {here[other[0]]}, but the driver has {self.versions[other[0]]}: install the same on all"
            )
        return load_language_model(self.model, device=self.device, dtype=self.dtype, revision=self.revision, progress=False)


class RayActors:
    """Run jobs on ``actors`` replicas of a language model, each in a Ray Data actor with a GPU, or a core where there is none.

    ``address`` is that of a cluster (``host:port``, or ``auto``); without one Ray is started here, on loopback, and stopped
    at the end of the ``with`` block; a Ray that runs in this process already is used, and left running. ``actors`` defaults
    to the number of GPUs, or else of cores. :attr:`model` is the language model without its weights, for what the driver
    asks of it; ``model`` must name the same one everywhere: a Hub id, or a folder that all machines see. A job whose
    actor was killed is done again by another, up to 8 times. Raises ImportError without Ray, ConnectionError for a cluster that
    cannot be used.
    """

    def __init__(
        self,
        model: str = TINY,
        *,
        actors: int | None = None,
        address: str = LOCAL,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        if actors is not None and actors < 1:
            raise ValueError(f"there must be at least 1 actor, got {actors}")
        check_address(address)
        self._replica = Replica(model, device, dtype, revision)
        self._asked, self._address, self._ours = actors, address, False
        self.actors, self.gpus = actors or 1, 0

    @cached_property
    def _outline(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_outline(self._replica.model, dtype=self._replica.dtype, revision=self._replica.revision)

    @property
    def model(self) -> PreTrainedModel:
        """The language model's structure and settings, on torch's ``meta`` device."""
        return self._outline[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._outline[1]

    def __enter__(self) -> RayActors:
        """Start Ray, or join the cluster."""
        self._ours = connect(self._address, self._asked)
        import ray

        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.gpus = int(there.get("GPU", 0)) if self._replica.device in (None, "cuda") else 0
        places = self.gpus or int(there.get("CPU", 1))
        self.actors = self._asked or places
        if self.actors > places:
            kind = "GPUs" if self.gpus else "cores"
            warnings.warn(f"{self.actors} actors wait for as many {kind}, of which Ray has {places}", stacklevel=2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the Ray that was started here, or leave the cluster."""
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False

    def run(self, work: Work[Job, Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
        """Yield ``work(model, tokenizer, job)`` of each job once, in the order of the jobs; ``jobs`` is read at once.

        A job's error is raised here in its turn, as the built-in kind that it is, with the actor's traceback as a note.
        Raises RuntimeError if the actors die again and again.
        """
        import ray
        from ray.data import ActorPoolStrategy

        if not ray.is_initialized():
            raise RuntimeError("RayActors runs jobs inside its `with` block only")
        rows = [{"job": job} for job in jobs]
        if not rows:
            return
        if self._ours:  # what happens to jobs is told here; somebody else's Ray logs as it did
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        needs: dict[str, Any] = {"num_gpus": 1} if self.gpus else {"num_cpus": 1}
        pool = ActorPoolStrategy(size=min(self.actors, len(rows)), max_tasks_in_flight_per_actor=IN_FLIGHT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # max_task_retries has no other place yet
            results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _Actor,  # type: ignore[arg-type]
                fn_constructor_args=(self._replica, work), compute=pool, max_task_retries=RETRIES, **needs,
            )  # fmt: skip
        results.context.enable_progress_bars = False
        results.context.execution_options.preserve_order = True
        seen: set[str] = set()
        try:
            with closing(rows_while_reachable(results.iter_rows(), required_addresses())) as done:
                for row in done:
                    seen.add(row["actor"])
                    yield _value(row["result"])
        except ray.exceptions.RayError as error:
            raise RuntimeError(_told(error)) from error
        except ConnectionError as error:
            raise ConnectionError(f"the Ray cluster is gone ({error}); {KEPT}") from error
        if (again := len(seen) - self.actors) > 0:
            warnings.warn(
                f"actors died and were replaced {again} times or more; what they had under way was done again", stacklevel=2
            )


class _Actor:
    """What Ray runs: a replica, loaded with the first job so that what goes wrong then is told as a job's error."""

    def __init__(self, replica: Replica, work: Work[Any, Any]) -> None:
        self._replica, self._work = replica, work
        self._loaded: tuple[Any, Any] | None = None
        self._name = f"{platform.node()}:{os.getpid()}"

    def __call__(self, row: RayRow) -> RayRow:
        outcome = call_within(None, lambda: self._do(row["job"]))
        assert outcome is not None
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            raise outcome.error
        failed = None if outcome.error is None else _described(outcome.error)
        return {"actor": self._name, "result": (outcome.value, failed)}

    def _do(self, job: Any) -> Any:
        if self._loaded is None:
            self._loaded = self._replica.load()
        model, tokenizer = self._loaded
        return self._work(model, tokenizer, job)


def _described(error: Exception) -> Failure:
    """Return an error as what surely can be pickled, and raised again elsewhere."""
    import torch

    trace = "in a Ray actor:\n" + "".join(traceback.format_exception(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return RuntimeError, f"an actor ran out of memory ({str(error).strip()[:80]}): {FEWER}; {KEPT}", trace
    kind = next((kind for kind in ERROR_KINDS if isinstance(error, kind)), None)
    return (kind, str(error), trace) if kind else (RuntimeError, f"{type(error).__name__}: {error}", trace)


def _value(result: tuple[Any, Failure | None]) -> Any:
    value, failed = result
    if failed is None:
        return value
    kind, told, trace = failed
    error = kind(told)
    error.add_note(trace)
    raise error


def _told(error: Exception) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    if "creation task" in lines[0]:  # then the last line is what went wrong there
        return f"the Ray actors could not be started: {lines[-1]}"
    if "TaskError" in type(error).__name__:  # it did not die, but what it made could not be sent
        return f"a Ray actor failed: {lines[-1]}; {KEPT}"
    return (
        f"the Ray actors died {RETRIES + 1} times over the same questions ({type(error).__name__}: {lines[0]}); if memory ran "
        f"out, {FEWER}; {KEPT}"
    )


def _versions() -> dict[str, str]:
    return {"swift-rm": __version__, **{name: version(name).split("+")[0] for name in ("torch", "transformers")}}
