import errno
import json
import os
import resource
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from swift_rm.features.key import FeatureKey
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from swift_rm.reward.identity import fingerprint
from swift_rm.sampling.sample import sample
from swift_rm.tasks.task import Grade
from tests.features.feature_stores import damage, fill, make_key, make_rollouts, read_all, states_of

SMALL = 1000  # bytes a shard: one or two questions


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != ".lock"}


def make(folder, questions=12, shard_bytes=SMALL, **changes):
    with FeatureWriter(folder, make_key(**changes), shard_bytes=shard_bytes) as writer:
        fill(writer, range(questions))
    return folder


def test_shards_hold_whole_questions_whatever_the_batches(tmp_path):
    make(tmp_path / "single")
    with FeatureWriter(tmp_path / "batched", make_key(), shard_bytes=SMALL) as writer:
        for start in range(0, 12, 5):
            rollouts = [rollout for question in range(start, min(12, start + 5)) for rollout in make_rollouts(question)]
            assert not writer.holds(rollouts)
            writer.add(rollouts, *states_of(rollouts, writer.key))
            assert writer.holds(rollouts)
    assert contents(tmp_path / "batched") == contents(tmp_path / "single")
    store = FeatureStore(tmp_path / "single")
    assert [entry.questions for entry in store.entries] == [entry.responses // 3 for entry in store.entries]
    assert len(store) == 6
    for features in store:
        assert 0 < features.states.nbytes < 2 * SMALL


def test_a_second_call_adds_only_what_is_new(tmp_path):
    make(tmp_path / "s", 6)
    with FeatureWriter(tmp_path / "s", make_key(), shard_bytes=SMALL) as writer:
        assert fill(writer, range(6)) == 0
        rollouts = make_rollouts(5) + make_rollouts(6)  # a batch of which half is there
        assert not writer.holds(rollouts)
        writer.add(rollouts, *states_of(rollouts, writer.key))
        other = [replace(rollout, response_ids=[9, *rollout.response_ids[1:]]) for rollout in make_rollouts(5)]
        assert not writer.holds(other), "other ids are another response"
    store = FeatureStore(tmp_path / "s")
    assert sorted(store.question_ids) == [f"question-{q}" for q in range(7)]
    assert len(store.labels) == 14


def test_the_callers_states_may_change_after_they_were_added(tmp_path):
    with FeatureWriter(tmp_path / "s", make_key()) as writer:
        rollouts = make_rollouts(0)
        states, offsets = states_of(rollouts, writer.key)
        expected = states.clone()
        writer.add(rollouts, states, offsets)
        states.zero_()
    assert torch.equal(torch.cat([part for *_, part in read_all(FeatureStore(tmp_path / "s"))]), expected[: 2 + 5])


def relabelled(questions, labels):
    return [
        replace(r, label=labels[(int(r.question_id[9:]) + r.extra["sample"]) % 3]) for q in questions for r in make_rollouts(q)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3"])
def test_a_response_takes_the_label_that_it_is_added_with(tmp_path, dtype):
    folder = make(tmp_path / "s", 8, dtype=dtype)
    plain = {(q, label): states for q, label, states in read_all(FeatureStore(folder))}
    changed, same = relabelled(range(2, 5), (1, 0, 0)), [r for q in (0, 1) for r in make_rollouts(q)]  # no longer ungraded
    with FeatureWriter(folder, make_key(dtype=dtype), shard_bytes=SMALL) as writer, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert writer.holds(same) and not writer.holds(changed)
        writer.add(same + changed, *states_of(same + changed, writer.key))
        assert writer.holds(same + changed)
    store = FeatureStore(folder)
    assert store.ungraded == 8 - 3 and len(store.labels) == 16 + 3
    found = read_all(store)
    for question, label in plain:
        assert any((q, one) == (question, label) and torch.equal(plain[question, label], states) for q, one, states in found)
    with FeatureWriter(folder, make_key(dtype=dtype), shard_bytes=SMALL) as writer:
        assert writer.holds(same + changed) and writer.lost == ()


def test_new_labels_give_the_store_that_they_would_have_given_at_first(tmp_path):
    def write(folder, labels):
        rollouts = relabelled(range(12), labels)
        with FeatureWriter(folder, make_key(dtype="float32"), shard_bytes=SMALL) as writer:
            for start in range(0, len(rollouts), 3):
                writer.add(rollouts[start : start + 3], *states_of(rollouts[start : start + 3], writer.key))

    write(tmp_path / "at-first", (0, None, 1))
    write(tmp_path / "later", (1, 0, None))
    with pytest.warns(UserWarning, match=r"24 responses in .*/later had another label, .* 'question-0', sample 0: 1 became 0"):
        write(tmp_path / "later", (0, None, 1))
    assert contents(tmp_path / "later") == contents(tmp_path / "at-first")
    with FeatureWriter(tmp_path / "waiting", make_key()) as writer:
        rollouts = make_rollouts(0)
        writer.add(rollouts, *states_of(rollouts, writer.key))
        graded = relabelled([0], (1, 0, 1))  # while they wait in memory
        writer.add(graded, *states_of(graded, writer.key))
        assert writer.holds(graded) and not writer.holds(rollouts)
    assert FeatureStore(tmp_path / "waiting").labels.tolist() == [1, 0, 1]


def test_sampling_again_with_a_grader_that_works_fills_the_holes(llama, tokenizer, tmp_path):
    def down(question, response):
        raise RuntimeError("judge unreachable")

    def run(name, grade):
        with FeatureWriter(tmp_path / "s", FeatureKey.of(llama, tokenizer, (1,), n=2)) as writer:
            return sample(llama, tokenizer, ["a", "b", "c"], 2, tmp_path / name, grade=grade, features=writer, max_new_tokens=4)

    with pytest.warns(UserWarning, match="6 of 6 answers could not be graded"):
        run("r1", down)
    assert FeatureStore(tmp_path / "s").ungraded == 6
    rollouts = run("r2", lambda question, response: Grade(response, np.int64(len(response) % 2)))
    store = FeatureStore(tmp_path / "s")
    assert store.ungraded == 0 and store.labels.tolist() == [rollout.label for rollout in rollouts]
    before = contents(tmp_path / "s")
    lines = [json.loads(line) | {"label": 1} for line in (tmp_path / "r1").read_text().splitlines()]
    (tmp_path / "r1").write_text("".join(json.dumps(line) + "\n" for line in lines))  # somebody graded them by hand
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run("r1", None)
    assert FeatureStore(tmp_path / "s").labels.tolist() == [1] * 6
    with pytest.warns(UserWarning, match="another label"):
        run("r2", None)
    assert contents(tmp_path / "s") == before


def test_a_full_disk_leaves_the_labels_as_they_were(tmp_path):
    folder = make(tmp_path / "s", 4)
    before, changed = contents(folder), relabelled(range(4), (0, 0, 0))
    with (
        pytest.raises(OSError, match=r"could not write .*shard-00000"),
        files_of_at_most(100),
        FeatureWriter(folder, make_key()) as w,
    ):
        w.add(changed, *states_of(changed, w.key))
    assert contents(folder) == before


# One process that has imported everything forks the writers: each starts at once.
KILLER = """
import os, random, signal, sys, threading, time, tqdm
tqdm.tqdm.set_lock(threading.RLock())  # its own one is shared with children, and one that is killed may hold it
sys.path[:0] = {paths!r}
from tests.features.feature_stores import fill, make_key
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter

def run(folder):
    with FeatureWriter(folder, make_key(dtype="int8"), shard_bytes=3000) as writer:
        fill(writer, range(100))

start = time.monotonic()
run(sys.argv[1])
whole, chance, kills, seen = time.monotonic() - start, random.Random(0), 0, []
while kills < 10 or (len(set(seen)) < 4 and kills < 100):
    child = os.fork()
    if not child:
        run(sys.argv[2])
        os._exit(0)
    time.sleep(chance.random() * whole / 6)
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if os.path.exists(sys.argv[2] + "/index.json"):
        seen.append(len([features.take(features.labels * 0) for features in FeatureStore(sys.argv[2])]))
run(sys.argv[2])
print(*seen)
"""


def test_a_writer_killed_at_any_moment_goes_on_to_the_same_store(tmp_path):
    program = KILLER.format(paths=sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "whole"), str(tmp_path / "killed")],
        check=True, timeout=300, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seen = list(map(int, done.stdout.split()))
    assert seen == sorted(seen), "a kill lost a shard that had been written"
    assert len(set(seen)) >= 4, "the kills have to fall between shards"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["missing", "cut", "states", "head"])
@pytest.mark.parametrize("number", [0, 2, 5])  # the last one is not full
def test_only_the_broken_part_is_redone(tmp_path, kind, number):
    folder = make(tmp_path / "s")
    whole = contents(folder)
    damage(kind, folder / f"shard-{number:05}.safetensors")
    with (
        pytest.warns(
            UserWarning, match=rf"1 of 6 shards of .* cannot be used \(shard-{number:05}.safetensors: its? .*\): only the"
        ),
        FeatureWriter(folder, make_key(), shard_bytes=SMALL) as writer,
    ):
        assert writer.lost == (f"shard-{number:05}.safetensors",)
        assert fill(writer, range(12)) == 2
    assert contents(folder) == whole


def test_a_broken_shard_is_not_forgotten_by_a_run_that_was_stopped(tmp_path):
    folder = make(tmp_path / "s")
    whole = contents(folder)
    damage("states", folder / "shard-00001.safetensors")
    with pytest.warns(UserWarning, match="shard-00001"), pytest.raises(KeyboardInterrupt), FeatureWriter(folder, make_key()):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"shard-00001.safetensors cannot be used"):
        list(FeatureStore(folder))
    with pytest.warns(UserWarning, match="shard-00001"), FeatureWriter(folder, make_key(), shard_bytes=SMALL) as writer:
        fill(writer, range(12))
    assert contents(folder) == whole


@pytest.mark.parametrize("kind", ["missing", "states"])
@pytest.mark.parametrize(("again", "missing"), [((0,), 6), ((0, 4), 3), ((0, 4, 20), 3), ((20, 21), 6), ((0, 5, 4), 0)])
def test_responses_of_a_lost_shard_that_do_not_come_again_are_counted(tmp_path, kind, again, missing):
    folder = make(tmp_path / "s", 8)
    damage(kind, folder / "shard-00002.safetensors")  # questions 4 and 5
    if kind == "missing":  # which they were is not known: what is added may be they
        missing = max(0, 6 - 3 * len(set(again) - {0}))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with FeatureWriter(folder, make_key(), shard_bytes=SMALL) as writer:
            fill(writer, again)
    said = [str(one.message) for one in told][1:]
    assert len(said) == (missing > 0)
    assert all(
        text.startswith(f"{missing} responses of shards that could not be used (shard-00002.safetensors)") for text in said
    )


def test_what_waits_in_memory_is_written_on_ctrl_c(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "s", make_key()) as writer:
        fill(writer, range(2))
        raise KeyboardInterrupt
    assert len(FeatureStore(tmp_path / "s").labels) == 4


def test_without_its_index_a_store_is_not_touched(tmp_path):
    folder = make(tmp_path / "s")
    (folder / "index.json").unlink()
    before = contents(folder)
    with pytest.raises(ValueError, match=r"holds 6 shards but no index\.json.*: put it back, or delete the folder"):
        FeatureWriter(folder, make_key()).__enter__()
    assert contents(folder) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(ValueError, match=r"no feature store and not empty \(it holds thesis\.tex\): choose another folder"):
        FeatureWriter(tmp_path, make_key()).__enter__()
    assert contents(tmp_path) == {"thesis.tex": b"text"}


@pytest.mark.parametrize(
    "change",
    [
        {"base_model": "org/other"}, {"base_revision": None}, {"fingerprint": "0" * 16}, {"hidden_size": 16}, {"base_layers": 5},
        {"layers": (3, 1)}, {"positions": ("token",)}, {"dtype": "int8"}, {"stride": 2}, {"n": 4},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_features_of_another_kind_are_refused_with_both_values(tmp_path, change):
    folder = make(tmp_path / "s", 1)
    (name, now), there = next(iter(change.items())), make_key().to_dict()
    now = list(now) if isinstance(now, tuple) else now
    with pytest.raises(ValueError, match="features of another kind") as caught:
        FeatureWriter(folder, make_key(**change)).__enter__()
    assert f"(there, now): {{{name!r}: {(there[name], now)!r}}}" in str(caught.value)


def test_a_second_writer_is_refused_in_one_sentence_and_let_in_later(tmp_path):
    with (
        FeatureWriter(tmp_path / "s", make_key()) as writer,
        pytest.raises(BlockingIOError, match=r"another run is writing features to .*/s; wait for it or choose another folder"),
    ):
        fill(writer, range(1))
        FeatureWriter(tmp_path / "s", make_key()).__enter__()
    with FeatureWriter(tmp_path / "s", make_key()) as writer:
        assert fill(writer, range(2)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_refused_by_question_and_layer(tmp_path, dtype, value):
    with FeatureWriter(tmp_path / "s", make_key(dtype=dtype)) as writer:
        rollouts = make_rollouts(0) + make_rollouts(1)
        states, offsets = states_of(rollouts, writer.key)
        states[-1, 9] = value
        with pytest.raises(ValueError, match="states of question 'question-1' at layer 3 are NaN or Inf"):
            writer.add(rollouts, states, offsets)
        assert not writer.holds(rollouts[:1])
        fill(writer, range(1))
    assert FeatureStore(tmp_path / "s").question_ids == ("question-0",)


def test_what_float16_cannot_hold_is_refused_instead_of_stored_as_inf(tmp_path):
    with FeatureWriter(tmp_path / "s", make_key(dtype="float16")) as writer:
        rollouts = make_rollouts(0)
        states, offsets = states_of(rollouts, writer.key)
        states[3, 0] = -70000.0
        with pytest.raises(ValueError, match=r"'question-0' at layer 1 are too large for float16 \(-7e\+04\)"):
            writer.add(rollouts, states, offsets)


def test_states_that_do_not_fit_the_rollouts_are_refused(tmp_path):
    with FeatureWriter(tmp_path / "s", make_key(positions=("generating", "token"))) as writer:
        rollouts = make_rollouts(0)
        states, offsets = states_of(rollouts, make_key())
        with pytest.raises(ValueError, match=r"expected states \[17, 16\] of 3 responses .*, got \[14, 16\] with 3 responses"):
            writer.add(rollouts, states, offsets)
        with pytest.raises(ValueError, match=r"expected states \[17, 16\]"):
            writer.add(rollouts, torch.zeros(17, 8), offsets)
    with pytest.raises(RuntimeError, match="not open"):
        writer.add(rollouts, states, offsets)


@contextmanager
def files_of_at_most(size):
    """The kernel refuses what a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_what_was_there_and_the_same_call_goes_on(tmp_path):
    def run():
        with FeatureWriter(tmp_path / "s", make_key(), shard_bytes=SMALL) as writer:
            for question in range(8):
                fill(writer, [question], n=60 if question == 4 else 3)

    message = r"could not write .*/shard-00002.safetensors \(File too large\); the shards written before are kept, the same call"
    with pytest.raises(OSError, match=message), files_of_at_most(4096):
        run()
    assert sorted(contents(tmp_path / "s")) == ["index.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    assert len(FeatureStore(tmp_path / "s").labels) == 8
    run()
    assert len(FeatureStore(tmp_path / "s").question_ids) == 8


def test_an_index_that_the_disk_refuses_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    folder = make(tmp_path / "s", 2)
    before, real, calls = contents(folder), os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # the shard fits, the index does not
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), FeatureWriter(folder, make_key(), shard_bytes=SMALL) as writer:
        fill(writer, range(8))
    monkeypatch.undo()
    orphan = set(contents(folder)) - set(before)
    assert orphan == {"shard-00001.safetensors"}
    assert {name: data for name, data in contents(folder).items() if name not in orphan} == before
    with warnings.catch_warnings(), FeatureWriter(folder, make_key(), shard_bytes=SMALL) as writer:
        warnings.simplefilter("error")
        assert fill(writer, range(8)) == 6
    assert len(FeatureStore(folder).question_ids) == 8


def test_the_key_of_a_loaded_model(llama, tokenizer):
    key = FeatureKey.of(llama, tokenizer, (-1, 0), ("token", "generating"), dtype="int8", stride=2, n=4)
    assert (key.layers, key.base_layers, key.hidden_size, key.width) == ((3, 0), 3, 32, 64)
    assert key.positions == ("generating", "token")
    assert key.fingerprint == fingerprint(tokenizer)
    assert FeatureKey.from_dict(json.loads(json.dumps(key.to_dict()))) == key
    for wrong, message in (
        ({"layers": ()}, "at least one layer"), ({"layers": (3, -1)}, "none twice"), ({"layers": (4,)}, "out of range"),
        ({"positions": ()}, "positions"), ({"dtype": "int4"}, "'int4'"), ({"stride": 0}, "stride must be at least 1, got 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            replace(key, **wrong)
