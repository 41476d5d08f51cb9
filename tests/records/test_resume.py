import json

import pytest

from swift_rm.records.resume import StoredRollouts
from swift_rm.records.rollouts import Rollout


def record(question, number, text="ok"):
    return Rollout(question, "p\u00e9", [1], text, [2, 3], "stop", extra={"sample": number})


def written(tmp_path, *records, between=""):
    path = tmp_path / "r.jsonl"
    path.write_text(between.join(one.to_json() + "\n" for one in records))
    return path


def test_what_is_there_is_read_by_question_and_number_in_any_order(tmp_path):
    records = [record(f"q{i}", number, "x" * (7 * i + number)) for i in range(5) for number in range(3)]
    checked = []
    kept = StoredRollouts(written(tmp_path, *records, between="\n  \n"), checked.append)
    assert checked == records
    assert ("q3", 2) in kept and ("q3", 3) not in kept and ("q9", 0) not in kept
    assert kept.read([("q4", 1), ("q9", 0), ("q0", 2)]) == [records[13], records[2]]
    assert kept.read([]) == [] == kept.read([("q9", 9)])


def test_the_last_record_of_a_key_counts_and_what_is_appended_later_is_not_seen(tmp_path):
    path = written(tmp_path, record("q", 0, "old"), record("q", 1), record("q", 0, "new"))
    kept = StoredRollouts(path, lambda rollout: None)
    with path.open("a") as file:
        file.write(record("q", 2).to_json() + "\n")
    assert [one.response for one in kept.read([("q", 0), ("q", 1), ("q", 2)])] == ["new", "ok"]


def test_no_file_holds_nothing_and_bad_lines_and_checks_are_told(tmp_path):
    assert ("q", 0) not in StoredRollouts(None, pytest.fail) and StoredRollouts(None, pytest.fail).read([("q", 0)]) == []
    path = written(tmp_path, record("q", 0))
    path.write_text(path.read_text() + json.dumps({"question_id": "q"}) + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl:2: not a rollout record"):
        StoredRollouts(path, lambda rollout: None)

    def refuse(rollout):
        raise ValueError(f"not {rollout.question_id}")

    with pytest.raises(ValueError, match="not q"):
        StoredRollouts(written(tmp_path, record("q", 0)), refuse)
