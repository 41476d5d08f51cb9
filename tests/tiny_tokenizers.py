"""Tokenizers of single bytes, and of words and bytes as in Llama 2, made here."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

OVERLAP = "\u0124\u00ac\u00e2"  # bytes 82 AC E2: the end of one euro sign and the start of the next


def make_bytewise():
    """A byte-level tokenizer without merges: each token is one byte, but for one that nothing is encoded to."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), OVERLAP]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_sentencepiece():
    """Words with a leading space that the decoder drops in front, and single bytes for everything else, as in Llama 2."""
    pieces = ["\u2581Hello", "\u2581world", "!", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
