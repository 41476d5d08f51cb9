import json
import shutil
from argparse import Namespace
from dataclasses import replace

import pytest

from swift_rm.cli.features import run as features
from swift_rm.features.estimate import FeatureEstimate, announce, readable, shape_of
from swift_rm.features.store import FeatureStore
from tests.features.feature_stores import damage, make_key, make_store

LARGE = FeatureEstimate(6000, 8, 400, 33, 4096)


def test_all_layers_of_an_8b_model_are_terabytes_and_what_helps_is_said():
    assert LARGE.bytes == 6000 * 8 * 400 * 33 * 4096 * 2 == 5_190_451_200_000
    assert [less.bytes for less in LARGE.smaller().values()] == [
        6000 * 8 * 400 * 4 * 4096 * 2, 6000 * 8 * 400 * 4 * 4096, 6000 * 8 * 100 * 4 * 4096,
    ]  # fmt: skip
    assert LARGE.advice() == (
        "the features of 6,000 questions x 8 responses of up to 400 tokens (33 layers x 4,096 values in bfloat16: 270 KB a "
        "token) need up to 5.19 TB; smaller, one on top of another: the last four layers (--layers -4,-3,-2,-1): 629 GB; "
        "int8 (--features-dtype int8): 315 GB; every 4th token (--stride 4): 78.6 GB"
    )
    small = FeatureEstimate(400, 8, 100, 1, 96)
    assert small.advice() == small.sentence()
    assert "1 layer x 96" in small.sentence()


@pytest.mark.parametrize("positions", [("token",), ("generating", "token")])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", ["int8", "float32", "float8_e4m3"])
def test_the_bound_is_what_the_longest_responses_take(tmp_path, positions, stride, dtype):
    folder = make_store(
        tmp_path / "s", 4, positions=positions, stride=stride, dtype=dtype, n=3, settings={"tokens": (9,), "labels": (1,)}
    )
    store = FeatureStore(folder, [(position, "response") for position in positions])
    estimate = FeatureEstimate.of(store.key, 4, 9)
    stored = sum(shard.states.nbytes for shard in store)
    assert stored == estimate.bytes if stride != 2 else stored <= estimate.bytes


def test_a_disk_that_may_be_too_small_is_a_warning_and_one_that_must_be_is_refused():
    assert LARGE.check(LARGE.bytes) is None
    assert LARGE.check(10**12, held=LARGE.bytes - 10**12) is None
    warning = LARGE.check(10**12)
    assert warning.startswith("only 1 TB of disk are free, but up to 5.19 TB more may be needed")
    assert "besides the 190 GB that are there, but up to 5 TB more" in LARGE.check(10**12, held=190_451_200_000)
    with pytest.raises(
        ValueError, match=r"only 500 GB of disk are free, not even a tenth of what may be needed: the features of"
    ):
        LARGE.check(500 * 10**9)


def test_what_is_said_before_sampling_into_a_folder(tmp_path, monkeypatch):
    key = make_key(hidden_size=4096, dtype="bfloat16", n=8)
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=10**8))
    assert announce(tmp_path / "not" / "there", key, 10, 20) == FeatureEstimate.of(key, 10, 20).sentence()
    estimate, warning = announce(tmp_path / "s", key, 1000, 4).splitlines()
    assert estimate.endswith("need up to 524 MB")
    assert "only 100 MB of disk are free, but up to 524 MB" in warning
    with pytest.raises(ValueError, match="not even a tenth"):
        announce(tmp_path / "s", key, 6000, 400)


def test_units_and_bad_values():
    assert [readable(count) for count in (0, 999, 1000, 999_600, 4.2e15)] == ["0 bytes", "999 bytes", "1 KB", "1 MB", "4.2 PB"]
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        replace(LARGE, tokens=0)
    with pytest.raises(ValueError, match="'int4'"):
        replace(LARGE, dtype="int4")


def test_the_shape_of_a_model_comes_from_its_configuration_alone(llama, tmp_path):
    llama.config.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert (shape.layers, shape.hidden_size) == (3, 32)


def arguments(**changes):
    values = {
        "folder": None, "verify": False, "model": None, "revision": None, "questions": 6000, "n": 8, "tokens": 1024,
        "layers": "all", "positions": ["generating"], "features_dtype": "bfloat16", "stride": 1, **changes,
    }  # fmt: skip
    return Namespace(**values)


def test_the_command_estimates_from_a_model(llama, tmp_path):
    llama.config.save_pretrained(tmp_path)
    result = features(arguments(model=str(tmp_path), layers="-2,-1", tokens=100, positions=["token", "generating"]))
    assert result.ok
    assert result.data["bytes"] == 6000 * 8 * 101 * 2 * 32 * 2
    assert result.data["smaller"] == {}
    assert "6,000 questions x 8 responses of up to 100 tokens (2 layers x 32 values" in result.text


@pytest.mark.parametrize("folder_and_model", [(None, None), ("a", "b")])
def test_the_command_wants_a_folder_or_a_model(folder_and_model):
    with pytest.raises(ValueError, match="name either the folder of a feature store or"):
        features(arguments(folder=folder_and_model[0], model=folder_and_model[1]))


def test_the_command_describes_a_store_and_what_is_broken_in_it(tmp_path):
    folder = make_store(tmp_path / "s", dtype="int8", shard_bytes=1000)
    result = features(arguments(folder=str(folder)))
    assert result.ok
    data = json.loads(json.dumps(result.data))
    counts = ("questions", "responses", "right", "wrong", "ungraded", "tokens", "rows", "shards")
    assert [data[fact] for fact in counts] == [12, 36, 12, 12, 12, 168, 168, len(list(folder.glob("*.safetensors")))]
    assert data["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert data["key"]["dtype"] == "int8"
    assert data["broken"] == {}
    assert "base model" in result.text
    assert "org/model" in result.text

    damage("states", folder / "shard-00001.safetensors")
    assert features(arguments(folder=str(folder))).ok, "states are read with --verify only"
    result = features(arguments(folder=str(folder), verify=True))
    assert not result.ok
    assert result.data["broken"] == {"shard-00001.safetensors": "its checksum differs"}
    assert "broken: shard-00001.safetensors: its checksum differs\nrun the command that made the store again" in result.text
    damage("missing", folder / "shard-00000.safetensors")
    damage("head", folder / "shard-00002.safetensors")
    broken = features(arguments(folder=str(folder))).data["broken"]
    assert broken == {"shard-00000.safetensors": "it is missing", "shard-00002.safetensors": "its checksum differs"}
