import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.records.rollouts import Rollout, group_by_question, read_rollouts
from swift_rm.selection.baselines import length, mean_logprob, min_logprob


def test_a_record_survives_its_line_and_unknown_keys_are_kept(make_rollout, tmp_path):
    rollout = make_rollout(reward=1.5, extra={"sample": 3, "note": "ä\nb", "token_logprobs": [-0.1, -0.2]})
    (tmp_path / "r.jsonl").write_text(rollout.to_json() + "\n\n", encoding="utf-8")
    assert read_rollouts(tmp_path / "r.jsonl") == [rollout]
    assert "\n" not in rollout.to_json()


def test_tokens_are_counted_by_the_ids_or_where_an_api_tells_none_by_the_log_probabilities(make_rollout):
    said = {"token_logprobs": [-0.1, -0.2, None], "top_logprobs": [[-0.1, None], [], [0]], "end_token": False}
    read = Rollout.from_dict({**json.loads(make_rollout(response_ids=[], prompt_ids=[]).to_json()), **said})
    assert (read.tokens, length(read)) == (3, -3.0)
    assert evaluate([read], bootstrap=5).tokens_per_response == 3
    assert make_rollout(response_ids=[1, 2], extra=said).tokens == 2
    assert make_rollout(response_ids=[]).tokens == 0


def test_numbers_that_json_lacks_become_null(make_rollout):
    line = make_rollout(reward=math.nan, extra={"token_logprobs": [-math.inf, -1.0]}).to_json()
    assert json.loads(line)["reward"] is None
    assert json.loads(line)["token_logprobs"] == [None, -1.0]


def test_whole_numbers_are_read_as_floats_and_nulls_and_nan_stay(make_rollout):
    given = {
        "reward": 10**30,
        "logprob_mean": None,
        "probability": 1,
        "self_certainty": math.nan,
        "token_logprobs": [0, None, -1.5],
    }
    read = Rollout.from_dict({**json.loads(make_rollout().to_json()), **given})
    assert (read.reward, read.logprob_mean, read.extra["probability"]) == (1e30, None, 1.0)
    assert [type(one) for one in (read.reward, read.extra["probability"])] == [float, float]
    assert math.isnan(read.extra["self_certainty"])
    assert mean_logprob(replace(read, extra={"token_logprobs": [0, -1]})) == -0.5
    assert math.isnan(min_logprob(read))  # a null among them
    assert evaluate([read], bootstrap=5).to_dict()["auroc_within"] is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": "q", "prom', r"r\.jsonl:2: not valid JSON"),
        ("[1, 2]", r"r\.jsonl:2: not a JSON object"),
        ('{"question_id": "q"}', r"r\.jsonl:2: not a rollout record: the record has no 'prompt'"),
        ({"question_id": 7}, r"r\.jsonl:2: .*'question_id' must be text, got 7"),
        ({"response_ids": ["a"]}, r"r\.jsonl:2: .*'response_ids' must be a list of token ids"),
        ({"label": 2}, r"r\.jsonl:2: .*'label' must be 1, 0 or null, got 2"),
        ({"reward": "high"}, r"r\.jsonl:2: .*'reward' must be a number or null, got 'high'"),
        ({"reward": True}, r"r\.jsonl:2: .*'reward' must be a number or null, got True"),
        ({"reward": 10**400}, r"r\.jsonl:2: .*'reward' must be a number that a float can hold, got 1000"),
        ({"logprob_mean": -(10**400)}, r"r\.jsonl:2: .*'logprob_mean' must be a number that a float can hold, got -1000"),
        ({"probability": 10**400}, r"r\.jsonl:2: .*'probability' must be a number that a float can hold"),
        ({"probability": "high"}, r"r\.jsonl:2: .*'probability' must be a number or null, got 'high'"),
        ({"probability": [0.5]}, r"r\.jsonl:2: .*'probability' must be a number or null, got \[0.5\]"),
        ({"self_certainty": {}}, r"r\.jsonl:2: .*'self_certainty' must be a number or null, got {}"),
        ({"token_logprobs": "x"}, r"r\.jsonl:2: .*'token_logprobs' must be a list of numbers or null, got 'x'"),
        ({"token_logprobs": 3}, r"r\.jsonl:2: .*'token_logprobs' must be a list of numbers or null, got 3"),
        ({"token_confidence": [1.0, None, "2"]}, r"r\.jsonl:2: .*'token_confidence\[2\]' must be a number or null, got '2'"),
        ({"token_confidence": [[1.0]]}, r"r\.jsonl:2: .*'token_confidence\[0\]' must be a number or null, got \[1.0\]"),
        ({"token_logprobs": [0, -(10**400)]}, r"r\.jsonl:2: .*'token_logprobs\[1\]' must be a number that a float can hold"),
        ({"top_logprobs": {"a": 1}}, r"r\.jsonl:2: .*'top_logprobs' must be a list of lists of numbers or null, got {'a': 1}"),
        ({"top_logprobs": [[-1.0], None]}, r"r\.jsonl:2: .*'top_logprobs' must be a list of lists of numbers or null"),
        ({"top_logprobs": [[-1.0], [0, True]]}, r"r\.jsonl:2: .*'top_logprobs\[1\]\[1\]' must be a number or null, got True"),
        ({"top_logprobs": [[-1.0], ["x"]]}, r"r\.jsonl:2: .*'top_logprobs\[1\]\[0\]' must be a number or null, got 'x'"),
        ({"top_logprobs": [[[-1.0]]]}, r"r\.jsonl:2: .*'top_logprobs\[0\]\[0\]' must be a number or null, got \[-1.0\]"),
        ({"end_token": 1}, r"r\.jsonl:2: .*'end_token' must be true or false, got 1"),
        ({"answer": ["a"]}, r"r\.jsonl:2: .*'answer' must be text or null, got \['a'\]"),
        ({"answer": 5}, r"r\.jsonl:2: .*'answer' must be text or null, got 5"),
        ({"model": "tiny"}, r"r\.jsonl:2: .*'model' must be an object, got 'tiny'"),
        ({"model": {"id": ["tiny"]}}, r"r\.jsonl:2: .*'model' must have its id as text, got \['tiny'\]"),
        ({"sampling": None}, r"r\.jsonl:2: .*'sampling' must be an object, got None"),
        ({"prompt_ids": [1, True]}, r"r\.jsonl:2: .*'prompt_ids' must be a list of token ids"),
        ({"response_ids": [10**30]}, r"r\.jsonl:2: .*'response_ids' must be a list of token ids"),
        ({"response_ids": [[1]]}, r"r\.jsonl:2: .*'response_ids' must be a list of token ids"),
        ("[" * 100_000, r"r\.jsonl:2: not valid JSON"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_line_or_skipped_and_counted(make_rollout, tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    bad = line if isinstance(line, str) else json.dumps({**json.loads(make_rollout().to_json()), **line})
    path.write_text(f"{make_rollout().to_json()}\n{bad}\n{make_rollout('z').to_json()}\n")
    with pytest.raises(ValueError, match=message):
        read_rollouts(path)
    skipped = Counter()
    assert [r.question_id for r in read_rollouts(path, skip_bad_lines=True, skipped=skipped)] == ["q", "z"]
    assert skipped == {str(path): 1}


def test_bytes_that_are_no_text_are_a_bad_line_not_a_crash(make_rollout, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe\x00{\n")
    with pytest.raises(ValueError, match=r"r\.jsonl:1: not valid JSON"):
        read_rollouts(tmp_path / "r.jsonl")


def test_questions_keep_the_order_of_their_first_appearance(make_rollout):
    groups = group_by_question([make_rollout("b"), make_rollout("a"), make_rollout("b")])
    assert [(name, len(group)) for name, group in groups.items()] == [("b", 2), ("a", 1)]
    assert isinstance(groups["a"][0], Rollout)
