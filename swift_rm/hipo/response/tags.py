"""Whether a tokenizer knows a template's tags as single tokens, and how a model is given those that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.hipo.response.template import Template
from swift_rm.hipo.response.token_text import single_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def missing_tags(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """Return the tags that the tokenizer does not write as one token, in the template's order."""
    return tuple(tag for tag in template.tags if _ids(tokenizer, tag) != [single_token(tokenizer, tag)])


def check_tags(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Raise ValueError that names the tags which are no single tokens, and says how to add them."""
    missing = missing_tags(tokenizer, template)
    if missing:
        name = getattr(tokenizer, "name_or_path", "") or "of this model"
        raise ValueError(
            f"the tokenizer {name} has no single token for {', '.join(missing)}: add them, and train on them, with "
            "swift_rm.hipo.response.tags.add_tags(model, tokenizer, template)"
        )


def add_tags(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template) -> int:
    """Give tokenizer and model the tags that they lack, and return how many these are.

    They become tokens that are not special, so that they stay in decoded text. Their rows of the input and output
    embeddings, new or there already as padding of the vocabulary, are the means of the old tokens' rows. With LoRA,
    embeddings have to be among the trained modules (``modules_to_save``) for the tags to be learnt.
    """
    from transformers import AddedToken

    missing = missing_tags(tokenizer, template)
    old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in missing])
    still = missing_tags(tokenizer, template)
    if still:
        raise ValueError(f"the tokenizer cannot write {', '.join(still)} as single tokens")
    new = [int(token) for tag in missing if (token := single_token(tokenizer, tag)) is not None and token >= old]
    if not new:
        return len(missing)
    if max(new) >= len(_embeddings(model)[0]):
        model.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    with torch.no_grad():
        for weight in _embeddings(model):
            weight[new] = weight[:old].float().mean(0).to(weight.dtype)
    return len(missing)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """Return the input embeddings ``[V, d]``, and of the output embeddings the weights ``[V, d]`` and bias ``[V]`` if any."""
    output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = [
        getattr(model.get_input_embeddings(), "weight", None),
        getattr(output, "weight", None),
        getattr(output, "bias", None),
    ]
    if found[1] is found[0]:  # tied
        found[1] = None
    return [one for one in found if isinstance(one, Tensor)]
