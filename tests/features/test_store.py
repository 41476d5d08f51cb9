import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from swift_rm.features.row_selection import reading_rows
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from tests.features.feature_stores import damage, make_key, make_rollouts, make_store, read_all, state_of, states_of

POSITIONS = [("generating",), ("token",), ("generating", "token")]


def slow_rows(rollout, key, view=None, tokenizer=None):
    """The rows of a response that are stored and that a view reads, by the definition."""
    tokens, rows = len(rollout.response_ids), []
    for row in range(tokens + 1):
        positions = key.positions if view is None else view[:1]
        kept = ("generating" in positions and row < tokens and (tokens - 1 - row) % key.stride == 0) or (
            "token" in positions and row > 0 and (tokens - row) % key.stride == 0
        )
        if kept and (view is None or row in reading_rows([view], rollout.response_ids, tokenizer)[0][0]):
            rows.append(row)
    return rows


def expected_states(rollout, key, **view):
    return torch.stack([state_of(rollout, row, key.width) for row in slow_rows(rollout, key, **view)])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("stride", [1, 3])
def test_every_graded_response_comes_back_with_the_rows_that_its_key_says(tmp_path, positions, stride):
    views = [(position, "response") for position in positions]
    store = FeatureStore(make_store(tmp_path / "s", positions=positions, stride=stride), views)
    graded = [rollout for question in range(12) for rollout in make_rollouts(question) if rollout.label is not None]
    assert len(store) > 2
    found = read_all(store)
    expected = {(r.question_id, r.label): expected_states(r, store.key) for r in graded}  # one of each label a question
    assert len(found) == len(graded) == len(expected)
    assert all(torch.equal(states, expected[question, label]) for question, label, states in found)
    assert store.ungraded == 12
    assert sum(entry.tokens for entry in store.entries) == 12 * (2 + 5 + 7)
    assert store.labels.tolist() == [label for _, label, _ in found]
    assert [store.question_ids[q] for q in store.question] == [question for question, _, _ in found]
    assert sorted(set(store.question.tolist())) == list(range(12))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.01), ("float16", 0.002), ("int8", 0.02), ("float8_e4m3", 0.15)])
def test_smaller_dtypes_come_back_as_near_as_they_can(tmp_path, dtype, tolerance):
    store = FeatureStore(make_store(tmp_path / "s", dtype=dtype))
    for features in store:
        assert (features.scale is None) == (dtype in ("bfloat16", "float16"))
        assert features.states.element_size() == (1 if features.scale is not None else 2)
    graded = {(r.question_id, r.label): r for question in range(12) for r in make_rollouts(question) if r.label is not None}
    for question, label, states in read_all(store):
        torch.testing.assert_close(
            states.float(), expected_states(graded[question, label], store.key), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_views_read_the_rows_of_their_positions_and_regions(tmp_path, tokenizer, positions, stride):
    marker = tokenizer.decode([4])
    views = [(position, region) for position in positions for region in ("response", f"after:{marker}", f"steps:{marker}")]
    settings = {"tokens": (4, 9, 13)}
    store = FeatureStore(make_store(tmp_path / "s", 8, positions=positions, stride=stride, settings=settings), views, tokenizer)
    rollouts = {(r.question_id, r.label): r for q in range(8) for r in make_rollouts(q, **settings) if r.label is not None}
    several = flagged = 0
    for features in store:
        assert features.views == tuple(views)
        assert features.masks.shape == (len(features.states), len(views))
        for b in range(len(features.labels)):
            rollout = rollouts[store.question_ids[features.question[b]], int(features.labels[b])]
            held = slow_rows(rollout, store.key)
            mask = features.masks[features.offsets[b] : features.offsets[b + 1]]
            for v, view in enumerate(views):
                rows = slow_rows(rollout, store.key, view=view, tokenizer=tokenizer)
                whole = slow_rows(rollout, store.key, view=(view[0], "response"))
                assert [row for row, read in zip(held, mask[:, v].tolist(), strict=True) if read] == (rows or whole)
                several += 0 < len(rows) < len(held)
        flagged += sum(features.flags.values())
    assert several
    assert flagged
    assert store.shard(0).masks is store.shard(0).masks, "found once, not in every epoch"


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_view_reads_the_same_rows_whatever_else_is_stored(tmp_path, tokenizer, position, stride):
    settings, marker = {"tokens": (1, 9, 10)}, tokenizer.decode([4])
    views = [(position, "response"), (position, f"steps:{marker}")]
    alone, both = (
        FeatureStore(make_store(tmp_path / name, 8, 10**6, settings, positions=positions, stride=stride), views, tokenizer)
        for name, positions in (("alone", (position,)), ("both", ("generating", "token")))
    )
    for view in range(2):
        read = []
        for features in (alone.shard(0), both.shard(0)):
            owner = torch.repeat_interleave(features.offsets.diff())[features.masks[:, view]]
            read.append((owner.tolist(), features.states[features.masks[:, view]]))
        assert read[0][0] == read[1][0]
        assert torch.equal(read[0][1], read[1][1])
    assert alone.shard(0).flags == both.shard(0).flags


def test_a_store_of_two_positions_is_not_read_without_views(tmp_path):
    store = FeatureStore(make_store(tmp_path / "s", 3, positions=("generating", "token")))
    assert len(store.labels) == 6
    with pytest.raises(ValueError, match=r"/s holds states of the positions \('generating', 'token'\): say which views to read"):
        store.shard(0)


def test_two_prompts_of_one_id_are_two_questions(tmp_path):
    with FeatureWriter(tmp_path / "s", make_key(), shard_bytes=1) as writer:
        for question, prompt in ((0, [1, 2]), (1, [1, 2]), (0, [3]), (0, [4]), (0, [1, 2])):
            rollouts = [replace(rollout, prompt_ids=prompt) for rollout in make_rollouts(question)]
            writer.add(rollouts, *states_of(rollouts, writer.key))
    store = FeatureStore(tmp_path / "s")
    assert store.question_ids == ("question-0", "question-1", "question-0#2", "question-0#3")
    assert store.question.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [entry.questions for entry in store.entries] == [1, 1, 1, 1], "another prompt may begin another shard"
    with FeatureWriter(tmp_path / "t", make_key()) as writer:
        for prompt in ([1, 2], [3]):
            rollouts = [replace(rollout, prompt_ids=prompt) for rollout in make_rollouts(0)]
            writer.add(rollouts, *states_of(rollouts, writer.key))
    assert FeatureStore(tmp_path / "t").question.tolist() == [0, 0, 1, 1], "in one shard too"


def test_one_view_of_all_rows_needs_no_masks_and_an_absent_position_is_refused(tmp_path):
    folder = make_store(tmp_path / "s", 3)
    assert FeatureStore(folder, [("generating", "response")]).shard(0).masks is None
    with pytest.raises(ValueError, match=r"hold states of position \('generating',\), not 'token'"):
        FeatureStore(folder, [("token", "response")])
    with pytest.raises(ValueError, match=r"region must be 'response'"):
        FeatureStore(folder, [("generating", "before:x")])


def test_the_files_are_safetensors_that_anybody_can_read(tmp_path):
    folder = make_store(tmp_path / "s", 3, dtype="int8", shard_bytes=10**6)
    with safe_open(folder / "shard-00000.safetensors", "pt") as file:
        store = FeatureStore(folder)
        assert torch.equal(file.get_tensor("states")[: len(store.shard(0).states)], store.shard(0).states)
        assert file.get_tensor("labels").tolist() == [*store.labels.tolist(), -1, -1, -1]
        assert json.loads(file.metadata()["records"])["question_ids"] == ["question-0", "question-1", "question-2"]


def test_the_configuration_of_a_head_follows_from_the_key(tmp_path):
    store = FeatureStore(make_store(tmp_path / "s", 1))
    config = store.key.config(gate=False)
    assert (config.base_model, config.base_revision, config.fingerprint) == ("org/model", "abc", "f" * 16)
    assert (config.layers, config.base_layers, config.position, config.gate) == ((1, 3), 4, "generating", False)
    assert config.width == store.shard(0).states.shape[1]


def test_without_a_label_all_is_counted_and_nothing_read(tmp_path):
    store = FeatureStore(make_store(tmp_path / "s", 4, settings={"labels": (None,)}))
    assert store.ungraded == 12
    assert len(store.labels) == len(store.question_ids) == 0
    assert [len(features.states) for features in store] == [0] * len(store)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "it is missing"),
        ("cut", r"it has [\d,]+ bytes instead of"),
        ("states", "its checksum differs"),
        ("head", "its checksum differs"),
    ],
)
def test_a_broken_shard_is_named_with_what_to_do(tmp_path, kind, reason):
    folder = make_store(tmp_path / "s")
    damage(kind, folder / "shard-00001.safetensors")
    with pytest.raises(ValueError, match=rf"shard-00001.safetensors cannot be used: {reason}.* run the command .* again"):
        list(FeatureStore(folder))
    if kind == "states":
        assert len(FeatureStore(folder).shard(0).labels), "the others can be read"
        list(FeatureStore(folder, verify=False))


def test_a_folder_that_is_no_store_and_a_store_without_its_index_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"is no feature store: it has no index\.json"):
        FeatureStore(tmp_path)
    folder = make_store(tmp_path / "s")
    whole = (folder / "index.json").read_text()
    (folder / "index.json").write_text(whole[:50])
    with pytest.raises(ValueError, match=r"index\.json is not the index of a feature store"):
        FeatureStore(folder)
    (folder / "index.json").write_text(whole.replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match="format 7 is not the one that this version reads, which is 1"):
        FeatureStore(folder)
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match=r"holds \d+ shards but no index\.json.* put it back, or delete the folder"):
        FeatureStore(folder)


def resident():
    """Bytes of the process that are in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_store_larger_than_memory_would_be_streams_through_little(tmp_path):
    width, rows = 1024, 1024  # 2 MiB of bfloat16 a response
    with FeatureWriter(tmp_path / "s", make_key(hidden_size=width, layers=(1,), dtype="bfloat16"), shard_bytes=2**24) as writer:
        states = torch.randn(rows, width).bfloat16()
        for question in range(100):
            rollouts = make_rollouts(question, 1, tokens=(rows,), labels=(question % 2,))
            writer.add(rollouts, states, torch.tensor([0, rows]))
    store = FeatureStore(tmp_path / "s")
    assert sum(entry.checksums.bytes for entry in store.entries) > 200 * 2**20
    assert len(store) == 13
    before, most = resident(), 0
    for features in store:
        assert features.states.view(torch.int64).count_nonzero() > 0  # every page is read
        features.take(torch.arange(2))
        most = max(most, resident() - before)
    assert 2**23 < most < 2**26
