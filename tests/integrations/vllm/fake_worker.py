"""vLLM's worker and its two runners in this process, as far as `RewardWorker` looks at them, with faults that a test plants."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

from swift_rm import SwiftConfig, SwiftRewardModel

WIDTH, LAYERS = 8, 4
HERE = "swift_rm.integrations.vllm"


class FakeWorker:
    """A platform's worker. ``step`` runs what a scheduler asked for; a request's state at position p is ``state(name, p)``."""

    def __init__(self, vllm_config, v2=False):
        self.vllm_config, self.rank, self.device, self.use_v2_model_runner = vllm_config, 0, torch.device("cpu"), v2
        self.model_runner = SimpleNamespace(execute_model_state=None, get_model=FakeModel)
        self.computed, self.prompts = {}, {}

    def load_model(self):
        return None

    def execute_model(self, scheduled):
        return self.compute(scheduled, *self.rows(scheduled))

    def rows(self, scheduled):
        """Return the requests in the batch's order, which of their tokens are computed, and their states."""
        names = sorted(scheduled.num_scheduled_tokens, key=lambda name: (scheduled.num_scheduled_tokens[name], name))
        first = [self.computed[name] for name in names]
        counts = [scheduled.num_scheduled_tokens[name] for name in names]
        for name, count in scheduled.num_scheduled_tokens.items():
            self.computed[name] += count
        return names, first, counts

    def compute(self, scheduled, names, first, counts, padded=2, layers=None, short=0):
        if not names:
            self.model_runner.execute_model_state = None
            return "nothing"
        starts, prompts = np.concatenate([[0], np.cumsum(counts)]), [self.prompts[name] for name in names]
        rows = [state(name, begin + i) for name, begin, count in zip(names, first, counts, strict=True) for i in range(count)]
        hidden = torch.stack([*rows, *[torch.full((WIDTH,), 99.0)] * padded]) if rows else torch.zeros(0, WIDTH)
        hidden = hidden[: len(hidden) - short]
        made = SimpleNamespace(hidden_states=hidden, aux_hidden_states=layers or [hidden / 2])
        runner = self.model_runner
        if self.use_v2_model_runner:
            runner.req_states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([0, *prompts], np.int32)))
            made.input_batch = SimpleNamespace(
                num_reqs=len(names), req_ids=list(names), query_start_loc_np=np.append(starts, starts[-1]).astype(np.int32),
                num_computed_tokens_np=np.array(first, np.int32), idx_mapping_np=np.arange(1, len(names) + 1),
            )  # fmt: skip
        else:
            runner.query_start_loc = SimpleNamespace(np=np.append(starts, starts[-1]).astype(np.int32))
            runner.input_batch = SimpleNamespace(
                num_reqs=len(names), req_ids=[*names, "old"], num_computed_tokens_cpu=np.array([*first, 7], np.int32),
                num_prompt_tokens=np.array([*prompts, 7], np.int32),
            )  # fmt: skip
        runner.execute_model_state = made
        return None

    def step(self, asked, new=(), resumed=(), finished=(), drafted=(), unnamed=0):
        """Run a step of so many tokens of each request: ``new`` ones have a prompt of so many tokens, and maybe some cached."""
        for name, prompt, cached in new:
            self.prompts[name], self.computed[name] = prompt, cached
        for name, computed in dict(resumed).items():
            self.computed[name] = computed
        again = list(dict(resumed))
        begun = [*(one[0] for one in new), *(again if self.use_v2_model_runner else ())]
        scheduled = SimpleNamespace(
            num_scheduled_tokens=dict(asked), total_num_scheduled_tokens=sum(asked.values()) + unnamed,
            finished_req_ids=set(finished),
            scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in begun],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set() if self.use_v2_model_runner else set(again)),
            scheduled_spec_decode_tokens={name: [5] for name in drafted},
        )  # fmt: skip
        return self.execute_model(scheduled)


class FakeModel:
    """A model that shows its layers."""

    def set_aux_hidden_state_layers(self, layers):
        assert layers == (1,)


def state(name, position):
    return torch.cos(torch.arange(WIDTH) * (position + 1) + sum(map(ord, name)))


@contextmanager
def fake_vllm():
    """Let vLLM be these modules while the rooms that import it are imported; yield the room of the worker."""
    rooms = [f"{HERE}.worker.reward_worker", f"{HERE}.worker.logits_processor"]
    made = {
        "vllm": {}, "vllm.envs": {"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": True}, "vllm.v1": {}, "vllm.v1.worker": {},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": FakeWorker}, "vllm.v1.sample": {},
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": object}, "vllm.model_executor": {},
        "vllm.model_executor.models": {}, "vllm.model_executor.models.interfaces": {"supports_eagle3": lambda model: True},
    }  # fmt: skip
    before = {name: sys.modules.pop(name) for name in [*rooms, *made] if name in sys.modules}
    for name, values in made.items():
        sys.modules[name] = module = ModuleType(name)
        module.__dict__.update(values)
        above, _, own = name.rpartition(".")
        if above:
            setattr(sys.modules[above], own, module)
    try:
        yield importlib.import_module(rooms[0])
    finally:
        for name in [*rooms, *made]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def reward_worker(room, folder, v2=False, **own):
    """Return a RewardWorker with a random reward model of layers 1 and the last, and that reward model."""
    torch.manual_seed(1)
    rm = SwiftRewardModel(SwiftConfig(WIDTH, (1, -1), position="generating"))
    torch.nn.init.normal_(rm.head.weight)
    rm.save_pretrained(folder)
    parallel = SimpleNamespace(
        pipeline_parallel_size=1, data_parallel_size=1, prefill_context_parallel_size=1, distributed_executor_backend="mp",
    )  # fmt: skip
    served = SimpleNamespace(
        runner_type="generate", is_diffusion=False, model="m", get_vocab_size=lambda: 40,
        hf_text_config=SimpleNamespace(hidden_size=WIDTH, num_hidden_layers=LAYERS),
    )  # fmt: skip
    config = SimpleNamespace(
        parallel_config=parallel, speculative_config=None, model_config=served, use_v2_model_runner=v2,
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False), compilation_config=SimpleNamespace(mode=0),
        additional_config={"swift_rm": {"reward_model": str(folder), **own}},
    )  # fmt: skip
    worker = room.RewardWorker(config, v2)
    worker.load_model()
    return worker, rm
