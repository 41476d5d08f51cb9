import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swift_rm.gateway.local.incremental_detokenizer import IncrementalDetokenizer, unsettled_tokens
from swift_rm.tokens.stop_text import cut_at_stop_string

TEXTS = [
    "naïve café",
    "日本語のテキスト",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "a\n\n b\t c  d",
    "plain words",
    "\ufffd",
]


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer whose tokens are single bytes, and some that hold the end of one character and the start of the next."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {letter: i for i, letter in enumerate(letters)}, []
    random.seed(0)
    for _ in range(60):
        pair = random.choice(letters), random.choice(letters)
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer like Llama 2's: words with a sign for the space in front, and bytes for what it has no token for."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "c", "▁", "é", "▁the", ".", "\n"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def pieces_of(tokenizer, ids, stop=()):
    """Return what is told token by token, and at last; and the whole text."""
    live = IncrementalDetokenizer(tokenizer, stop, unsettled_tokens(tokenizer))
    text = cut_at_stop_string(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), stop)
    return [live.push(ids[:end]) for end in range(1, len(ids) + 1)] + [live.finish(text)], text


def some_ids(tokenizer, seed):
    random.seed(seed)
    ids = []
    for _ in range(random.randint(1, 8)):
        kind = random.randrange(3)
        if kind == 0:
            ids += random.choices(range(len(tokenizer)), k=random.randint(1, 6))  # mostly no text at all
        elif kind == 1:
            ids += tokenizer(random.choice(TEXTS), add_special_tokens=False)["input_ids"]
        else:
            ids += [tokenizer.eos_token_id]
    return ids


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "tokenizer"])
def test_what_is_told_is_the_text_whatever_the_tokens(kind, request):
    tokenizer = request.getfixturevalue(kind)
    early = 0
    for seed in range(400):
        ids = some_ids(tokenizer, seed)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        begin = random.randrange(len(whole) + 1)
        stop = [one for one in (whole[begin : begin + random.randint(1, 5)], "zzz") if one] if seed % 2 else []
        pieces, text = pieces_of(tokenizer, ids, stop)
        assert "".join(pieces) == text, (seed, ids, stop)
        early += sum(map(len, pieces[:-1]))
    assert early > 1000, "most of it is told before the end"


def test_no_half_character_is_told(byte_level):
    for text in TEXTS[:-1]:
        ids = byte_level(text, add_special_tokens=False)["input_ids"]
        pieces, _ = pieces_of(byte_level, ids)
        assert "".join(pieces[:-1]) == text, "all is told when the last byte is there"
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_word_comes_with_its_space_and_special_tokens_with_nothing(byte_fallback):
    ids = byte_fallback.convert_tokens_to_ids(["▁the", "<eos>", "▁b", "c"])
    assert pieces_of(byte_fallback, ids)[0] == ["the", "", " b", "c", ""]


def test_what_may_begin_a_stop_string_waits(byte_level):
    ids = byte_level.convert_tokens_to_ids(list("x<e<end>y"))
    assert pieces_of(byte_level, ids, ["<end>"])[0] == ["x", "", "", "<e", "", "", "", "", "", ""]
    ids = byte_level.convert_tokens_to_ids(list("ab<en"))
    assert pieces_of(byte_level, ids, ["<end>"])[0] == ["a", "b", "", "", "", "<en"], "what was none is told at the end"


def test_open_ends_are_bytes_and_tokens_that_show_nothing(byte_level, byte_fallback):
    assert unsettled_tokens(byte_fallback) == {*range(257), byte_fallback.eos_token_id}, "0 is the unknown token"
    assert unsettled_tokens(byte_level) == {byte_level.eos_token_id}
