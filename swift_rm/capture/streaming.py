"""StreamingReward: the rewards of what `generate` is generating, known the moment it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.final_token_pass import FinalTokenPass
from swift_rm.capture.generate_listeners import Generate, GenerateListener
from swift_rm.capture.running_reward import RunningRewards
from swift_rm.capture.step_order import OutOfStep, out_of_step
from swift_rm.models.generation_config import end_tokens_of, refuse_other_decoding, setting
from swift_rm.models.transformers_internals import given_cache, undoes_steps
from swift_rm.reward.head import TokenScores
from swift_rm.reward.identity import check_base_model
from swift_rm.tokens.region import Flag

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


class StreamingReward:
    """Score responses while ``model.generate`` samples them: no second pass, no stored states (SWIFT, arXiv 2505.12225).

    Inside the ``with`` block every row of the latest ``generate`` call has its reward: that of ``score`` on the tokens up
    to and with its end-of-sequence token (in bfloat16 the two differ by up to 1 % of the rewards' spread, as either does
    from float32). What is kept of a row does not grow with its length: three floats. ``stopping_criteria=[stream]`` may be
    given or left out; rows that other criteria or ``stop_strings`` end are counted up to there. The tokenizer is needed for
    a region with a marker and checked against the reward model if given. With ``position="token"`` one more step reads the
    last token's state. ``tokens=True`` keeps gate and reward of every token too. Output logits and log-probabilities, where the
    reward model reads these, are the model's own, before any logits processor; of log-probabilities the state is some more
    floats, and a row that only said its end token has no reward: NaN.

    Raises ValueError for another base model and, in `generate`, for decoding that does not go on row by row: beam search,
    assisted decoding, continuous batching.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rm: SwiftRewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        tokens: bool = False,
    ) -> None:
        check_base_model(rm.config, model, tokenizer)
        self._model, self._tokens = model, tokens
        self._running = RunningRewards(model, rm, tokenizer, keep_tokens=tokens)
        self._last_step = FinalTokenPass(model) if rm.config.position == "token" else None
        self._ends: Tensor | None = None
        self._others: list[Callable[..., Tensor]] = []
        self._active: Tensor | None = None  # [rows]: whose response has not ended
        self._counted: Tensor | None = None  # [rows, seq]: prompts and tokens, up to the last one counted
        self._listening: GenerateListener | None = None

    @property
    def rewards(self) -> Tensor:
        """The rewards of the latest `generate` call's rows, ``[rows]``; RuntimeError before there is one."""
        return self.partial_rewards

    @property
    def partial_rewards(self) -> Tensor:
        """The rewards of what is there so far, ``[rows]``; NaN for a row without a scored token."""
        self._require_started()
        return self._running.rewards()

    @property
    def token_scores(self) -> list[TokenScores]:
        """Gate and reward ``[t]`` of every response token, row by row; RuntimeError without ``tokens=True``."""
        self._require_started()
        if not self._tokens:
            raise RuntimeError("per-token scores are kept only by StreamingReward(..., tokens=True)")
        return self._running.token_scores()

    @property
    def flags(self) -> list[Flag | None]:
        """Why a row's whole response was read instead of the configured region, or None."""
        self._require_started()
        return self._running.flags()

    @property
    def state_bytes(self) -> int:
        """The bytes kept for each row, which do not depend on the length of its response."""
        return self._running.state_bytes()

    def __enter__(self) -> StreamingReward:
        """Attach the hooks and listen to the model's `generate`."""
        self._running.tap.__enter__()
        self._listening = GenerateListener(self._model, self._generate)
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Leave the model as it was found."""
        if self._listening is not None:
            self._listening.stop()
            self._listening = None
        self._running.tap.__exit__(kind, *details)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Count the token just chosen for each row, as a stopping criterion of `generate` that stops nothing by itself."""
        if self._ends is None:
            raise RuntimeError("a StreamingReward counts inside its with block, in the model's own generate")
        if self._active is None:
            self._active = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        chosen, self._counted = input_ids[:, -1], input_ids
        self._running.count(chosen, self._active)
        done = torch.zeros_like(self._active)
        for criterion in self._others:
            done = done | criterion(input_ids, scores, **kwargs)
        self._active = self._active & ~done & ~torch.isin(chosen, self._ends.to(chosen.device))
        if self._last_step is not None:
            self._last_step.input_ids = input_ids
        return done

    def _generate(self, generate: Generate, args: Sequence[Any], settings: dict[str, Any]) -> Any:
        """Run `generate` with this stream among its stopping criteria; the others are asked by the stream."""
        refuse_other_decoding(self._model, settings)
        self._others = [one for one in settings.pop("stopping_criteria", None) or [] if one is not self]
        strings = setting(self._model, settings, "stop_strings")
        if strings is not None:
            from transformers import StopStringCriteria

            if settings.get("tokenizer") is None:
                raise ValueError("stop_strings need the tokenizer: generate(..., stop_strings=..., tokenizer=tokenizer)")
            self._others.append(StopStringCriteria(settings["tokenizer"], strings))
            if "stop_strings" in settings:
                settings["stop_strings"] = None  # asked here, and not once more by `generate`
        self._ends = end_tokens_of(self._model, settings)
        self._running.ended_by(self._ends.tolist())
        self._active = self._counted = None
        self._running.begin()
        self._running.tap.clear()  # a call may start anywhere: within the cache of another one, too
        try:
            with self._last_step or nullcontext():
                out = generate(*args, stopping_criteria=[self], **settings)
            self._check(out, settings)
            if self._last_step is not None:
                held = given_cache(settings) is not None or setting(self._model, settings, "return_dict_in_generate")
                due = self._running.due
                self._last_step.run(due is not None and bool(due.any()), copy_cache=bool(held))
            self._running.close()
            return out
        except OutOfStep:
            self._active = None  # what was counted is no reward; after Ctrl-C, say, it is that of the tokens so far
            raise
        finally:
            self._ends, self._others, self._counted = None, [], None
            self._running.close()

    def _check(self, out: Any, settings: dict[str, Any]) -> None:
        """Raise RuntimeError unless the tokens that were counted are those that came out."""
        sequences, counted = getattr(out, "sequences", out), self._counted
        if not isinstance(sequences, Tensor):
            raise out_of_step("StreamingReward", f"generate returned a {type(sequences).__name__} without token ids")
        if counted is None:
            raise out_of_step("StreamingReward", f"tokens {list(sequences.shape)} came out, and none of them was counted")
        extra = counted.shape[1] - sequences.shape[1]
        if len(counted) != len(sequences) or extra not in ((0, 1) if undoes_steps(sequences.device, settings) else (0,)):
            seen = f"tokens {list(counted.shape)} were counted, prompts included, and {list(sequences.shape)} came out"
            raise out_of_step("StreamingReward", seen)
        if not torch.equal(counted[:, : sequences.shape[1]], sequences.to(counted.device)):
            raise out_of_step("StreamingReward", "the tokens that came out are not those that were counted")

    def _require_started(self) -> None:
        if self._active is None:
            raise RuntimeError("no generate call was seen yet: call model.generate inside the with block")
