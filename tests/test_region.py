import pytest

from swift_rm.region import Region, find_region


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("marker", ["</think>", "42, </think>", "=42"])
def test_the_region_starts_after_the_marker_however_many_tokens_it_spans(tokenizer, marker):
    text = "<think>27+15=42, </think><answer>42</answer><eos>"
    region = find_region(ids(tokenizer, text), marker, tokenizer)
    assert region.flag is None
    assert tokenizer.decode(ids(tokenizer, text)[region.start :]) == text[text.index(marker) + len(marker) :]


def test_the_first_of_several_markers_counts(tokenizer):
    tokens = ids(tokenizer, "<think></think>1</think>2")
    assert find_region(tokens, "</think>", tokenizer).start == 2


def test_a_marker_within_a_token_ends_with_that_token(tokenizer):
    tokens = ids(tokenizer, "so 1")  # "so " is one token
    assert find_region(tokens, "s", tokenizer) == Region(1)


@pytest.mark.parametrize(("text", "flag"), [("<think>27", "marker_missing"), ("27</think>", "region_empty")])
def test_where_the_region_cannot_be_had_all_is_read_and_flagged(tokenizer, text, flag):
    assert find_region(ids(tokenizer, text), "</think>", tokenizer) == Region(0, flag)


def test_without_marker_all_is_read_and_no_tokenizer_is_needed(tokenizer):
    assert find_region([1, 2], None, None) == Region(0)
    with pytest.raises(ValueError, match="region 'after:x' needs the tokenizer"):
        find_region([1, 2], "x", None)
