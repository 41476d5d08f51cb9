"""The models that come with the package, and how the command line finds any other."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASSETS = Path(__file__).parents[1] / "assets"
TINY = "tiny-reasoner"
TINY_2 = "tiny-reasoner-2"  # six layers, knows the rewriting world too
TINY_THINKER = "tiny-thinker"  # answers at once as well as it thinks, for HiPO
TINY_REWARD = "tiny-reasoner-reward"
TINY_PROGRESS = "tiny-reasoner-progress"  # judges unfinished responses, to guide pruning
EMBEDDED = (TINY, TINY_2, TINY_THINKER, TINY_REWARD, TINY_PROGRESS)


def resolve(name: str) -> str:
    """Return the folder of an embedded model by its name, or the name of any other as it is."""
    return str(ASSETS / name) if name in EMBEDDED and not Path(name).exists() else name


def load_language_model(
    name: str = TINY,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder, a Hub id, or ``"tiny-reasoner"``, ready to generate.

    ``device`` defaults to a GPU if there is one; ``dtype`` (``"float32"``, ``"bfloat16"``, ...) to that of the file.
    ``progress`` False turns transformers' progress bars off. No code from the model's repository is run.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not progress:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = resolve(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=_dtype(dtype) or "auto", revision=revision, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    try:
        model = model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()  # type: ignore[arg-type]
    except AssertionError as error:  # what a torch without CUDA says of it
        raise RuntimeError(f"the model cannot be put on the device {device!r}: {error}") from error
    return model, tokenizer


def load_outline(
    name: str = TINY, *, dtype: str | None = None, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model's structure and settings without its weights, on torch's ``meta`` device, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    path = resolve(name)
    config = AutoConfig.from_pretrained(path, revision=revision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=_dtype(dtype) or config.dtype)  # type: ignore[no-untyped-call]
    model.name_or_path = str(path)
    with suppress(OSError):  # a model without settings of its own
        model.generation_config = GenerationConfig.from_pretrained(path, revision=revision or "main")
    return model.eval(), AutoTokenizer.from_pretrained(path, revision=revision)


def _dtype(name: str | None) -> Any:
    """Return torch's dtype of this name, or None for None; raise ValueError if there is none such."""
    import torch

    if name is not None and not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"dtype must be one of torch's, such as float32 or bfloat16, got {name!r}")
    return None if name is None else getattr(torch, name)
