"""StateRecorder: the states of what `generate` is sampling, kept step by step at no extra forward pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.capture.final_token_pass import FinalTokenPass
from swift_rm.capture.logits_tap import open_tap
from swift_rm.capture.step_order import StepOrder
from swift_rm.capture.tap import LayerStates
from swift_rm.reward.config import POSITIONS, STATE_SOURCES, Position, StateSource, SwiftConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_POSITIONS: tuple[Position, ...] = ("generating",)


@dataclass(frozen=True)
class RecordingSpec:
    """Which states of a response to keep: of which ``layers``, and for heads of which ``positions``.

    Row i of a response of R tokens is the state after reading the prompt and i response tokens: ``"generating"`` reads
    rows 0 to R - 1, ``"token"`` rows 1 to R, both together rows 0 to R. With the ``source`` ``"logits"`` the states are output
    logits, of the position ``"generating"``. Raises ValueError for no layer or position, or an unknown one, and for
    log-probabilities: their features are made of records, which hold all that they need.
    """

    layers: tuple[int, ...]
    positions: tuple[Position, ...] = DEFAULT_POSITIONS
    source: StateSource = "hidden"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "positions", tuple(self.positions))
        if not self.layers:
            raise ValueError("layers must name at least one layer, got ()")
        if not self.positions or not set(self.positions) <= set(POSITIONS):
            raise ValueError(f"positions must be some of {POSITIONS}, got {self.positions}")
        if self.source == "top_logprobs":
            raise ValueError(
                "the source 'top_logprobs' is not recorded as states: sample with top_logprobs=K, and train on these records"
            )
        if self.source not in STATE_SOURCES or (self.source == "logits" and self.positions != DEFAULT_POSITIONS):
            raise ValueError(f"states of the source {self.source!r} cannot be recorded at the positions {self.positions}")

    @classmethod
    def of(cls, config: SwiftConfig) -> RecordingSpec:
        """Return what a reward model of this configuration reads."""
        return cls(config.layers, (config.position,), config.source)

    def rows(self, length: int) -> range:
        """Return the rows kept of a response of ``length`` tokens."""
        return range("generating" not in self.positions, length + ("token" in self.positions))


class StateRecorder:
    """Keep the states from which `generate` draws each token, inside the ``with`` block, as it makes them.

    One of the stopping criteria of the call (it stops nothing). Of the prompt's forward call only the last state of each
    row is kept, then one a step: ``steps x rows x D`` numbers in all, padding after a row's end included until
    :meth:`packed`. For position ``"token"`` :meth:`finish` makes the one forward call more that shows the state at the
    last token, which `generate` never feeds back. One call of `generate` a recorder. Raises what ``HiddenStateTap`` does
    for a model whose states cannot be read, and RuntimeError where forward calls and tokens do not come in turn.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int],
        positions: Collection[Position] = DEFAULT_POSITIONS,
        source: StateSource = "hidden",
    ) -> None:
        self.recording = RecordingSpec(tuple(layers), tuple(positions), source)
        self._device = model.device
        self._tap = open_tap(model, source, self.recording.layers, keep=False, on_forward=self._see)
        self._order = StepOrder("StateRecorder", self._tap)
        self._last_step = FinalTokenPass(model) if "token" in self.recording.positions else None
        self._steps: list[list[Tensor]] = []  # a step: per layer [rows, 1, d]
        self._latest: list[Tensor] | None = None  # of the latest forward call, until its token is chosen

    def __enter__(self) -> StateRecorder:
        """Attach the hooks."""
        self._tap.__enter__()
        if self._last_step is not None:
            self._last_step.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Leave the model as it was found; what was recorded is kept, unless there was an exception."""
        if kind is not None:
            self._steps, self._latest = [], None
        if self._last_step is not None:
            self._last_step.__exit__(kind, *details)
        self._tap.__exit__(kind, *details)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Keep the states of which the last of ``input_ids [rows, seq]`` were chosen, as a stopping criterion that stops none."""
        self._order.chosen(input_ids[:, -1])
        if self._latest is not None and self._order.steps > self.recording.rows(1).start:
            self._steps.append(self._latest)
        self._latest = None
        if self._last_step is not None:
            self._last_step.input_ids = input_ids
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def finish(self, going: Sequence[bool]) -> None:
        """Read the last tokens' states, if they are asked for, when `generate` has returned.

        ``going [rows]`` tells whose response went on to the last step: in the others the step after their end fed back their
        last token.
        """
        self._latest = None
        if self._last_step is None or not any(going):
            self._order.close()
            return
        rows = torch.tensor(going).nonzero().flatten() if sum(going) <= len(going) // 2 else None  # few are worth cutting out
        if rows is not None and self._last_step.cuts_rows():
            self._order.select(rows)
        self._last_step.run(rows=rows)
        self._order.close()
        if self._latest is None:
            raise RuntimeError("the forward call on the last tokens was not seen by the hooks")
        if rows is not None and len(self._latest[0]) == len(rows):
            wide = [part.new_zeros(len(going), *part.shape[1:]) for part in self._latest]
            self._latest = [w.index_copy_(0, rows.to(w.device), part) for w, part in zip(wide, self._latest, strict=True)]
        self._steps.append(self._latest)
        self._latest = None

    def packed(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ``states [T, D]`` and ``offsets [B + 1]`` of the rows of `generate`, ``lengths [B]`` tokens each, and let go.

        On the model's device and in the dtype of its states; layers side by side in the order asked for, rows as
        :class:`RecordingSpec` says, response after response. Raises ValueError unless that many rows and tokens were recorded,
        and if they have been handed out before.
        """
        steps = self._steps
        recorded = (steps[0][0].shape[0] if steps else 0, len(steps))
        counts = torch.tensor([len(self.recording.rows(length)) for length in lengths], dtype=torch.long)
        asked = (len(lengths), max(counts.tolist(), default=0))
        if not steps or asked[0] != recorded[0] or asked[1] > recorded[1]:
            raise ValueError(
                f"expected {recorded[0]} rows of up to {recorded[1]} states, as were recorded and not handed out yet, got "
                f"{asked[0]} rows of up to {asked[1]}"
            )
        self._steps = []
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        there = counts > torch.arange(asked[1])[:, None]  # [steps, rows]
        step_of, row_of = there.nonzero(as_tuple=True)
        sizes = there.sum(1).tolist()
        places = torch.split((offsets[row_of] + step_of).to(self._device), sizes)
        rows = torch.split(row_of.to(self._device), sizes)
        states = torch.empty(
            int(offsets[-1]), sum(part.shape[-1] for part in steps[0]), dtype=steps[0][0].dtype, device=self._device
        )
        for step, row, place in zip(steps, rows, places, strict=False):
            side_by_side = torch.cat([part[:, 0].to(states) for part in step], dim=1)
            states.index_copy_(0, place, side_by_side.index_select(0, row))
            step.clear()  # what is packed may go
        return states, offsets.to(self._device)

    def _see(self, states: LayerStates) -> None:
        if self._order.forward():
            self._latest = [_owned(states[layer][:, -1:]) for layer in self.recording.layers]


def _owned(state: Tensor) -> Tensor:
    """Return a state that holds no more memory than itself: a prompt's other states may go."""
    return state.clone() if state.untyped_storage().nbytes() > state.nbytes else state
