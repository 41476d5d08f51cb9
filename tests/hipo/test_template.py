from __future__ import annotations

import random
import re
import time

import pytest

from swift_rm.hipo import Template
from swift_rm.hipo.response.template import CUT
from swift_rm.hipo.response.token_text import cut_at_tags, token_starts
from swift_rm.models.load import load_language_model

TEMPLATE = Template()
BARE = Template(judge=None)


@pytest.fixture(scope="module")
def tiny():
    return load_language_model(progress=False)[1]


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE that knows no tag, merges "><" and ">5", and has no character beyond ASCII as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>", "<pad>", "<end>"]
    )
    inner.train_from_iterator(["><", ">5", "5>", "k>", "on", "ge", "an", ">\u00e9", "x<"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", extra_special_tokens=["<end>"])


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def adds_up(parsed, ids):
    assert parsed.decision + parsed.think_tokens + parsed.answer_tokens == len(ids)
    assert min(parsed.decision, parsed.think_tokens, parsed.answer_tokens) >= 0
    return parsed


def parse(tokenizer, text, template=TEMPLATE, finished=None):
    ids = ids_of(tokenizer, text)
    return adds_up(template.parse(ids, tokenizer, finished), ids)


def test_the_parts_of_a_think_on_response_and_their_places(tiny):
    text = TEMPLATE.render("on", "42", judge="9-2", think="27+15=42")
    assert text == "<judge>9-2</judge><think_on><think>27+15=42</think><answer>42</answer>"
    parsed = parse(tiny, text + "<eos>")
    assert (parsed.mode, parsed.judge, parsed.think, parsed.answer, parsed.error) == ("on", "9-2", "27+15=42", "42", None)
    assert parsed.formatted
    assert parsed.spans == {"judge": (0, 5), "mode": (5, 6), "think": (6, 16), "answer": (16, 20)}
    assert (parsed.decision, parsed.think_tokens, parsed.answer_tokens) == (6, 10, 5)  # the end of text is the answer's


def test_the_parts_of_a_think_off_response_and_their_places(tiny):
    parsed = parse(tiny, TEMPLATE.render("off", "42", judge="2-9") + "<eos>")
    assert (parsed.mode, parsed.judge, parsed.think, parsed.answer, parsed.error) == ("off", "2-9", None, "42", None)
    assert (parsed.decision, parsed.think_tokens, parsed.answer_tokens) == (6, 0, 5)
    assert set(parsed.spans) == {"judge", "mode", "answer"}


def test_without_a_judge_block(tiny):
    parsed = parse(tiny, BARE.render("on", "5", think="") + "<eos>", BARE)
    assert (parsed.mode, parsed.judge, parsed.think, parsed.answer, parsed.decision) == ("on", None, "", "5", 1)
    assert parse(tiny, TEMPLATE.render("off", "5") + "<eos>", BARE).error == "text outside the blocks"


def test_an_empty_judge_block_is_allowed(tiny):
    parsed = parse(tiny, "<judge></judge><think_off><answer>7</answer><eos>")
    assert parsed.formatted and parsed.judge == "" and parsed.decision == 3


ON = "<judge>1</judge><think_on><think>2</think><answer>3</answer>"
OFF = "<judge>1</judge><think_off><answer>3</answer>"


@pytest.mark.parametrize(
    ("text", "error", "mode"),
    [
        ("<judge>1</judge>" + OFF, "more than one judge block", "off"),
        ("<think_off><answer>3</answer>", "no judge block", "off"),
        ("<judge>1<think_off><answer>3</answer>", "the judge block is not closed", "off"),
        ("1</judge><think_off><answer>3</answer>", "no judge block", "off"),
        ("<judge>1</judge><answer>3</answer>", "no mode marker", None),
        ("<judge>1</judge><think_on><think_off><answer>3</answer>", "more than one mode marker", None),
        ("<judge>1</judge><think_off><think_off><answer>3</answer>", "more than one mode marker", None),
        ("<judge>1</judge><think_off><think>2</think><answer>3</answer>", "a think block in think-off", "off"),
        ("<judge>1</judge><think_off>2</think><answer>3</answer>", "a think block in think-off", "off"),
        ("<judge>1</judge><think_on><answer>3</answer>", "no think block", "on"),
        ("<judge>1</judge><think_on><think>2<answer>3</answer>", "the think block is not closed", "on"),
        ("<judge>1</judge><think_on><think>2</think>3", "no answer block", "on"),
        ("<judge>1</judge><think_on><answer>3</answer><think>2</think>", "blocks out of order", "on"),
        ("<think_off><judge>1</judge><answer>3</answer>", "blocks out of order", "off"),
        ("<judge><think_off>1</judge><answer>3</answer>", "blocks out of order", "off"),
        ("<judge>1</judge><think_on><think>2<answer>3</answer></think>", "blocks out of order", "on"),
        ("<judge>1</judge><think_off></answer>3<answer>", "blocks out of order", "off"),
        (OFF + "<answer>4</answer>", "more than one answer block", "off"),
        ("<judge>1</judge><think_off><answer><answer>3</answer>", "more than one answer block", "off"),
        (ON[:-9] + "</think>" + ON[-9:], "more than one think block", "on"),
        ("1" + OFF, "text outside the blocks", "off"),
        ("<judge>1</judge>2<think_off><answer>3</answer>", "text outside the blocks", "off"),
        ("<judge>1</judge><think_off>2<answer>3</answer>", "text outside the blocks", "off"),
        (ON.replace("</think>", "</think>4"), "text outside the blocks", "on"),
        (OFF + "4", "text outside the blocks", "off"),
        ("<judge>1</judge><think_off><answer></answer>", "empty answer", "off"),
        ("<judge>1</judge><think_off><answer>", "empty answer", "off"),
        ("", "no mode marker", None),
        ("12345", "no mode marker", None),
    ],
)
def test_what_is_malformed_has_no_answer(tiny, byte_level, text, error, mode):
    for tokenizer in (tiny, byte_level):
        parsed = parse(tokenizer, text + "<eos>")
        assert (parsed.error, parsed.mode) == (error, mode)
        assert not parsed.formatted and (parsed.judge, parsed.think, parsed.answer) == (None, None, None)


def test_end_of_text_closes_the_answer_and_the_length_limit_does_not(tiny):
    ended = parse(tiny, "<judge>1</judge><think_off><answer>34<eos>")
    assert ended.formatted and ended.answer == "34" and ended.spans["answer"] == (4, 7)
    for text in ("<judge>1</judge><think_off><answer>34", "<judge>1", "<judge>1</judge><think_on><think>2", "", OFF + "4"):
        cut = parse(tiny, text)
        assert cut.error == CUT and cut.answer is None
    assert parse(tiny, OFF).answer == "3"  # whole, though the limit came with its last tag
    assert parse(tiny, OFF, finished=False).answer == "3"
    assert parse(tiny, "<judge>1</judge><think_off><answer>34", finished=False).error == CUT


def test_unclosed_thinking_is_counted_as_thinking(tiny):
    cut = parse(tiny, "<judge>1</judge><think_on><think>2345")
    assert (cut.mode, cut.decision, cut.think_tokens, cut.answer_tokens) == ("on", 4, 5, 0)


def test_padding_may_follow_end_of_text_and_tokens_may_not(tiny):
    padded = parse(tiny, OFF + "<eos><pad><pad><pad>")
    assert padded.formatted and padded.answer == "3" and padded.answer_tokens == 7
    assert parse(tiny, OFF + "<eos>5").error == "tokens after the end of text"
    assert parse(tiny, "<judge>1</judge><think_off><answer>3<eos>4</answer>").error == "tokens after the end of text"
    assert parse(tiny, OFF + "<bos><eos>").error == "text outside the blocks"


def test_end_of_text_by_another_name(byte_level):
    text = "<judge>a</judge><think_off><answer>b"
    assert parse(byte_level, text + "<end>").error == CUT
    named = parse(byte_level, text + "<end>", finished=True)
    assert named.formatted and named.answer == "b"
    assert parse(byte_level, text + "<end><pad><pad>", finished=True).answer == "b"


def test_white_space_may_stand_between_the_blocks(byte_level):
    parsed = parse(byte_level, "\n<judge>a</judge>\n <think_on>\n<think>b\n</think>\n\n<answer> c </answer>\n<eos>")
    assert parsed.formatted and (parsed.judge, parsed.think, parsed.answer) == ("a", "b\n", " c ")


def test_tags_of_several_tokens_that_share_tokens_with_text(byte_level):
    text = TEMPLATE.render("on", "5\u00e9\u65e5", judge="x\u00e9", think="\U0001f600") + "<eos>"
    ids = ids_of(byte_level, text)
    words = [byte_level.decode([i]) for i in ids]
    assert "><" in words and ">5" in words and max(map(len, words)) < 6  # the case that is meant
    assert sum("\ufffd" in word for word in words) >= 6
    parsed = adds_up(TEMPLATE.parse(ids, byte_level), ids)
    assert (parsed.judge, parsed.think, parsed.answer) == ("x\u00e9", "\U0001f600", "5\u00e9\u65e5")
    at = {name: byte_level.decode(ids[slice(*span)]) for name, span in parsed.spans.items()}
    assert at["judge"] == "<judge>x\u00e9</judge><"  # a token belongs to the block in which it begins
    assert at["mode"] == "think_on><"
    assert at["think"] == "think>\U0001f600</think><"
    assert at["answer"] == "answer>5\u00e9\u65e5</answer>"
    assert [parsed.spans[name][0] for name in ("mode", "think", "answer")] == [
        parsed.spans[name][1] for name in ("judge", "mode", "think")
    ]
    assert parsed.decision == parsed.spans["mode"][1]


def test_a_token_that_ends_a_tag_and_begins_a_character(byte_level):
    ids = ids_of(byte_level, "<answer>\u00e8</answer>")
    straddling = byte_level.convert_ids_to_tokens(ids).index(">\u00c3")  # byte-level BPE's sign for the byte C3
    text, starts = token_starts(ids, byte_level)
    assert text == "<answer>\u00e8</answer>" and starts == sorted(starts)
    pieces = cut_at_tags(ids, byte_level, TEMPLATE.tags)
    assert [piece.text for piece in pieces] == ["<answer>", "\u00e8", "</answer>"]
    assert pieces[0].end == pieces[1].start == straddling + 1


def test_bytes_that_are_no_character_are_read_as_the_tokenizer_reads_them(byte_level):
    rng = random.Random(0)
    for _ in range(30):
        ids = [rng.randrange(3, len(byte_level)) for _ in range(60)]
        text, starts = token_starts(ids, byte_level)
        assert text == byte_level.decode(ids) and len(starts) == 60 and starts == sorted(starts)


def test_any_ids_are_read_by_id_as_by_text(tiny, monkeypatch):
    rng = random.Random(1)
    names = [*TEMPLATE.tags, "1", "2", "wait ", "<bos>"]
    cases = [[tiny.convert_tokens_to_ids(rng.choice(names)) for _ in range(rng.randrange(12))] for _ in range(200)]
    by_id = [TEMPLATE.parse(ids, tiny, True) for ids in cases]
    monkeypatch.setattr("swift_rm.hipo.response.token_text.single_token", lambda *_: None)
    assert by_id == [TEMPLATE.parse(ids, tiny, True) for ids in cases]


def test_a_tag_spelled_in_several_tokens_is_a_tag_where_it_is_also_one_token(byte_level):
    import copy

    extended = copy.deepcopy(byte_level)
    extended.add_tokens(list(TEMPLATE.tags))
    spelled = ids_of(byte_level, "<answer>")
    ids = [*ids_of(extended, "<judge></judge><think_off><answer>1"), *spelled, *ids_of(extended, "2</answer><eos>")]
    assert TEMPLATE.parse(ids, extended).error == "more than one answer block"


_INNER = "((?:(?!</?(?:judge|think|think_on|think_off|answer)>).)*)"
_FORM = re.compile(
    rf"<judge>{_INNER}</judge>(?:<think_on><think>{_INNER}</think>|<think_off>)<answer>{_INNER}(?:</answer>)?", re.DOTALL
)


def test_exactly_what_one_expression_matches_is_well_formed(tiny):
    rng = random.Random(2)
    good = 0
    for _ in range(3000):
        parts = re.findall("<[^>]+>|[0-9]+", rng.choice([ON, OFF]))
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(parts))
            parts[at : at + rng.randrange(2)] = [rng.choice([*TEMPLATE.tags, "4", ""])]
        text = "".join(parts)
        match = _FORM.fullmatch(text)
        parsed = parse(tiny, text + "<eos>")
        expected = match is not None and match[3] != ""
        assert parsed.formatted == expected, text
        if expected:
            good += 1
            assert (parsed.judge, parsed.think, parsed.answer) == match.groups()
    assert 300 < good < 2700


def test_long_responses_take_linear_time(byte_level):
    text = "<judge>a</judge><think_on><think>" + "\u65e5<5>x" * 3000
    ids = ids_of(byte_level, text)
    started = time.perf_counter()
    parsed = adds_up(TEMPLATE.parse(ids, byte_level), ids)
    assert len(ids) > 15_000 and parsed.error == CUT and time.perf_counter() - started < 5
    replaced = [byte_level.convert_tokens_to_ids("\u00c3")] * 5000  # 5000 first bytes and never a second
    assert TEMPLATE.parse(replaced, byte_level).error == CUT and time.perf_counter() - started < 8


def test_ids_that_the_tokenizer_does_not_have(tiny):
    assert parse(tiny, OFF + "<eos>").formatted
    assert TEMPLATE.parse([*ids_of(tiny, OFF), 63], tiny, True).answer_tokens == 4


def test_what_cannot_be_rendered_is_refused():
    with pytest.raises(ValueError, match="think-on and a think block missing"):
        TEMPLATE.render("on", "5")
    with pytest.raises(ValueError, match="think-off and a think block given"):
        TEMPLATE.render("off", "5", think="2")
    with pytest.raises(ValueError, match=r"the judge text holds the tag '</judge>': 'a</judge>'"):
        TEMPLATE.render("off", "5", judge="a</judge>")
    with pytest.raises(ValueError, match="the answer is empty"):
        TEMPLATE.render("off", " \n")
    with pytest.raises(ValueError, match="no judge block to write '9-2'"):
        BARE.render("off", "5", judge="9-2")
    with pytest.raises(ValueError, match="'on' or 'off', got 'maybe'"):
        TEMPLATE.render("maybe", "5")


def test_tags_of_ones_own(byte_level):
    own = Template(("[J]", "[/J]"), "[ON]", "[OFF]", ("[T]", "[/T]"), ("[A]", "[/A]"))
    parsed = parse(byte_level, own.render("on", "<answer>", judge="j", think="t") + "<eos>", own)
    assert parsed.formatted and parsed.answer == "<answer>"
    with pytest.raises(ValueError, match="in no other, got '<think'"):
        Template(on="<think")
    with pytest.raises(ValueError, match="in no other"):
        Template(on="<a>", off="<a>")
    with pytest.raises(ValueError, match="in no other, got ''"):
        Template(on="")
