"""llama.cpp's own server, as a process: OpenAI's API for a small Llama folder, converted, on 127.0.0.1.

    python -m benchmarks.api.llama_cpp_server swift_rm/assets/tiny-reasoner         # until Ctrl-C

Needs `pip install xllamacpp gguf`. Everything is computed in float32, so that its log-probabilities are those of transformers.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PLAIN = {"top_k": 0, "min_p": 0}  # what a request has to say so that this server samples plainly
SLOTS = 8  # responses sampled at once: a request's n is no larger
CONTEXT = 512  # tokens of a prompt with its response
KEY = "LLAMA_CPP_KEY"  # variable with the key that requests must bring, if any


@contextmanager
def llama_cpp_server(folder: Path, name: str = "tiny-reasoner", key: str | None = None) -> Iterator[str]:
    """Serve the model of a folder in another process; yield the address that clients are given."""
    environment = {**os.environ, KEY: key or ""}
    command = [sys.executable, __file__, str(folder), "--name", name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("ready "):
                raise RuntimeError(f"the server did not start: {line!r}")
            yield f"{line.split()[1]}/v1"
        finally:
            process.send_signal(signal.SIGTERM)


def parameters(model: Path, name: str) -> Any:
    """Return llama.cpp's settings: everything in float32, plain attention, one context per slot."""
    from xllamacpp import CommonParams, ggml_type, llama_flash_attn_type

    params = CommonParams()
    params.model.path = str(model)
    params.model_alias = {name}
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys = [os.environ[KEY]] if os.environ.get(KEY) else []
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT  # shared out evenly
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = SLOTS + 2
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True
    params.default_template_kwargs = {"enable_thinking": "true"}  # what a template assumes; llama.cpp would say false
    params.ui = False
    params.verbosity = 1  # errors
    return params


def main() -> None:
    """Convert, start the server, wait until it answers, print where, and sleep until a signal ends it."""
    from xllamacpp import Server, __version__

    from benchmarks.api.llama_cpp_file import write_gguf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="tiny-reasoner", help="the model's name in the API")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the converted model is deleted
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        write_gguf(args.folder, model)
        server = Server(parameters(model, args.name))
        try:
            with urllib.request.urlopen(f"{server.listening_address}/health", timeout=30) as answer:
                answer.read()
        except urllib.error.URLError as error:
            raise SystemExit(f"the server does not answer at {server.listening_address}: {error}") from error
        print(f"ready {server.listening_address} model={args.name} llama.cpp={__version__}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
