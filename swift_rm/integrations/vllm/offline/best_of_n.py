"""VLLMBestOfN: `best_of_n` with vLLM in the place of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swift_rm.decoding.engine import PromptState
from swift_rm.decoding.pruning import Prune, get_prune
from swift_rm.decoding.rank_decoded import ExternalReward, decode_text, result_of
from swift_rm.integrations.vllm.offline.early_stop import EarlyStop
from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.offline.open_llm import check_llm, open_llm
from swift_rm.integrations.vllm.offline.sample_requests import SampleSettings, check_seed, read_last, token_limit
from swift_rm.integrations.vllm.worker.sample import sample_rewards, score_width
from swift_rm.integrations.vllm.worker.settings import check_served_model, load_reward_models
from swift_rm.records.rollouts import Prompt
from swift_rm.reward.identity import fingerprint
from swift_rm.selection.candidates import BestOfN
from swift_rm.selection.rule_table import DEFAULT_RULE
from swift_rm.selection.rules import check_rule
from swift_rm.tasks.answers import find_answer
from swift_rm.tokens.encoding import encode_prompts


class VLLMBestOfN:
    """Sample with vLLM, score the hidden states in its worker as they are computed, and choose: `best_of_n`'s results.

    ``llm`` is a model's name or folder, for which an ``LLM`` is opened with the further keywords, or an ``LLM`` that was opened
    with ``worker_cls="swift_rm.integrations.vllm.RewardWorker"`` and ``additional_config={"swift_rm": {"reward_model": ...}}``.
    ``guide`` is a second reward model, by which early stopping goes. Chunked prefill, prefix caching, CUDA graphs and
    tensor parallelism stay as vLLM has them; only gate and reward of each token, by head, leave the worker. Not run: a GPU.

    Raises ValueError for another base model, for layers that the model cannot show, and for pipeline or data parallelism and
    speculative decoding; RuntimeError if vLLM's engine dies.
    """

    def __init__(self, llm: Any, reward_model: str | None = None, *, guide: str | None = None, **engine: Any) -> None:
        self.llm = open_llm(llm, reward_model, guide, engine)
        self.tokenizer = self.llm.get_tokenizer()
        self._config = config = check_llm(self.llm)
        self.rm, *guides = load_reward_models(config.additional_config)
        self.guide = guides[0] if guides else None
        check_served_model(self.rm.config, config.model_config, fingerprint(self.tokenizer))
        self._vocabulary = int(config.model_config.get_vocab_size())
        # vLLM answers a request only where there is room for a token: one is asked for the state at a response's last token.
        self._room = int(config.model_config.max_model_len) - (self.rm.config.position == "token")
        self._loop = EngineLoop(self.llm, score_width(self.rm, *guides))

    def __call__(
        self,
        prompts: Sequence[Prompt | Sequence[int]],
        n: int = 16,
        select: str = DEFAULT_RULE,
        prune: Prune | str | None = None,
        *,
        external: ExternalReward | None = None,
        answer: Callable[[str], str | None] = find_answer,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        logprobs: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
        **sampling: Any,
    ) -> list[BestOfN]:
        """Sample ``n`` responses per prompt and choose one by the rule ``select``, as :func:`swift_rm.decoding.best_of_n` does.

        ``sampling`` are settings of vLLM's ``SamplingParams``; unless told otherwise it is plain sampling. ``prune`` aborts
        hopeless samples on their way. Without ``logprobs`` a candidate's ``logprob`` is NaN. With a ``seed`` each sample has
        its own generator, which costs speed on a GPU; without one vLLM's own seed goes. Raises ValueError as `best_of_n`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        check_rule(select, external is not None)
        rule = self._rule(prune)
        encoded = encode_prompts(self.tokenizer, prompts, chat_template_kwargs, self._vocabulary)
        if seed is not None:
            check_seed(self._config, encoded, n)
        ask = SampleSettings(token_limit(encoded, max_new_tokens, self._room), seed, logprobs, sampling)
        if rule is None:
            groups = self._loop.sample(encoded, n, [ask.together(n, i) for i in range(len(encoded))], progress)
        else:
            early = EarlyStop(self._loop, self.rm, self.tokenizer, rule, self.guide)
            groups = early.sample(encoded, [ask.apart(n, i) for i in range(len(encoded))], progress)
        samples = [sample for group in groups for sample in group]
        if self.rm.config.position == "token":
            read_last(self._loop, encoded, samples)
        rewards = sample_rewards(self.rm, self.tokenizer, samples)
        partial = rewards
        if self.guide is not None:
            partial = sample_rewards(self.guide, self.tokenizer, samples, column=score_width(self.rm))
        decoded = [
            sample.decoded(reward, flag, by)
            for sample, (reward, flag), (by, _) in zip(samples, rewards, partial, strict=True)
        ]  # fmt: skip
        results = []
        for number, prompt in enumerate(prompts):
            own = decoded[number * n : (number + 1) * n]
            asked = PromptState(
                encoded[number], candidates=own, tokens=sum(len(one.token_ids) for one in own), started=n, ended="all"
            )
            texts = [decode_text(self.tokenizer, one) for one in own]
            results.append(result_of(self.rm, prompt, asked, texts, n, select, answer, external))
        return results

    def _rule(self, prune: Prune | str | None) -> Prune | None:
        rule = get_prune(prune, self.rm)
        if rule is not None and rule.guide is not None:
            raise ValueError("vLLM's worker must know a rule's guide: pass it as VLLMBestOfN(..., guide=FOLDER), not in the rule")
        return rule
