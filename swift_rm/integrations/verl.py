"""A reward manager for verl 0.9: rollouts are rewarded from their token ids, read by the model that training started from.

verl finds it by itself (entry point ``swift_rm`` of the group ``verl.plugins``); a run asks for it, and says what it reads, by
``reward.reward_manager.name=swift +reward.reward_kwargs.reward_model=FOLDER``. Run here: verl's reward loop, with Ray, on
rollouts made for it. Not run: training with verl, which needs GPUs and its rollout engines.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from swift_rm.models.load import load_language_model, resolve
from swift_rm.reward.identity import check_base_model
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.score import score

try:
    from verl.experimental.reward_loop.reward_manager import register
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
except ImportError as error:
    raise ImportError(f'rewards for verl need verl 0.9 ({error}): pip install "swift-rm[verl]"') from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN = ("reward_model", "model", "probability", "device", "dtype")


class SwiftRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Reward rollouts by one pass of the base model over prompt and response; verl's reward loop calls this.

    ``reward.reward_kwargs`` has ``reward_model``, a folder or Hub id; ``model``, its base model (default: that of the actor, as
    it is on disk: the policy learns on, this one does not); ``probability`` True for the calibrated probability of being right
    in place of the logit; ``device`` and ``dtype``. Each of the ``reward.num_workers`` workers loads a copy, on the CPU unless
    told: verl gives these workers no GPU of their own, so that ``device=cuda:0`` takes room from what else runs there. Responses
    are read as they are, with the end token if there was one, and what tools answered. Raises ValueError for unknown
    settings, another base model, and a response that has no reward, of which it says why.
    """

    def __init__(self, config: Any, tokenizer: PreTrainedTokenizerBase, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        given: dict[str, Any] = dict(config.reward.get("reward_kwargs") or {})
        if not given.get("reward_model") or not given.keys() <= set(KNOWN):
            raise ValueError(f"reward.reward_kwargs needs reward_model, and may have {', '.join(KNOWN[1:])}, got {given}")
        self.rm = SwiftRewardModel.from_pretrained(resolve(given["reward_model"]))
        base = given.get("model") or config.actor_rollout_ref.model.path
        device, dtype = given.get("device") or "cpu", given.get("dtype")
        self.model, _tokenizer = load_language_model(base, device=device, dtype=dtype, progress=False)
        check_base_model(self.rm.config, self.model, tokenizer)
        self.rm.to(self.model.device)
        self.probability = bool(given.get("probability", False))
        self._one_at_a_time = ThreadPoolExecutor(max_workers=1)  # states are caught inside the model: a pass has it to itself

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of a trajectory's last sequence, with reward and probability to be logged."""
        prompt, response = tokens_of(data)
        work = (self.model, self.tokenizer, self.rm, [prompt], [response])
        (reward,) = await asyncio.get_running_loop().run_in_executor(self._one_at_a_time, score, *work)
        probability = float(self.rm.probability([reward])[0])
        extra = {"swift_reward": reward, "swift_probability": probability}
        return {"reward_score": probability if self.probability else reward, "reward_extra_info": extra}


def tokens_of(data: Any) -> tuple[list[int], list[int]]:
    """Return the ids of prompt and response of the last sequence, without padding.

    Where verl tells their lengths, as it does of one trajectory, both are padded on the right; where it does not, as of a
    batch, prompts may be padded on the left, and the attention mask is that of the prompts beside the responses.
    """
    prompt, response, known = data.batch["prompts"][-1], data.batch["responses"][-1], data.non_tensor_batch
    if "prompt_len" in known:
        return prompt[: int(known["prompt_len"][-1])].tolist(), response[: int(known["response_len"][-1])].tolist()
    mask = data.batch["attention_mask"][-1].bool()
    return prompt[mask[: len(prompt)]].tolist(), response[mask[len(prompt) :]].tolist()


register("swift")(SwiftRewardManager)
