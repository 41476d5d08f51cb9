"""Which implementations of the kernels the tests run here: Triton's in its interpreter where there is no GPU."""

from importlib.util import find_spec

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs triton")
needs_numba = pytest.mark.skipif(not find_spec("numba"), reason="needs numba")
STEP_IMPLS = ["torch", pytest.param("triton", marks=needs_triton)]
POOL_IMPLS = [*STEP_IMPLS, *([pytest.param("numba", marks=needs_numba)] if DEVICE == "cpu" else [])]
