"""The tiny reasoner as a model: made untrained, grown from a trained one, watched while it learns, saved."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from graded_corpus import Lesson
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


def new_model(architecture: str, layers: int, width: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make the untrained model; embeddings start larger than usual, which the drills need to get going."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def grown(model: PreTrainedModel, layers: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a Llama with so many more layers, spread among the old, and the tokenizer's vocabulary.

    The new layers' output projections are zero, so that it answers as before until it is trained; embeddings of new tokens
    are random, as large as the old.
    """
    config, old = copy.deepcopy(model.config), model.config.num_hidden_layers
    config.num_hidden_layers, config.vocab_size = old + layers, len(tokenizer)
    bigger = AutoModelForCausalLM.from_config(config)
    places = [round((i + 1) * old / layers) + i for i in range(layers)]
    kept = [i for i in range(old + layers) if i not in places]
    for place, layer in zip(kept, model.model.layers, strict=True):
        bigger.model.layers[place].load_state_dict(layer.state_dict())
    for place in places:
        bigger.model.layers[place].self_attn.o_proj.weight.zero_()
        bigger.model.layers[place].mlp.down_proj.weight.zero_()
    bigger.model.norm.load_state_dict(model.model.norm.state_dict())
    known, table = model.get_input_embeddings().weight, bigger.get_input_embeddings().weight
    table.normal_(0, float(known.std()))
    table[: len(known)] = known
    return bigger


class Progress:
    """Count how often the model prefers the true mark, in each world: in drills, after steps of attempts, as the final grade."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, lessons: Mapping[str, Lesson]) -> None:
        names = ["<right>", "<wrong>", "<marked>", "<eos>"]
        self.right, self.wrong, self.marked, self.end = tokenizer.convert_tokens_to_ids(names)
        self.letters = {name: torch.zeros(len(tokenizer), dtype=torch.bool) for name in lessons}
        for name, lesson in lessons.items():
            self.letters[name][tokenizer.convert_tokens_to_ids(list(lesson.letters))] = True
        self.flush()

    def add(self, ids: Tensor, logits: Tensor, loss: float) -> None:
        """Take one batch."""
        target = ids[:, 1:]
        mark = (target == self.right) | (target == self.wrong)
        hit = (logits[..., self.right] > logits[..., self.wrong]) == (target == self.right)
        drill, grade = mark & (ids[:, 1] == self.marked)[:, None], mark & (ids[:, :-1] == self.end)
        for world, letters in self.letters.items():
            here = letters.to(ids.device)[ids].any(1)[:, None]
            for name, which in (("drill", drill), ("step", mark & ~drill & ~grade), ("grade", grade)):
                self.hits[world][name][0] += int(hit[which & here].sum())
                self.hits[world][name][1] += int((which & here).sum())
        self.losses.append(loss)

    def known(self) -> float:
        """Return the share of drills' marks told right since the last flush, in the world where it is least."""
        return min(hits["drill"][0] / max(1, hits["drill"][1]) for hits in self.hits.values())

    def flush(self) -> str:
        """Return the figures since the last call."""
        text = ""
        if getattr(self, "losses", None):
            marks = {
                world: {name: round(hits / count, 4) for name, (hits, count) in counts.items() if count}
                for world, counts in self.hits.items()
            }
            text = f"loss {sum(self.losses) / len(self.losses):.4f} marks right {json.dumps(marks)}"
        self.hits = {world: defaultdict[str, list[int]](lambda: [0, 0]) for world in self.letters}
        self.losses: list[float] = []
        return text


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
