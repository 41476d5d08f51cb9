"""A classification reward model as the external reward that the rules "rank" and "scale" fuse with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from swift_rm.models.eval_mode import in_eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SequenceClassificationReward:
    """Score responses with a sequence classification model: ``f(prompts, responses)`` returns one reward for each.

    The model reads prompt and response as one conversation through the tokenizer's chat template, or, if that has none, as
    a pair of texts. With one label the reward is its logit; with several it is the log-odds of ``label`` (the last one)
    under their softmax. What is longer than ``max_length`` (what tokenizer and model hold) loses its beginning, or what the
    tokenizer cuts from a pair, with a warning that counts. A model whose configuration names no padding token reads one
    response at a time, with a warning. Raises ValueError for a label that the model does not have, and for prompts given
    as token ids, which are another tokenizer's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label: int | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        labels = model.config.num_labels or 1
        if label is not None and not 0 <= label < labels:
            raise ValueError(f"label {label} is out of range: the model has {labels} labels, 0 to {labels - 1}")
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ValueError(f"batch_size and max_length must be at least 1, got {batch_size} and {max_length}")
        config = model.config.get_text_config()
        limits = (max_length, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        self.model, self.tokenizer = model, tokenizer
        self.label = labels - 1 if label is None else label
        self.max_length = min(limit for limit in limits if limit is not None)
        # The model looks for the last token before its own padding token, which the tokenizer's may differ from.
        pad = getattr(config, "pad_token_id", None)
        self.pad = pad if pad is not None and pad >= 0 else None
        if self.pad is None and batch_size > 1:
            warnings.warn(f"{self._name} names no padding token: it reads one response at a time", stacklevel=2)
        self.batch_size = batch_size if self.pad is not None else 1

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | None = None,
        dtype: str | None = None,
        *,
        label: int | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> SequenceClassificationReward:
        """Load model and tokenizer from a folder or Hub id; ``kwargs`` go to transformers' ``from_pretrained``.

        ``device`` defaults to a GPU if there is one, ``dtype`` to that of the file. Raises ValueError for a model that has
        no trained classification head, and for ``trust_remote_code``: no code from a model's repository is run.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if kwargs.get("trust_remote_code"):
            raise ValueError(f"trust_remote_code=True for {name}: code from a model's repository is not run here")
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype must be one of torch's, such as float32 or bfloat16, got {dtype!r}")
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype or "auto", output_loading_info=True, **kwargs
        )
        if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random numbers
            raise ValueError(f"{name} is no trained classification model: it has no weights for {', '.join(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(name, revision=kwargs.get("revision"))
        model = model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        return cls(model, tokenizer, label=label, batch_size=batch_size, max_length=max_length)

    def __call__(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        """Return one reward per response; ``prompts`` are texts or lists of chat messages."""
        if len(prompts) != len(responses):
            raise ValueError(f"expected as many prompts as responses, got {len(prompts)} and {len(responses)}")
        encoded = [self._encode(i, *pair) for i, pair in enumerate(zip(prompts, responses, strict=True))]
        if cut := sum(was_cut for _, was_cut in encoded):
            warnings.warn(
                f"{cut} of {len(encoded)} responses, with their prompts, are longer than the {self.max_length} tokens that "
                f"{self._name} reads: they were cut",
                stacklevel=2,
            )
        rows = [row for row, _ in encoded]
        rewards: list[float] = []
        with torch.inference_mode(), in_eval_mode(self.model):
            for start in range(0, len(rows), self.batch_size):
                rewards += self._read(rows[start : start + self.batch_size])
        return rewards

    @property
    def _name(self) -> str:
        return str(self.model.name_or_path or type(self.model).__name__)

    def _encode(self, place: int, prompt: Any, response: str) -> tuple[dict[str, list[int]], bool]:
        """Return what the model reads of one response, and whether it had to be cut."""
        is_chat = isinstance(prompt, list | tuple) and len(prompt) > 0 and all(isinstance(one, Mapping) for one in prompt)
        if not isinstance(prompt, str) and not is_chat:
            raise ValueError(f"the external reward model needs prompts as text or messages, but prompt {place} is {prompt!r:.60}")
        if self.tokenizer.chat_template:
            said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            text = self.tokenizer.apply_chat_template([*said, {"role": "assistant", "content": response}], tokenize=False)
            row = dict(self.tokenizer(text, add_special_tokens=False))
            cut = len(row["input_ids"]) > self.max_length
            return {key: values[-self.max_length :] for key, values in row.items()}, cut
        asked = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
        row = dict(self.tokenizer(asked, response))
        cut = len(row["input_ids"]) > self.max_length
        if cut:
            row = dict(self.tokenizer(asked, response, truncation="longest_first", max_length=self.max_length))
        return row, cut

    def _read(self, rows: Sequence[Mapping[str, list[int]]]) -> list[float]:
        """Return the rewards of one batch, padded on the right."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad or 0}
        batch = {
            key: torch.tensor([[*row[key], *[fill.get(key, 0)] * (width - len(row[key]))] for row in rows]) for key in rows[0]
        }
        logits = self.model(
            **{key: values.to(self.model.device) for key, values in batch.items()}
        ).logits.float()  # [rows, labels]
        chosen = logits[:, self.label]
        if logits.shape[1] > 1:
            others = [column for column in range(logits.shape[1]) if column != self.label]
            chosen = chosen - logits[:, others].logsumexp(dim=-1)
        return [float(reward) for reward in chosen]
