"""A reward model, and the language models of all dtypes that an engine is compared with."""

import copy

import pytest
import torch

from swift_rm import SwiftConfig
from tests.parity.engine_runs import LAYERS, D, random_head


@pytest.fixture(scope="module")
def rm():
    return random_head(SwiftConfig(D, LAYERS))


@pytest.fixture(scope="module")
def models(llama, tokenizer):
    """The model by dtype, as `check_engine` opens it."""
    smaller = copy.deepcopy(llama)
    by_dtype = {"float32": llama, **{name: copy.deepcopy(smaller).to(getattr(torch, name)) for name in ("bfloat16", "float16")}}
    return lambda dtype: (by_dtype[dtype], tokenizer)
