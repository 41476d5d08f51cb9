"""Run vLLM's offline engine step by step, and fetch its samples' scores from the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from swift_rm.integrations.vllm.versions.version import vllm_name
from swift_rm.integrations.vllm.worker.request_names import new_request_name, sample_names
from swift_rm.integrations.vllm.worker.sample import FINISH_REASONS, Sample

READ_AT_ONCE = 256  # samples


class EngineLoop:
    """Ask a vLLM ``LLM``, whose worker is `RewardWorker`, for samples, and its worker for their scores, ``width`` a state."""

    def __init__(self, llm: Any, width: int) -> None:
        self.llm, self.engine, self._width, self._died = llm, llm.llm_engine, width, False

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, params: Sequence[Any], progress: bool = False
    ) -> list[list[Sample]]:
        """Draw n samples of each prompt by one request each, with its own ``params``; they come with their scores."""
        asked = {new_request_name(): number for number in range(len(prompts))}
        groups = [[Sample(name, number) for name in sample_names(request, n)] for request, number in asked.items()]
        ended: list[Sample] = []
        with self.running(list(asked), n), tqdm(total=len(asked), desc="vLLM", unit="prompt", disable=not progress) as bar:
            for request, number in asked.items():
                self.add(request, prompts[number], params[number])
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    if output.finished and output.request_id in asked:
                        group = groups[asked[output.request_id]]
                        if sorted(one.index for one in output.outputs) != list(range(n)):
                            raise RuntimeError(f"{vllm_name()} returned {len(output.outputs)} samples of a request for {n}")
                        for one in output.outputs:
                            add_output(group[one.index], one)
                        ended += group
                        bar.update()
                if len(ended) >= READ_AT_ONCE:
                    self.read(ended)
                    ended = []
            self.read(ended)
        return groups

    def add(self, request: str, prompt: Sequence[int], params: Any) -> None:
        """Hand a request to the engine, which answers it in the steps to come."""
        (rendered,) = self.engine.renderer.render_cmpl([{"prompt_token_ids": list(prompt)}])
        self.engine.add_request(request, rendered, params)

    def read(self, samples: Sequence[Sample], keep: bool = False) -> None:
        """Give samples their scores as far as they are there; the worker forgets them unless told to keep them.

        Raises RuntimeError if they are not those of its tokens, so that no reward should be made of them.
        """
        lacking = {sample.name: sample for sample in samples if not sample.whole}
        if not lacking:
            return
        found = self.ask("take_scores", list(lacking), keep)
        for sample, scores in zip(lacking.values(), found, strict=True):
            sample.give(scores, self._width)
            sample.whole = not keep
            if sample.fault is not None:
                raise RuntimeError(sample.fault)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what the worker that scores answers to a call."""
        answers = self.llm.collective_rpc(method, args=arguments)
        return next(answer for answer in answers if answer is not None)

    @contextmanager
    def running(self, requests: Sequence[str], n: int = 1) -> Iterator[None]:
        """Leave nothing of these requests for ``n`` samples behind; raise RuntimeError, in one sentence, if the engine dies."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._died:
            raise RuntimeError("vLLM's engine has died: open the LLM again")
        if self.engine.has_unfinished_requests():
            raise ValueError("the LLM has requests of others that are not done: wait_for_completion() first")
        try:
            yield
        except EngineDeadError as error:
            self._died = True
            raise RuntimeError(f"vLLM's engine died with {len(requests)} requests under way: its own log says why") from error
        except BaseException as error:
            self.engine.abort_request(list(requests))
            self.ask("take_scores", [name for request in requests for name in sample_names(request, n)])
            if isinstance(error, VLLMValidationError):
                raise ValueError(str(error)) from error
            raise


def add_output(sample: Sample, output: Any) -> None:
    """Add what one output of vLLM brings to a sample: all its tokens, or those that are new."""
    sample.token_ids.extend(output.token_ids)
    if output.cumulative_logprob is not None:
        sample.logprob = output.cumulative_logprob
    if output.finish_reason is not None:
        sample.finish_reason = FINISH_REASONS.get(output.finish_reason, "cancelled")
