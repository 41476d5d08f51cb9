"""Stop samples early in vLLM: those whose reward so far is hopeless are aborted while the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from swift_rm.decoding.pruning import Prune
from swift_rm.integrations.vllm.offline.engine_loop import READ_AT_ONCE, EngineLoop, add_output
from swift_rm.integrations.vllm.worker.request_names import new_request_name
from swift_rm.integrations.vllm.worker.sample import Sample, first_scored_place, sample_rewards, score_width
from swift_rm.reward.reward_model import SwiftRewardModel


@dataclass
class _QuestionSamples:
    samples: list[Sample] = field(default_factory=list)
    checked: int = 0  # the length up to which the rule was asked

    def standing(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.finish_reason != "pruned"]


class EarlyStop:
    """Draw samples, each by a request of its own, and abort those that ``rule`` drops.

    The rule is asked at the lengths that it names, with the rewards of so many tokens, once all of a question's samples are so
    long or done, and what it says is done to samples that have gone on, or even ended, meanwhile: what is dropped does not
    depend on how vLLM schedules, and is what the package's own engine drops; but a few tokens more are spent.
    ``guide`` is the reward model it goes by, whose numbers follow ``rm``'s among the scores.
    """

    def __init__(
        self, loop: EngineLoop, rm: SwiftRewardModel, tokenizer: Any, rule: Prune, guide: SwiftRewardModel | None = None
    ) -> None:
        self._loop, self._tokenizer, self._rule = loop, tokenizer, rule
        self._by, self._column = (rm, 0) if guide is None else (guide, score_width(rm))

    def sample(
        self, prompts: Sequence[Sequence[int]], params: Sequence[Sequence[Any]], progress: bool = False
    ) -> list[list[Sample]]:
        """Draw a sample of ``prompts[i]`` for each of ``params[i]``; return them with their scores, prompt by prompt."""
        questions = [_QuestionSamples() for _ in prompts]
        samples: dict[str, Sample] = {}
        for number, settings in enumerate(params):
            for _ in settings:
                sample = Sample(new_request_name(), number)
                samples[sample.name] = sample
                questions[number].samples.append(sample)
        engine, done = self._loop.engine, set[str]()
        ended: list[Sample] = []
        with self._loop.running(list(samples)), tqdm(total=len(samples), desc="vLLM", disable=not progress) as bar:
            for number, question in enumerate(questions):
                for sample, own in zip(question.samples, params[number], strict=True):
                    self._loop.add(sample.name, prompts[number], own)
            while engine.has_unfinished_requests():
                grown = []
                for output in engine.step():
                    told = samples.get(output.request_id)
                    if told is not None and told.finish_reason is None:
                        add_output(told, output.outputs[0])
                        grown.append(told)
                dropped = self._hopeless([questions[number] for number in sorted({sample.prompt for sample in grown})])
                if dropped:
                    engine.abort_request([sample.name for sample in dropped])
                ended += [sample for sample in grown if sample.finish_reason is not None] + dropped
                done.update(sample.name for sample in ended)
                bar.update(len(done) - bar.n)
                if len(ended) >= READ_AT_ONCE:
                    self._loop.read(ended)
                    ended = []
            self._loop.read(ended)
        return [question.samples for question in questions]

    def _hopeless(self, questions: Sequence[_QuestionSamples]) -> list[Sample]:
        """Ask the rule about each question whose samples have all reached the next length it checks."""
        due = [(question, length) for question in questions for length in self._due(question)]
        if not due:
            return []
        asked = {id(question): question for question, _ in due}.values()
        self._loop.read([one for question in asked for one in question.standing() if not one.whole], keep=True)
        dropped: list[Sample] = []
        for question, length in due:
            ended = [s for s in question.standing() if s.finish_reason is not None and self._length(s) <= length]
            running = [s for s in question.standing() if s not in ended]
            if not running:
                continue
            rewards, finished = ([reward for reward, _ in self._rewards(*of)] for of in ((running, length), (ended, None)))
            pruned = len(question.samples) - len(running) - len(ended)
            hopeless = self._rule.hopeless(length, rewards, finished, pruned)
            for sample, drop in zip(running, hopeless, strict=True):
                if drop:
                    sample.finish_reason = "pruned"
                    dropped.append(sample)
        return dropped

    def _length(self, sample: Sample) -> int:
        """Return how many tokens have a score by now, of those that vLLM has told of."""
        return len(sample.token_ids) - first_scored_place(self._by)

    def _due(self, question: _QuestionSamples) -> list[int]:
        """Return the lengths, in scored tokens, to ask the rule about now."""
        going_on = [self._length(sample) for sample in question.samples if sample.finish_reason is None]
        reached = min(going_on) if going_on else max(self._length(sample) for sample in question.samples)
        lengths = [length for length in range(question.checked + 1, reached + 1) if self._rule.checks(length)]
        question.checked = max(question.checked, reached)
        return lengths

    def _rewards(self, samples: Sequence[Sample], upto: int | None) -> list[tuple[float, Any]]:
        return sample_rewards(self._by, self._tokenizer, samples, upto=upto, column=self._column)
