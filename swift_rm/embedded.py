"""The models that come with the package, and how the command line finds any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASSETS = Path(__file__).parent / "assets"
TINY = "tiny-reasoner"
TINY_2 = "tiny-reasoner-2"  # six layers, knows the rewriting world too
TINY_REWARD = "tiny-reasoner-reward"
TINY_PROGRESS = "tiny-reasoner-progress"  # judges unfinished responses, to guide pruning


def resolve(name: str) -> str:
    """Return the folder of an embedded model by its name, or the name of any other as it is."""
    return str(ASSETS / name) if name in (TINY, TINY_2, TINY_REWARD, TINY_PROGRESS) and not Path(name).exists() else name


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
    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype must be one of torch's, such as float32 or bfloat16, got {dtype!r}")
    path = resolve(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", revision=revision, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    model = model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()  # type: ignore[arg-type]
    return model, tokenizer
