"""What requests are called inside vLLM: those of this package, and the samples of a request."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

OWN_PREFIX = "swift-"


def asked_names(requests: Iterable[str]) -> list[str]:
    """Return the names under which requests were asked for: vLLM adds ``-<8 hex>``, and sample i of n is ``i_NAME``."""
    import vllm.envs as envs

    return list(requests) if envs.VLLM_DISABLE_REQUEST_ID_RANDOMIZATION else [request[:-9] for request in requests]


def new_request_name() -> str:
    """Return a new name for a request of this package's own, whose asker takes the scores of all its samples or forgets them."""
    return f"{OWN_PREFIX}{uuid.uuid4().hex}"


def is_own(sample: str) -> bool:
    """Tell whether a sample is of such a request."""
    return sample.startswith(OWN_PREFIX) or sample.partition("_")[2].startswith(OWN_PREFIX)


def sample_names(request: str, n: int) -> list[str]:
    """Return the names of the n samples of a request."""
    return [request] if n == 1 else [f"{number}_{request}" for number in range(n)]
