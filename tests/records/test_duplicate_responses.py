import os
from argparse import Namespace

import pytest

from swift_rm.cli.loading import read_rollout_files


def write(path, *records):
    path.write_text("".join(record.to_json() + "\n" for record in records))
    return str(path)


def read(*paths):
    return read_rollout_files(Namespace(rollouts=list(paths), skip_bad_lines=False))


@pytest.fixture
def record(make_rollout):
    def make(question="q", number=0, seed=0, **fields):
        extra = {} if number is None else {"sample": number}
        return make_rollout(question, **{"sampling": {"seed": seed, "n": 2}, "model": {"id": "tiny"}, "extra": extra, **fields})

    return make


def test_a_file_given_twice_is_refused_under_whatever_name(record, tmp_path):
    path = write(tmp_path / "r.jsonl", record(number=None))
    os.symlink(path, tmp_path / "link.jsonl")
    os.link(path, tmp_path / "hard.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl is given twice; give each file once"):
        read(path, path)
    for name in ("link.jsonl", "hard.jsonl", "../" + tmp_path.name + "/r.jsonl"):
        with pytest.raises(ValueError, match=r"is given twice, first as .*r\.jsonl; give each file once"):
            read(path, str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        read(path, str(tmp_path / "none.jsonl"))


def test_responses_given_twice_are_counted_and_the_first_is_named(record, tmp_path):
    every = [record(question, number) for question in ("a", "b", "c") for number in range(2)]
    whole = write(tmp_path / "whole.jsonl", *every)
    scored = write(tmp_path / "scored.jsonl", *(record("b", number, reward=0.5) for number in (1, 0)), record("d"))
    assert len(read(whole)) == 6
    with pytest.raises(
        ValueError, match=r"^2 responses are given twice, .* response 1 of question 'b', in .*whole.* and in .*scored"
    ):
        read(whole, scored)
    once = write(tmp_path / "once.jsonl", *every, every[3])
    with pytest.raises(ValueError, match=r"^1 response is given twice, .* response 1 of question 'b', in \S*once\.jsonl$"):
        read(once)


def test_what_only_shares_a_number_is_another_response(record, tmp_path):
    first = write(tmp_path / "first.jsonl", record(), record(number=1))
    others = {
        "seed": record(seed=1),
        "model": record(model={"id": "other"}),
        "prompt": record(prompt_ids=[7]),
        "question": record("z"),
    }
    paths = [write(tmp_path / f"{name}.jsonl", one) for name, one in others.items()]
    assert [one.question_id for one in read(first, *paths)] == ["q", "q", "q", "q", "q#2", "z"]
    unnumbered = write(tmp_path / "unnumbered.jsonl", record(number=None), record(number=None))
    assert len(read(unnumbered)) == 2
    odd = write(tmp_path / "odd.jsonl", record(number=["a"]), record(number="a"))
    assert len(read(odd)) == 2
