"""Best-of-N in Inspect: ``--model swift-rm/NAME``, whose choices carry their rewards, and the solver ``best_of_n``.

Inspect rather than lighteval: lighteval 0.13 is pinned to a latex2sympy2_extended with which math-verify 0.9, the grader of
mathematics here, cannot be installed.
"""

from __future__ import annotations

from swift_rm.selection.rules import check_rule, select
from swift_rm.tasks.answers import find_answer

try:
    from inspect_ai.model import GenerateConfig, ModelAPI, get_model, modelapi
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError as error:
    raise ImportError('Inspect needs inspect-ai: pip install "swift-rm[adapters]"') from error


@modelapi(name="swift-rm")  # type: ignore[untyped-decorator]
def swift_rm() -> type[ModelAPI]:
    """Return the provider; Inspect imports this file whatever model it asks, and only this needs torch."""
    from swift_rm.integrations.inspect_ai_model import SwiftModelAPI

    return SwiftModelAPI


@solver  # type: ignore[untyped-decorator]
def best_of_n(n: int = 16, rule: str = "best") -> Solver:
    """Answer with the best of ``n`` responses, chosen by their rewards, of a model of the provider ``swift-rm``.

    ``rule`` is one of :mod:`swift_rm.selection.rules`. The chosen one is the first of the output's choices, the others follow as
    they were drawn; the sample's metadata has its reward as ``swift_reward`` and its probability of being right as
    ``swift_probability``. Raises ValueError for n < 1, a rule that reads another reward, a model whose choices carry no
    rewards, and tools, which none of that provider can use.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_rule(rule, external=False)  # before anything is sampled

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        output = await get_model().generate(state.messages, tools=state.tools, config=GenerateConfig(num_choices=n))
        metadata = [choice.message.metadata or {} for choice in output.choices]
        if missing := [i for i, one in enumerate(metadata) if "swift_reward" not in one]:
            raise ValueError(f"choice {missing[0]} of {output.model} carries no reward: ask with --model swift-rm/NAME")
        answers = [find_answer(choice.message.text) for choice in output.choices]
        index = select(rule, [one["swift_reward"] for one in metadata], answers).index
        choices = [output.choices[index], *output.choices[:index], *output.choices[index + 1 :]]
        state.output = output.model_copy(update={"choices": choices, "completion": choices[0].message.text})
        state.messages.append(choices[0].message)
        state.metadata.update(metadata[index])
        return state

    return solve
