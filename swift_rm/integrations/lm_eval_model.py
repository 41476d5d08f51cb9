"""lm-evaluation-harness's own model class with the Best-of-N engine as its generator: responses carry their rewards."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from swift_rm.integrations.candidate_sampler import CandidateSampler
from swift_rm.integrations.scored_text import ScoredText
from swift_rm.models.load import TINY, TINY_REWARD, resolve
from swift_rm.reward.reward_model import SwiftRewardModel

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
except ImportError as error:
    raise ImportError('lm-evaluation-harness needs lm-eval: pip install "swift-rm[adapters]"') from error


@register_model("swift-rm")
class SwiftLM(HFLM):  # type: ignore[misc]
    """``--model swift-rm``: HFLM, but each response that it generates is a :class:`ScoredText`; log-likelihoods are HFLM's own.

    ``reward_model`` is a folder, a Hub id, the embedded one or an object. The repeats of a request are decoded together from
    one prompt, ``batch_size`` prompts at a time, drawn as by :func:`swift_rm.decoding.best_of_n` with a seed from ``--seed``.
    Raises ValueError for a reward model of another language model, and for options that HFLM follows and the engine does not.
    """

    def __init__(self, pretrained: Any = TINY, reward_model: Any = TINY_REWARD, **kwargs: Any) -> None:
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(resolve(pretrained) if isinstance(pretrained, str) else pretrained, **kwargs)
        if self.batch_size == "auto" or self.mixed_precision_dtype is not None or isinstance(self.think_end_token, int):
            raise ValueError(
                f"swift-rm takes a number as batch_size (got {self.batch_size!r}), text as think_end_token (got "
                f"{self.think_end_token!r}), and dtype instead of mixed_precision_dtype (got {self.mixed_precision_dtype})"
            )
        rm = SwiftRewardModel.from_pretrained(resolve(reward_model)) if isinstance(reward_model, str) else reward_model
        self.sampler = CandidateSampler(self.model, self.tokenizer, rm.to(self.model.device).eval())

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the response to each request, with its reward, cut at the first of the request's stop sequences."""
        places: dict[tuple[str, str], list[int]] = {}  # of the repeats of a request: those with its settings and its context
        for place, request in enumerate(requests):
            context, settings = request.args
            places.setdefault((repr(settings), context), []).append(place)
        found: dict[int, str] = {}
        order = sorted(places, key=lambda kind: (kind[0], -len(kind[1])))  # what needs most memory comes first
        with tqdm(total=len(requests), desc="best of n", unit="response", disable=disable_tqdm or self.rank != 0) as bar:
            while order:
                part = [kind for kind in order[: self.batch_size] if kind[0] == order[0][0]]
                order = order[len(part) :]
                settings = requests[places[part[0]][0]].args[1]
                drawn = self._draw([context for _, context in part], [len(places[kind]) for kind in part], settings)
                for kind, texts in zip(part, drawn, strict=True):
                    found.update(zip(places[kind], texts, strict=True))
                    for text in texts:
                        self.cache_hook.add_partial("generate_until", (kind[1], settings), text)
                    bar.update(len(texts))
        return [found[place] for place in range(len(requests))]

    def _draw(self, contexts: Sequence[str], counts: Sequence[int], settings: Mapping[str, Any]) -> list[list[ScoredText]]:
        kwargs = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        until, limit = [text for text in kwargs.pop("until") if text], kwargs.pop("max_gen_toks")
        if (room := self.max_length - limit) < 1:
            raise ValueError(f"max_gen_toks={limit} leaves no room for a question: the model's context is {self.max_length}")
        prompts = [self.tok_encode(context) for context in contexts]
        if (longest := max(map(len, prompts))) > room:
            warnings.warn(f"a question of {longest} tokens is cut on its left: there is room for {room}", stacklevel=2)
        drawn = self.sampler.draw(
            [ids[-room:] for ids in prompts], counts, max_new_tokens=limit, batch_size=len(contexts), stop_strings=until or None,
            seed=torch.initial_seed(), **kwargs,
        )  # fmt: skip
        end = self.think_end_token
        return [[ScoredText(postprocess_generated_text(one.text, until, end), one.reward) for one in own] for own in drawn]
