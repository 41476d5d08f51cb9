"""What scoring while generating costs, what Best-of-N costs beside the published flow, and what stopping early saves.

Speed is measured on a random Llama of about 100 M parameters (prompt 512 tokens, 64 new ones, N = 16) and on the tiny
reasoner; what pruning and stopping save, on held-out homework, by replaying the rules of the package on one set of
recorded candidates, so that every rule meets the same ones.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.decoding.pruning_replay import homework_figures
from benchmarks.random_llama import DEVICE, random_llama
from benchmarks.recorder import arguments, finish, paired_ratio
from swift_rm import StreamingReward, SwiftRewardModel, best_of_n
from swift_rm.capture.running_reward import RunningRewards
from swift_rm.decoding.custom_generate import BestOfNDecoding
from swift_rm.decoding.decoding_limits import DecodingLimits
from swift_rm.decoding.loop import PromptBatch, Rows
from swift_rm.models.load import ASSETS, TINY_REWARD, load_language_model
from swift_rm.sampling.generation import left_padded
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tokens.encoding import encode_prompt


def main() -> None:
    """Measure, and print or write the figures."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    model, tokenizer, rm = random_llama(args.quick)
    tiny, tiny_tokenizer = load_language_model(progress=False)
    tiny_rm = SwiftRewardModel.from_pretrained(ASSETS / TINY_REWARD).to(tiny.device)
    prompt_tokens, new_tokens, n = (64, 8, 4) if args.quick else (512, 64, 16)
    prompt = torch.randint(3, 8000, (1, prompt_tokens)).tolist()
    homework = [encode_prompt(tiny_tokenizer, question.prompt) for question in HomeworkTask("test").questions(16)]
    check(model, tokenizer, rm, prompt)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": new_tokens, "pad_token_id": 0}
    large = overhead(model, tokenizer, rm, prompt, n, settings, rounds=1 if args.quick else 3)
    settings_tiny = {"do_sample": True, "top_k": 0, "max_new_tokens": 24 if args.quick else 96, "eos_token_id": None}
    small = overhead(tiny, tiny_tokenizer, tiny_rm, homework[:1], 16, settings_tiny, rounds=2 if args.quick else 10)
    crowd = overhead(tiny, tiny_tokenizer, tiny_rm, homework, 16, settings_tiny, rounds=1 if args.quick else 4)
    flows = end_to_end(model, tokenizer, rm, prompt, n, new_tokens, rounds=1 if args.quick else 3)
    result = {
        "scoring_overhead": large["overhead"],
        "scoring_overhead_range": large["range"],
        "scoring_overhead_tiny_1x16": small["overhead"],
        "scoring_overhead_tiny_1x16_range": small["range"],
        "scoring_overhead_tiny_16x16": crowd["overhead"],
        "scoring_overhead_tiny_16x16_range": crowd["range"],
        "step_seconds": {"llama": large["step"], "tiny_1x16": small["step"], "tiny_16x16": crowd["step"]},
        **flows,
        **state_bytes(args.quick),
        **homework_figures(tiny, tiny_tokenizer, tiny_rm, questions=24 if args.quick else 1000, n=8 if args.quick else 16),
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "n": n,
        "gpu": "measured" if DEVICE == "cuda" else "not run",
    }  # fmt: skip
    finish("engine", args, result)


class NoRewards:
    """Stand in for ``RunningRewards`` in the same loop without scoring: no hooks, no rewards."""

    due = length = None

    def __init__(self) -> None:
        self.tap: Any = nullcontext()
        self._rows = 0

    def ended_by(self, ends: Iterable[int]) -> None:
        """Do nothing."""

    def begin(self) -> None:
        """Do nothing."""

    def latest(self) -> None:
        """Return nothing to go on from."""

    def resume(self, states: None, rows: torch.Tensor, length: None) -> None:
        """Note how many rows begin."""
        self._rows = len(rows)

    def count(self, tokens: torch.Tensor, active: torch.Tensor) -> None:
        """Do nothing."""

    def verify(self) -> None:
        """Do nothing."""

    def select(self, rows: torch.Tensor) -> None:
        """Note how many rows stay."""
        self._rows = len(rows)

    def rewards(self) -> torch.Tensor:
        """Return a reward of 0 for each row."""
        return torch.zeros(self._rows)

    partial = rewards

    def flags(self) -> list[None]:
        """Return no flag for each row."""
        return [None] * self._rows


def overhead(
    model: Any, tokenizer: Any, rm: SwiftRewardModel, prompts: list[list[int]], n: int, settings: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """Run the loop with and without scoring in lockstep, a step of one and then of the other; compare step by step."""
    opened: list[PromptBatch] = []
    ids, mask, _ = left_padded(tokenizer, prompts, model.device)

    def open_with(running: Any) -> PromptBatch:
        def loop(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
                 **model_kwargs: Any) -> Any:  # fmt: skip
            opened.append(
                PromptBatch(model, input_ids, logits_processor, stopping_criteria, generation_config, running, model_kwargs)
            )
            return input_ids

        model.generate(input_ids=ids, attention_mask=mask, custom_generate=loop, **settings)
        return opened.pop()

    with_rewards, without = open_with(RunningRewards(model, rm)), open_with(NoRewards())
    rows = [prompt for prompt in range(len(prompts)) for _ in range(n)]
    ratios, medians, steps = [], [], []
    with torch.no_grad():
        for round_ in range(rounds + 1):
            pair = [Rows(batch, rows, DecodingLimits()) for batch in (with_rewards, without)]
            times: list[tuple[float, float]] = []
            going = True
            while going:
                took = [0.0, 0.0]
                for side in (0, 1) if len(times) % 2 else (1, 0):  # the order alternates
                    batch = (with_rewards, without)[side]
                    with batch.running.tap:
                        synchronise()
                        start = time.perf_counter()
                        if pair[side].choose():
                            pair[side].forward()
                        else:
                            going = False
                        synchronise()
                        took[side] = time.perf_counter() - start
                if going:
                    times.append((took[0], took[1]))
            if round_:  # the first does not count
                ratios += [a / b - 1 for a, b in times]
                medians.append(sum(a for a, _ in times) / sum(b for _, b in times) - 1)
                steps += [b for _, b in times]
    return {
        "overhead": round(statistics.median(ratios), 4),
        "range": [round(min(medians), 4), round(max(medians), 4)],  # of whole rounds
        "step": round(statistics.median(steps), 5),
    }


def end_to_end(
    model: Any, tokenizer: Any, rm: SwiftRewardModel, prompt: list[list[int]], n: int, new_tokens: int, rounds: int
) -> dict[str, Any]:
    """Time ``best_of_n`` beside the published flow and beside its first half, `generate` alone."""
    ids = torch.tensor(prompt, device=model.device)
    mask = torch.ones_like(ids)
    generate_seconds: list[float] = []

    def ours() -> None:
        best_of_n(model, tokenizer, rm, prompt, n=n, max_new_tokens=new_tokens)
        synchronise()

    @torch.inference_mode()
    def published() -> None:
        start = time.perf_counter()
        out = model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n, max_new_tokens=new_tokens, pad_token_id=0
        )
        synchronise()
        generate_seconds.append(time.perf_counter() - start)
        for row in out:  # the language model once more over each response, all its hidden states, then the head
            hidden = torch.cat(model(row[None], output_hidden_states=True).hidden_states, -1)[0, ids.shape[1] - 1 : -1]
            rm(hidden, torch.tensor([0, len(hidden)], device=hidden.device))
        synchronise()

    timed = paired_ratio(ours, published, rounds)
    return {
        "best_of_n_vs_published": round(timed["ratio"], 4),
        "best_of_n_vs_published_range": [round(timed["ratio_low"], 4), round(timed["ratio_high"], 4)],
        "best_of_n_vs_generate": round(timed["seconds"] / statistics.median(generate_seconds[1:]), 4),
        "best_of_n_seconds": round(timed["seconds"], 2),
        "published_seconds": round(timed["seconds_other"], 2),
        "generate_seconds": round(statistics.median(generate_seconds[1:]), 2),
    }


@torch.no_grad()
def state_bytes(quick: bool) -> dict[str, Any]:
    """Count the bytes kept for a candidate at three lengths, beside those of ``generate(output_hidden_states=True)``."""
    model, _, rm = random_llama(quick=True)
    ours, stored = {}, {}
    for length in (8, 16, 32) if quick else (64, 256, 1024):
        settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": True, "pad_token_id": 0}
        ids = torch.ones(1, 8, dtype=torch.long, device=model.device)
        with StreamingReward(model, rm) as stream:
            model.generate(ids, **settings)
        ours[str(length)] = stream.state_bytes
        out = model.generate(ids, output_hidden_states=True, return_dict_in_generate=True, **settings)
        kept = [state[:, -1:] for step in out.hidden_states for state in step]  # of the response: the prompt's last and on
        stored[str(length)] = sum(state.element_size() * state.numel() for state in kept)
        del out, kept
        gc.collect()
    return {"bytes_per_candidate": ours, "stored_bytes_per_candidate": stored}


@torch.inference_mode()
def check(model: Any, tokenizer: Any, rm: SwiftRewardModel, prompt: list[list[int]]) -> None:
    """Refuse to time a loop whose greedy tokens or reward differ from `generate` and the formula."""
    ids = torch.tensor(prompt, device=model.device)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, pad_token_id=0)
    decoding = BestOfNDecoding(rm, n=1)
    got = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, pad_token_id=0, custom_generate=decoding
    )
    hidden = torch.cat(model(got, output_hidden_states=True).hidden_states, -1)[0, ids.shape[1] - 1 : -1]
    z, r = (hidden @ rm.head.weight.T + rm.head.bias).unbind(-1)
    reward = float((z.sigmoid() * r).sum() / z.sigmoid().sum())
    if not torch.equal(expected, got) or abs(reward - decoding.candidates[0][0].reward) > 1e-3 * max(1.0, abs(reward)):
        raise SystemExit(f"the loop gives {got.tolist()}, {decoding.candidates[0][0].reward}; expected {expected}, {reward}")


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
