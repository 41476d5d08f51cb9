"""Rewards inside vLLM: how far from transformers', what they cost, how much leaves the worker. Made by ``make test-vllm``.

Two engines answer the same requests with the same seeds in turn, one with vLLM's own worker and one with the worker that
scores; the times with rewards hold everything until the scores are in the caller's hands. ``overhead_token`` is that of a
reward model that reads the state at a response's last token, for which vLLM is asked once more. A ratio is the median of the
rounds. ``stock_bytes_per_response`` are the files that vLLM's own extraction writes of the same two layers: it does not run on
a CPU (it wants pinned memory), so that they are made here, of as many tokens, in its format.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.recorder import RESULTS, arguments, finish, paired_ratio
from benchmarks.vllm.cases import LAYERS, Case, random_llama, reward_model, tiny_llama
from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.offline.sample_requests import SampleSettings, read_last
from swift_rm.integrations.vllm.versions.version import check_version
from swift_rm.integrations.vllm.worker.sample import Sample, score_width
from swift_rm.integrations.vllm.worker.settings import WORKER_CLASS, additional_config, load_reward_models
from swift_rm.models.load import TINY, TINY_REWARD, load_language_model
from swift_rm.tasks.homework import HomeworkTask
from tests.integrations.vllm.real_engine import close, differences, opened
from tests.integrations.vllm.real_server import serve, worst_difference


def main() -> None:
    """Compare and count; print or write the figures."""
    args = arguments(__doc__)
    if not args.quick:
        args.out = args.out or RESULTS / "vllm.json"
    result: dict[str, Any] = {
        "vllm_version": check_version(),
        "worst_reward_difference": worst_differences(8 if args.quick else 64),
    }
    with tempfile.TemporaryDirectory() as folder:
        cases = [tiny_llama(Path(folder)), random_llama(Path(folder), args.quick)]
        measured = {
            mode: {case.name: compare(case, mode == "eager", 2 if args.quick else 11) for case in cases}
            for mode in ("eager", "compiled")
        }
    for mode, by_case in measured.items():
        result[f"overhead_{mode}"] = {name: figures["generating"]["ratio"] for name, figures in by_case.items()}
        result[f"overhead_token_{mode}"] = {name: figures["token"]["ratio"] for name, figures in by_case.items()}
    tiny = measured["eager"][TINY]
    result |= {name: tiny[name] for name in ("bytes_per_response", "stock_bytes_per_response")}
    finish("vllm_rewards", args, {**result, "layers": LAYERS, "measured": measured})


def worst_differences(questions: int) -> dict[str, float]:
    """Return the largest differences from transformers' rewards on the same token ids: offline, eager and compiled; served."""
    model, tokenizer = load_language_model(TINY, progress=False)
    prompts = [question.prompt for question in HomeworkTask("test").questions(questions, seed=3)]
    found = {}
    for mode in ("eager", "compiled"):
        with opened(TINY, TINY_REWARD, enforce_eager=mode == "eager") as best:
            results = best(prompts, n=8, max_new_tokens=96)
            found[mode] = max(differences(model, tokenizer, best.rm, results))
    with serve() as server:
        server.wait()
        found["server"] = worst_difference(server.url, count=questions)
    return found


def compare(case: Case, eager: bool, rounds: int) -> dict[str, Any]:
    """Time the requests with and without rewards, in turn, for either position of states."""
    found: dict[str, Any] = {"parameters": case.parameters}
    asked = SampleSettings(case.new_tokens, seed=1, logprobs=False, sampling={"ignore_eos": case.fixed})
    params = [asked.together(case.n, number) for number in range(len(case.prompts))]
    samples: dict[str, list[Sample]] = {}

    def run(name: str, loop: EngineLoop, last: bool) -> None:
        samples[name] = [sample for group in loop.sample(case.prompts, case.n, params) for sample in group]
        if last:
            read_last(loop, case.prompts, samples[name])

    with ExitStack() as stack:
        plain = stack.enter_context(engine(case, eager))
        for position in ("generating", "token"):
            with engine(case, eager, reward_model(case, position)) as scoring:
                last = position == "token"
                run("with", scoring, last)
                times = paired_ratio(
                    lambda loop=scoring, last=last: run("with", loop, last), lambda: run("without", plain, False), rounds
                )
            if [sample.token_ids for sample in samples["with"]] != [sample.token_ids for sample in samples["without"]]:
                raise RuntimeError("the two engines drew other samples: their times cannot be compared")
            found[position] = times
            if not last:
                found |= counted(case, samples["with"], times["seconds_other"])
    return found


def counted(case: Case, samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Return what was generated, and the bytes that left the worker, and would have as files of states."""
    tokens = sum(len(sample.token_ids) for sample in samples)
    leaving = sum(sample.scores.nbytes for sample in samples if sample.scores is not None)
    return {
        "responses": len(samples), "tokens_per_response": tokens / len(samples), "tokens_per_second_without": tokens / seconds,
        "bytes_per_response": leaving / len(samples), "stock_bytes_per_response": stock_bytes(case, samples),
    }  # fmt: skip


class WithoutScores(EngineLoop):
    """The same loop over vLLM's own worker, which is asked for nothing more."""

    def read(self, samples: Sequence[Sample], keep: bool = False) -> None:
        """Ask for nothing."""


@contextmanager
def engine(case: Case, eager: bool, reward_folder: str | None = None) -> Iterator[EngineLoop]:
    """Open vLLM with its own worker, or with the one that scores by a reward model, and close it."""
    from vllm import LLM

    told = {} if reward_folder is None else additional_config(reward_folder)
    worker = {} if reward_folder is None else {"worker_cls": WORKER_CLASS, "additional_config": told}
    llm = LLM(case.model, enforce_eager=eager, **case.engine, **worker)
    try:
        yield WithoutScores(llm, 0) if reward_folder is None else EngineLoop(llm, score_width(*load_reward_models(told)))
    finally:
        close(llm)


def stock_bytes(case: Case, samples: Sequence[Sample]) -> float:
    """Return the mean size of the files of vLLM's own extraction for these samples: states of every token but the last."""
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for sample in samples[:: max(1, len(samples) // 64)]:
            tokens = len(case.prompts[sample.prompt]) + len(sample.token_ids) - 1
            file = Path(folder) / "states.safetensors"
            states = torch.zeros(tokens, len(LAYERS), case.width, dtype=getattr(torch, case.engine["dtype"]))
            save_file({"hidden_states": states, "token_ids": torch.zeros(tokens, dtype=torch.long)}, file)
            sizes.append(file.stat().st_size)
    return sum(sizes) / len(sizes)


if __name__ == "__main__":
    main()
