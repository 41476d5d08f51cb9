"""Write a feature store while responses are sampled: packed shards, each whole, and an index after each."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from tqdm.auto import tqdm

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.features.index import INDEX, SHARDS, FeatureIndex, ShardEntry, entries_in_order, read_index, shard_name
from swift_rm.features.key import FeatureKey, check_states
from swift_rm.features.shard_build import Held, PendingResponse, build_shard, held_in, ids_digest, relabel_shard, response_key
from swift_rm.features.shard_file import broken, read_head
from swift_rm.records.rollouts import Rollout

SHARD_BYTES = 256 * 2**20
_LOCK = ".lock"


class FeatureWriter:
    """Add responses' states to a feature store in ``folder``, alone; a run that was stopped goes on with the same call.

    A context manager. On entry every shard is read for its checksum: a missing or corrupt one is named in a warning and
    counts as not held, so that only its responses are read again, and replaced when these have come. States are kept in
    memory until they fill a shard of ``shard_bytes`` (as they came, before they are quantised) at the end of a question, so
    that SIGKILL loses at most that one; on exit the rest is written. A response that is added with another label than the one
    stored gets the new one, on exit: its shard is written again with the states that it has, and a warning counts the labels
    that were replaced. Another warning counts the responses of lost shards that did not come again. Raises ValueError that
    shows the difference if the folder holds another kind of features, BlockingIOError if another run is writing it.
    """

    def __init__(self, folder: str | Path, key: FeatureKey, *, shard_bytes: int = SHARD_BYTES, progress: bool = False) -> None:
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
        self.folder, self.key, self.shard_bytes, self._progress = Path(folder), key, shard_bytes, progress
        self._lock: int | None = None
        self._shards: dict[int, ShardEntry] = {}
        self._lost: dict[int, ShardEntry] = {}
        self._gone: dict[int, tuple[ShardEntry, set[Held] | None]] = {}  # lost at first, and of which responses, if known
        self._held: dict[Held, int | None] = {}  # to its label
        self._relabelled: dict[Held, int | None] = {}  # those in shards, to be written on exit
        self._replaced: list[str] = []
        self._added = 0
        self._pending: list[PendingResponse] = []
        self._bytes = 0
        self._failed = False

    @property
    def recording(self) -> RecordingSpec:
        """Return which states :meth:`add` takes."""
        return self.key.recording

    @property
    def lost(self) -> tuple[str, ...]:
        """Return the names of the shards that were missing or corrupt and have not been replaced yet."""
        return tuple(entry.name for entry in entries_in_order(self._lost.values()))

    def __enter__(self) -> FeatureWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError:
            os.close(lock)
            raise BlockingIOError(
                f"another run is writing features to {self.folder}; wait for it or choose another folder"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is None:
            return
        try:
            if not self._failed:
                self._flush()
                self._relabel()
                if kind is None:
                    self._tidy()
                self._tell()
        finally:
            os.close(self._lock)  # releases the lock
            self._lock, self._pending = None, []

    def holds(self, rollouts: Sequence[Rollout]) -> bool:
        """Tell whether the states of all of these responses, with these labels, are in good shards or waiting to fill one."""
        return all(self._held.get(response_key(rollout), "not held") == rollout.label for rollout in rollouts)

    def add(self, rollouts: Sequence[Rollout], states: Tensor, offsets: Tensor) -> None:
        """Take packed ``states [T, D]``, on any device, with ``offsets [B + 1]``, of what ``recording`` says of each response.

        The responses of one question come one after another; of those that are held only the label is taken. Raises ValueError
        that names question and layer for NaN or Inf, OSError if the disk refuses a shard: the same run then goes on later.
        """
        if self._lock is None:
            raise RuntimeError(f"{self.folder} is not open: use FeatureWriter as a context manager")
        places = offsets.tolist()
        check_states(self.key, rollouts, states, places)
        stored = self.key.stored_dtype or states.dtype
        for rollout, start, end in zip(rollouts, places[:-1], places[1:], strict=True):
            name, label = response_key(rollout), None if rollout.label is None else int(rollout.label)
            if name in self._held:
                self._take_label(name, label)
                continue
            question = rollout.question_id, ids_digest(rollout.prompt_ids)
            if self._pending and self._pending[-1].question != question and self._bytes >= self.shard_bytes:
                self._flush()
            kept = torch.tensor(self.key.kept(len(rollout.response_ids)), device=states.device) - self.recording.rows(0).start
            whole = states[start:end].detach()
            part = (whole if len(kept) == len(whole) else whole[kept]).to("cpu", stored, copy=True)
            self._held[name] = label
            self._pending.append(PendingResponse(*name, question[1], label, rollout.response_ids, part))
            self._bytes += part.nbytes
            self._added += 1

    def _take_label(self, name: Held, label: int | None) -> None:
        """Note the label of a response that is held, if it is another one."""
        before = self._held[name]
        if before == label:
            return
        if before is not None:
            self._replaced.append(f"question {name[0]!r}, sample {name[1]}: {before} became {label}")
        self._held[name] = label
        for place, one in enumerate(self._pending):
            if one.name == name:
                self._pending[place] = replace(one, label=label)
                return
        self._relabelled[name] = label

    def _open(self) -> None:
        for rest in (*self.folder.glob(f".{SHARDS}.*"), *self.folder.glob(f".{INDEX}.*")):
            rest.unlink()  # what a killed run was writing
        others = [path.name for path in self.folder.iterdir() if path.name not in (_LOCK, INDEX)]
        if not (self.folder / INDEX).exists() and not any(fnmatch(name, SHARDS) for name in others):
            if others:
                raise ValueError(
                    f"{self.folder} is no feature store and not empty (it holds {min(others)}): choose another folder"
                )
            FeatureIndex(self.key).write(self.folder)  # before the first shard: shards without an index have lost theirs
        index = read_index(self.folder)
        index.key.check(self.folder, self.key)
        reasons = []
        for entry in tqdm(index.shards, desc="checking shards", unit="shard", disable=not self._progress, delay=1):
            if reason := broken(self.folder / entry.name, entry.checksums):
                self._lost[entry.number] = entry
                self._gone[entry.number] = entry, self._known(entry)
                reasons.append(f"{entry.name}: {reason}")
                continue
            self._shards[entry.number] = entry
            self._held.update(held_in(read_head(self.folder / entry.name, entry.checksums)))
        if reasons:
            warnings.warn(
                f"{len(reasons)} of {len(index.shards)} shards of {self.folder} cannot be used ({'; '.join(reasons)}): only "
                f"the states of their {sum(entry.responses for entry in self._lost.values())} responses are read again",
                stacklevel=4,
            )

    def _known(self, entry: ShardEntry) -> set[Held] | None:
        """Return which responses a broken shard held, if that part of it can be read."""
        try:
            return set(held_in(read_head(self.folder / entry.name, entry.checksums)))
        except ValueError:
            return None

    def _flush(self) -> None:
        """Write what is pending as one shard."""
        if not self._pending:
            return
        number = next(i for i in count() if i not in self._shards)
        self._write(number, lambda: build_shard(self.folder, number, self._pending, self.key.dtype))
        self._pending, self._bytes = [], 0

    def _relabel(self) -> None:
        """Write the shards again of which responses have got another label."""
        for entry in list(self._shards.values()) if self._relabelled else []:
            if self._relabelled.keys() & held_in(read_head(self.folder / entry.name, entry.checksums)).keys():
                self._write(entry.number, partial(relabel_shard, self.folder, entry, self._relabelled, self.key.dtype))
        self._relabelled = {}

    def _write(self, number: int, build: Callable[[], ShardEntry]) -> None:
        """Write one shard, then the index; whatever goes wrong meanwhile, nothing more is written on exit."""
        self._failed = True
        try:
            self._shards[number] = build()
            self._lost.pop(number, None)
            self._write_index()
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write {self.folder / shard_name(number)} ({error.strerror}); the shards written before are kept, "
                "the same call resumes",
            ) from error
        self._failed = False

    def _write_index(self) -> None:
        FeatureIndex(self.key, entries_in_order({**self._lost, **self._shards}.values())).write(self.folder)

    def _tidy(self) -> None:
        """Forget lost shards at the end of a run: what it wanted of them is in others, and the rest is told."""
        if self._lost:
            self._lost = {}
            self._write_index()
        for path in self.folder.glob(SHARDS):
            if path.name not in {entry.name for entry in self._shards.values()}:
                path.unlink()

    def _tell(self) -> None:
        """Say which labels were replaced, and how many responses of shards that the index no longer has did not come again."""
        if self._replaced:
            warnings.warn(
                f"{len(self._replaced)} responses in {self.folder} had another label, which was replaced; the first is of "
                f"{self._replaced[0]}",
                stacklevel=3,
            )
        gone = [(entry, known) for number, (entry, known) in self._gone.items() if number not in self._lost]
        wanted = set[Held]().union(*(known for _, known in gone if known is not None))
        back = len(wanted & self._held.keys())
        # Of a shard whose head is broken only the number of responses is known: what else was added may be they.
        unknown = sum(entry.responses for entry, known in gone if known is None) - (self._added - back)
        if missing := len(wanted) - back + max(0, unknown):
            warnings.warn(
                f"{missing} responses of shards that could not be used ({', '.join(entry.name for entry, _ in gone)}) were not "
                f"added again and are no longer in {self.folder}; run the command that added them again to have them back",
                stacklevel=3,
            )
        self._replaced, self._gone, self._added = [], {}, 0
