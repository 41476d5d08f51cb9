"""The worker that scores what it samples: vLLM's own worker of this platform, and the head beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from swift_rm_kernels import token_scores
from torch import Tensor
from vllm.platforms import current_platform

from swift_rm.integrations.vllm.worker.kept_scores import KeptScores
from swift_rm.integrations.vllm.worker.logits_processor import bind_logits, use_logits
from swift_rm.integrations.vllm.worker.request_names import asked_names, is_own
from swift_rm.integrations.vllm.worker.sample import score_width
from swift_rm.integrations.vllm.worker.settings import CONFIG_KEY, check_served_model, load_reward_models, refuse_unsupported
from swift_rm.integrations.vllm.worker.shown_layers import ShownLayers
from swift_rm.integrations.vllm.worker.step_counts import StepCounts
from swift_rm.integrations.vllm.worker.step_rows import StepRows, pick, rows_of, rows_of_v2

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
elif current_platform.is_cuda_alike():
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker
else:
    raise ImportError(f"rewards inside vLLM need a CPU, or a GPU of CUDA or ROCm, not {current_platform.device_name!r}")


class RewardWorker(PlatformWorker):  # type: ignore[misc]
    """Score each step's rows where they are computed, and keep the heads' numbers until ``take_scores`` asks for them.

    With tensor parallelism every rank has whole states, and rank 0 scores. Raises ValueError, while vLLM starts, for a reward
    model of another base model, for layers that the model cannot show, and for what :func:`refuse_unsupported` names. A step
    whose rows are not those that were scheduled raises OutOfStep, which ends the engine; a request that is out of step gets a
    reason, no scores.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        refuse_unsupported(vllm_config)
        self._models = load_reward_models(vllm_config.additional_config)
        config = self._models[0].config
        layers = check_served_model(config, vllm_config.model_config)
        self._shown = ShownLayers(config, layers) if config.source == "hidden" else None
        if self._shown is None:
            use_logits(vllm_config)
        else:
            self._shown.check_eager(vllm_config, current_platform.is_cpu())
        # What is compiled depends on the layers, so that they must be part of what vLLM's cache of compiled graphs goes by.
        vllm_config.additional_config[CONFIG_KEY]["layers"] = list(self._shown.inner if self._shown else ())
        super().__init__(vllm_config, *args, **kwargs)
        self._scores_rank = self.rank == 0

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model, and ask it for the layers before anything is compiled or captured."""
        loaded = super().load_model(*args, **kwargs)
        heads = [part for rm in self._models for part in rm.head.to(self.device).split()]
        self._heads = [(weight.detach().float().contiguous(), bias.detach().float().contiguous()) for weight, bias in heads]
        self._kept, self._counts = KeptScores(score_width(*self._models), named=asked_names), StepCounts()
        recording = self._scores_rank and self.vllm_config.additional_config[CONFIG_KEY].get("record")
        self._recorded = KeptScores(self._models[0].config.width) if recording else None
        if self._shown is not None:
            self._shown.ask(self.model_runner, self.model_runner.get_model())
        elif self._scores_rank:
            bind_logits(self.model_runner, self.keep)
        return loaded

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a step, count its rows, and score them."""
        output = super().execute_model(scheduler_output, *args, **kwargs)
        state = self.model_runner.execute_model_state
        if scheduler_output.finished_req_ids:
            self._counts.forget(scheduler_output.finished_req_ids)
        if self._scores_rank and state is not None:
            rows = rows_of_v2(self.model_runner, state.input_batch) if self.use_v2_model_runner else rows_of(self.model_runner)
            states = [] if self._shown is None else self._shown.pick(state.hidden_states, state.aux_hidden_states)
            for name, why in self._counts.check(scheduler_output, rows, states).items():
                self._kept.spoil(asked_names([name])[0], why)
            if states:
                self._score(rows, states)
        if scheduler_output.finished_req_ids:
            self._kept.finish([name for name in asked_names(scheduler_output.finished_req_ids) if not is_own(name)])
        return output

    def _score(self, rows: StepRows, states: Sequence[Tensor]) -> None:
        at, owner, place = rows.produced()
        if len(at):
            self.keep(rows.requests, owner, place, pick(states, at, int(rows.starts[-1])))

    def keep(self, requests: list[str], owner: np.ndarray, place: np.ndarray, states: Sequence[Tensor]) -> None:
        """Score states ``[n, d]`` a layer, or logits ``[n, V]``, and keep what the heads say."""
        if self._recorded is not None:
            self._recorded.add(asked_names(requests), owner, place, torch.cat(list(states), dim=1).float().cpu())
        scores = [token_scores(states, weight, bias) for weight, bias in self._heads]
        self._kept.add(requests, owner, place, scores[0] if len(scores) == 1 else torch.cat(scores, dim=1))

    def take_scores(self, requests: list[str], keep: bool = False) -> list[bytes | str] | None:
        """Return the scores of samples, float32 ``[places, width]`` as bytes, and forget them unless told to keep them.

        A sample whose scores are not those of its tokens has a sentence in their place.
        """
        if not self._scores_rank:
            return None
        scores, faults = self._kept.read(requests), self._kept.faults(requests)
        found = [why or own.tobytes() for own, why in zip(scores, faults, strict=True)]
        if not keep:
            self._kept.forget(requests)
        return found

    def take_states(self, requests: list[str]) -> list[bytes] | None:
        """Return the states by place, float32 ``[places, D]`` as bytes, and forget them; they are kept if ``record`` is set."""
        if self._recorded is None:
            return None
        found = [states.tobytes() for states in self._recorded.read(requests)]
        self._recorded.forget(requests)
        return found

    def keep_at_most(self, finished: int) -> None:
        """Say how many samples that ended are kept for who may ask for them."""
        self._kept.most_finished = finished

    def kept_requests(self) -> int:
        """Return of how many samples scores are kept."""
        return len(self._kept)
