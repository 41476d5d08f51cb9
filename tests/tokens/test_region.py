import pytest

from swift_rm.tokens.region import MarkerWatch, Region, find_region, parse_region
from tests.tiny_tokenizers import make_bytewise, make_sentencepiece


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("marker", ["</think>", "42, </think>", "=42"])
def test_the_region_starts_after_the_marker_however_many_tokens_it_spans(tokenizer, marker):
    text = "<think>27+15=42, </think><answer>42</answer><eos>"
    tokens = ids(tokenizer, text)
    region = find_region(tokens, f"after:{marker}", tokenizer)
    assert region.flag is None
    assert region.tokens == range(region.tokens[0], len(tokens))
    assert tokenizer.decode([tokens[i] for i in region.tokens]) == text[text.index(marker) + len(marker) :]


def test_the_first_of_several_markers_counts(tokenizer):
    tokens = ids(tokenizer, "<think></think>1</think>2")
    assert find_region(tokens, "after:</think>", tokenizer).tokens == range(2, 5)


def test_a_marker_within_a_token_ends_with_that_token(tokenizer):
    tokens = ids(tokenizer, "so 1so ")  # "so " is one token
    assert find_region(tokens, "after:s", tokenizer) == Region(range(1, 3))
    assert find_region(tokens, "steps:s", tokenizer) == Region((0, 2))


@pytest.mark.parametrize(("text", "flag"), [("<think>27", "marker_missing"), ("27</think>", "region_empty")])
def test_where_the_region_cannot_be_had_all_is_read_and_flagged(tokenizer, text, flag):
    tokens = ids(tokenizer, text)
    assert find_region(tokens, "after:</think>", tokenizer) == Region(range(len(tokens)), flag)


def test_without_marker_all_is_read_and_no_tokenizer_is_needed():
    assert find_region([1, 2], "response", None) == Region(range(2))
    for region in ("after:x", "steps:x"):
        with pytest.raises(ValueError, match=f"region '{region}' needs the tokenizer"):
            find_region([1, 2], region, None)


@pytest.mark.parametrize("region", ["", "answer", "after", "after:", "steps:", "Steps:x", "response:x"])
def test_what_is_no_region_is_refused(region):
    with pytest.raises(ValueError, match=f"region must be 'response', .*'steps:<marker>', got '{region}'"):
        parse_region(region)


def test_a_marker_may_hold_anything_a_colon_too():
    assert parse_region("steps:so: ") == ("steps", "so: ")
    assert parse_region("steps:\n\n") == ("steps", "\n\n")


@pytest.mark.parametrize(
    ("text", "marker", "expected"),
    [
        ("<think>27+15=42, 42+1=43, </think>", ", ", [9, 17]),
        ("27+15=42, 42+1=43, ", "=4", [6, 14]),  # spans tokens
        (", 27+15=42", ", ", [0]),  # the first token
        ("27+15", "15", [4]),  # the last token
        ("111211", "11", [1, 2, 5]),  # occurrences overlap
        ("1212121", "121", [2, 4, 6]),
    ],
)
def test_only_the_tokens_that_complete_the_marker_are_read(tokenizer, text, marker, expected):
    tokens = ids(tokenizer, text)
    region = find_region(tokens, f"steps:{marker}", tokenizer)
    assert (list(region.tokens), region.flag) == (expected, None)
    assert list(region.tokens) == by_whole_prefixes(tokenizer, tokens, marker)


def test_no_step_at_all(tokenizer):
    tokens = ids(tokenizer, "27+15")
    assert find_region(tokens, "steps:, ", tokenizer) == Region(range(5), "marker_missing")


def by_whole_prefixes(tokenizer, tokens, marker):
    """The tokens at which the number of occurrences in the whole text so far has grown, by decoding every beginning."""
    counts = [occurrences(tokenizer.decode(tokens[:end]), marker) for end in range(len(tokens) + 1)]
    return [i for i in range(len(tokens)) if counts[i + 1] > max(counts[: i + 1])]


def occurrences(text, marker):
    return sum(text.startswith(marker, at) for at in range(len(text)))


@pytest.mark.parametrize("make", [make_bytewise, make_sentencepiece])
@pytest.mark.parametrize("marker", ["\u65e5", "\u20ac\u20ac", "!\u20ac", "\u20ac!", "o", "\u2022 ", "\u65e5\u672c"])
def test_markers_of_characters_that_span_tokens_among_others_that_do(make, marker):
    text = "\u65e5\u672c\u65e5\u20ac\u20ac\u20ac!\u20ac\u20ac!\u2022\u2022 o\u65e5\u65e5\u672c !\u20ac"
    tokenizer = make()
    tokens = spelled(tokenizer, text)
    expected = by_whole_prefixes(tokenizer, tokens, marker)
    region = find_region(tokens, f"steps:{marker}", tokenizer)
    assert expected
    assert list(region.tokens) == expected
    after = find_region(tokens, f"after:{marker}", tokenizer)
    assert (after.tokens, after.flag) == (
        (range(expected[0] + 1, len(tokens)), None) if expected[0] + 1 < len(tokens) else (range(len(tokens)), "region_empty")
    )


def spelled(tokenizer, text):
    """Token ids of a text, byte by byte where there is no piece."""
    vocabulary = tokenizer.get_vocab()
    if "<0x00>" not in vocabulary:
        return tokenizer(text)["input_ids"]
    return [vocabulary["!"] if c == "!" else vocabulary[f"<0x{b:02X}>"] for c in text for b in (c.encode() if c != "!" else b"!")]


def test_a_growing_response_has_the_steps_of_a_finished_one(tokenizer):
    texts = ["27+15=42, 42+1=43, ", "so 1, so 2", "11111"]
    rows = [ids(tokenizer, text) for text in texts]
    for marker in (", ", "1", "=4", "o "):
        watch, seen = MarkerWatch(f"steps:{marker}", tokenizer, len(rows)), [[] for _ in rows]
        for step in range(max(map(len, rows))):
            active = [step < len(row) for row in rows]
            read = watch.push([row[step] if step < len(row) else 0 for row in rows], active)
            for number, hit in enumerate(read):
                seen[number] += [step] if hit else []
            expected = [find_region(row[: step + 1], f"steps:{marker}", tokenizer) for row in rows]
            assert [steps or list(range(min(step + 1, len(row)))) for steps, row in zip(seen, rows, strict=True)] == [
                list(region.tokens) for region in expected
            ]
            assert watch.found == [region.flag is None for region in expected]


def test_rows_that_are_kept_take_their_windows_along(tokenizer):
    first, second = ids(tokenizer, "=4")
    watch = MarkerWatch("steps:=4", tokenizer, 2)
    watch.push([first, second], [True, True])
    watch.select([1, 0, 0])
    assert watch.push([second] * 3, [True, True, False]) == [False, True, False]
    assert watch.found == [False, True, False]
    assert watch.push([second] * 3, [False, False, True]) == [False, False, True]  # a window of its own
