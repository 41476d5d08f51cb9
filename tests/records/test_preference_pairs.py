import json
from collections import Counter

import numpy as np
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, fit, score
from swift_rm.features.read_states import extract_features
from swift_rm.records.preference_pairs import Pair, pairs_to_rollouts, read_pairs
from swift_rm.training.question_split import split_questions


def write(path, *records):
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be brief"}
FORMS = {
    "text": ({"prompt": "27+15", "chosen": "42", "rejected": "32"}, "27+15"),
    "messages and text": ({"prompt": [user("27+15")], "chosen": "42", "rejected": "32"}, [user("27+15")]),
    "explicit": (
        {"prompt": [user("27+15")], "chosen": [assistant("42")], "rejected": [assistant("32")]},
        [user("27+15")],
    ),
    "implicit": (
        {"chosen": [SYSTEM, user("27+15"), assistant("42")], "rejected": [SYSTEM, user("27+15"), assistant("32")]},
        [SYSTEM, user("27+15")],
    ),
    "prompt repeated as text": (
        {"prompt": "27+15", "chosen": [user("27+15"), assistant("42")], "rejected": [user("27+15"), assistant("32")]},
        [user("27+15")],
    ),
    "prompt repeated as messages": (
        {
            "prompt": [SYSTEM],
            "chosen": [SYSTEM, user("27+15"), assistant("42")],
            "rejected": [SYSTEM, user("27+15"), assistant("32")],
        },
        [SYSTEM, user("27+15")],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_gives_the_prompt_and_both_responses(tmp_path, form):
    record, prompt = FORMS[form]
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", {**record, "score": 7}))
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "42", "32")
    assert pair.place == f"{tmp_path / 'pairs.jsonl'}:1"


def test_rollouts_hold_what_score_reads(tmp_path, tokenizer, llama):
    """Another way of writing the same prompt gives the same token ids, and the reward of ids is that of the text."""
    made = pairs_to_rollouts(tokenizer, read_pairs(write(tmp_path / "p.jsonl", FORMS["explicit"][0])), model=llama)
    assert [(r.label, r.response) for r in made] == [(1, "42"), (0, "32")]
    assert all(r.response_ids[-1] == tokenizer.eos_token_id for r in made)
    rm = SwiftRewardModel(SwiftConfig(32, (-1,)))
    torch.nn.init.normal_(rm.head.weight)
    as_text = score(llama, tokenizer, rm, [[user("27+15")]] * 2, ["42", "32"])
    assert as_text == score(llama, tokenizer, rm, [r.prompt_ids for r in made], [r.response_ids for r in made])


def test_the_template_gets_its_settings(tokenizer):
    pair = Pair("p:1", [user("27+15")], "42", "32")
    thinking, plain = (pairs_to_rollouts(tokenizer, [pair], {"enable_thinking": on}) for on in (True, False))
    assert thinking[0].prompt_ids != plain[0].prompt_ids
    assert thinking[0].question_id != plain[0].question_id


def test_token_ids_where_present_are_what_is_read(tmp_path, tokenizer):
    ids = {"prompt_ids": [1, 3, 18], "chosen_ids": [19, 2], "rejected_ids": [20]}
    pairs = read_pairs(write(tmp_path / "p.jsonl", ids, {**ids, "prompt": "27", "chosen": "1", "rejected": "1"}))
    made = pairs_to_rollouts(None, pairs)
    assert [r.prompt_ids for r in made] == [[1, 3, 18]] * 4
    assert [r.response_ids for r in made] == [[19, 2], [20]] * 2, "ids get no end-of-sequence token"
    assert [r.prompt for r in made] == ["", "", "27", "27"]


def test_all_pairs_of_a_prompt_are_one_question_on_one_side_of_a_split(tokenizer, llama):
    pairs = [Pair(f"p:{i}", f"{i % 20 + 10}+15", f"{i + 10}", "99") for i in range(60)]
    made = pairs_to_rollouts(tokenizer, pairs)
    assert len({r.question_id for r in made}) == 20
    features = extract_features(llama, tokenizer, made, SwiftConfig(32, (0,)))
    train, held_out = split_questions(features, 0.25, 0)
    assert len(held_out) == 5
    prompts = {side: {made[i].prompt for i in range(120) if features.question[i] in qs}
               for side, qs in (("train", train), ("held", held_out))}  # fmt: skip
    assert not prompts["train"] & prompts["held"]
    assert (len(prompts["train"]), len(prompts["held"])) == (15, 5)


def test_identical_responses_are_left_out_and_counted(tmp_path, tokenizer):
    same, other = {"prompt": "1", "chosen": "2", "rejected": "2"}, {"prompt": "1", "chosen": "2", "rejected": "3"}
    skipped = Counter()
    pairs = read_pairs(write(tmp_path / "p.jsonl", same, other, same), skipped=skipped)
    assert (len(pairs), skipped) == (1, {"identical": 2})
    unseen = Pair("p:9", "1", "2", "2<eos>")  # differs as text, not as tokens
    assert len(pairs_to_rollouts(tokenizer, [*pairs, unseen], skipped=skipped)) == 2
    assert skipped == {"identical": 3}
    with pytest.raises(ValueError, match=r"p.jsonl holds no preference pairs: 1 with identical responses and 0 bad lines"):
        read_pairs(write(tmp_path / "p.jsonl", same))
    with pytest.raises(ValueError, match=r"none of the 1 preference pairs can be trained on: \{'identical': 1\}"):
        pairs_to_rollouts(tokenizer, [unseen])


GOOD = FORMS["text"][0]
BAD = {
    "not JSON": ('{"prompt": ', "not valid JSON"),
    "not an object": ("[1]", "not a JSON object"),
    "no chosen": ({"prompt": "1", "rejected": "2"}, "there is no 'chosen'; it has ['prompt', 'rejected']"),
    "no rejected": ({"prompt": "1", "chosen": "2", "rejected": None}, "there is no 'rejected'"),
    "no prompt": ({"chosen": "1", "rejected": "2"}, "there is no 'prompt'; it has ['chosen', 'rejected']"),
    "no shared prompt": ({"chosen": [assistant("1")], "rejected": [assistant("2")]}, "share no message that could be it"),
    "empty response": ({"prompt": "1", "chosen": "", "rejected": "2"}, "the chosen response is empty"),
    "empty turn": ({"prompt": [user("1")], "chosen": [assistant("2")], "rejected": [assistant("")]}, "the rejected response"),
    "prompt a number": ({**GOOD, "prompt": 7}, "'prompt' must be text or chat messages, got 7"),
    "prompt a list of text": ({**GOOD, "prompt": ["1"]}, "'prompt' must be text or chat messages, got ['1']"),
    "message without content": ({**GOOD, "prompt": [{"role": "user"}]}, "each message of 'prompt' needs 'role' and 'content'"),
    "response a number": ({**GOOD, "chosen": 7}, "'chosen' must be text or chat messages, got 7"),
    "mixed forms": ({"prompt": [user("1")], "chosen": [assistant("1")], "rejected": "2"}, "'rejected' must be chat messages"),
    "early difference": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("x")]},
        "'chosen' (4 messages) and 'rejected' (2) must differ in their last message only, but differ from message 2 on",
    ),
    "ends in the user": ({"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]}, "ends in that of 'user'"),
    "text of another prompt": (
        {"prompt": "z", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        "'prompt' is text that no message before the responses holds: 'z'",
    ),
    "bad ids": ({**GOOD, "chosen_ids": [1, "2"]}, "'chosen_ids' must be a list of at least one token id, got [1, '2']"),
    "half a character": ('{"prompt": "1", "chosen": "\\ud800", "rejected": "2"}', "surrogates not allowed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_line_that_is_no_pair_is_named_or_counted(tmp_path, case):
    line, message = BAD[case]
    path = write(tmp_path / "p.jsonl", GOOD, line)
    with pytest.raises(ValueError, match=r"p\.jsonl:2: ") as caught:
        read_pairs(path)
    assert message in str(caught.value)
    skipped = Counter()
    assert len(read_pairs(path, skip_bad_lines=True, skipped=skipped)) == 1
    assert skipped == {"bad_lines": 1}


def test_an_empty_file_and_what_the_model_cannot_read_are_refused(tmp_path, tokenizer, llama):
    with pytest.raises(ValueError, match=r"p\.jsonl holds no preference pairs$"):
        read_pairs(write(tmp_path / "p.jsonl"))
    good, limit = Pair("p:1", "27", "1", "2"), llama.config.max_position_embeddings
    long = Pair("p:2", "27", "1", "2" * limit)
    with pytest.raises(ValueError, match=rf"p:2: the rejected response and its prompt have \d+ tokens, but .* is {limit}"):
        pairs_to_rollouts(tokenizer, [good, long], model=llama)
    foreign = Pair("p:3", None, None, None, [1], [999], [4])
    with pytest.raises(ValueError, match="p:3: the chosen response holds the token id 999"):
        pairs_to_rollouts(tokenizer, [foreign], model=llama)
    with pytest.raises(ValueError, match="p:4: the prompt is empty"):
        pairs_to_rollouts(tokenizer, [Pair("p:4", "", "1", "2")])
    skipped = Counter()
    made = pairs_to_rollouts(tokenizer, [good, long, foreign], model=llama, skip_bad_lines=True, skipped=skipped)
    assert (len(made), skipped) == (2, {"bad_lines": 2})


def preferences(questions, seed=0):
    """What is preferred is politeness: the chosen response says "well ", the rejected one "hmm ", at the same random place."""
    rng = np.random.default_rng(seed)
    for i in range(questions):
        words = rng.choice(["so ", "then ", "next ", "and "], size=5).tolist()
        place = rng.integers(5)
        chosen, rejected = ("".join([*words[:place], word, *words[place:]]) for word in ("well ", "hmm "))
        question = f"{rng.integers(10, 99)}+{rng.integers(10, 99)}"
        yield Pair(f"pairs:{seed}.{i}", [user(question)], chosen, rejected)


def test_a_preference_is_learnt_saved_and_used_by_score_and_best_of_n_unchanged(tmp_path, llama, tokenizer):
    made = pairs_to_rollouts(tokenizer, list(preferences(120)), model=llama)
    rm = fit(llama, tokenizer, made, SwiftConfig(32, (1, 2)), loss="dpo", lr=0.03)
    assert rm.config.training["loss"] == "dpo"
    assert rm.config.training["validation_auroc_within"] > 0.9
    rm.save_pretrained(tmp_path / "rm")
    loaded = SwiftRewardModel.from_pretrained(tmp_path / "rm")
    fresh = list(preferences(60, seed=1))
    chosen = score(llama, tokenizer, loaded, [p.prompt for p in fresh], [p.chosen for p in fresh])
    rejected = score(llama, tokenizer, loaded, [p.prompt for p in fresh], [p.rejected for p in fresh])
    wins = np.mean([a > b for a, b in zip(chosen, rejected, strict=True)])
    assert wins > 0.9, f"only {wins:.2f} of fresh pairs are ranked as people would"
    prompt = fresh[0].prompt
    (result,) = best_of_n(llama, tokenizer, loaded, [prompt], n=4, select="best", max_new_tokens=8)
    again = score(llama, tokenizer, loaded, [prompt] * 4, [c.token_ids for c in result.candidates])
    assert [c.reward for c in result.candidates] == pytest.approx(again, abs=1e-4)
    assert result.best.reward == max(c.reward for c in result.candidates)
