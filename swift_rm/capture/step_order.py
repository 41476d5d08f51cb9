"""Check that forward calls and chosen tokens take turns, so that each state goes to its token."""

from __future__ import annotations

from importlib.metadata import version
from typing import NoReturn

from torch import Tensor

from swift_rm.capture.forward_call import CallReader


class OutOfStep(RuntimeError):
    """The states that a reader saw do not go with the tokens that came out."""


def out_of_step(reader: str, seen: str) -> OutOfStep:
    """Return the error of a reader whose states do not go with the tokens: what was seen, by whom, with which version."""
    return OutOfStep(
        f"{reader} lost step with the generation of transformers {version('transformers')}: {seen}; its states would go to the "
        "wrong tokens, so none of them is used. Please report this with the versions in use"
    )


class StepOrder:
    """Raise RuntimeError as soon as forward calls and tokens are not in turn, or not of the same rows, lengths and ids.

    ``begin()``; forward calls on the prompts (several, if they are read in parts), each told by ``forward()`` from the hook;
    then in turn ``chosen(tokens)`` and one forward call. That the ids which were fed are those chosen is found out by
    :meth:`verify`, without waiting for the device at every step.
    """

    def __init__(self, reader: str, tap: CallReader) -> None:
        self._reader, self._tap = reader, tap
        self.begin()

    def begin(self) -> None:
        """Forget everything: new prompts are to be read."""
        self.steps = 0  # tokens chosen of each row
        self.length: int | None = None  # tokens that the model has read of each row, those of its cache included
        self._width: int | None = None  # the same when the first token was chosen
        self._rows: int | None = None  # of the latest forward call
        self._read, self._repeated = 0, False  # forward calls since tokens were chosen; whether there was one too many
        self._chosen: Tensor | None = None  # [rows], until they are fed
        self._strangers: Tensor | None = None  # whether a token was fed that was not the one chosen
        self._open = True

    def resume(self, length: int | None) -> None:
        """Go on from prompts that were read before, by a forward call after which ``length`` tokens had been read."""
        self.length, self._read = length, 1

    def close(self) -> None:
        """Look away: what the model is called for from now on is not this generation."""
        self._open = False
        self.verify()

    def forward(self) -> bool:
        """Take note of a forward call, which has just ended; False if its states are of no use."""
        if not self._open:
            return False
        call = self._tap.call
        self._read += 1
        if self._read > 1 and (self.steps or call is None or not call.past):
            self._repeated = True  # a fault if a token is chosen after it; processes that wait for others end with such calls
            return False
        if call is None:  # states that came by another way than the tap: only their turn can be told
            return True
        self.length, self._rows = call.past + call.new, call.rows
        if not self.steps:
            return True
        if call.new > 1 and call.past:
            self._raise(f"{call.new} tokens were fed at once after token {self.steps} of each row, where one belongs")
        if self._width is not None and self.length != self._width + self.steps:
            belong = self._width + self.steps
            self._raise(f"the model had read {self.length} tokens of each row after token {self.steps}, where {belong} belong")
        self._compare(call.ids)
        return True

    def chosen(self, tokens: Tensor) -> None:
        """Take the tokens ``[rows]`` just chosen."""
        if not self._open:
            self._raise("tokens were chosen after the generation had ended")
        if self._repeated:
            after = f"token {self.steps} of each row" if self.steps else "the prompts"
            self._raise(f"two forward calls were made for {after}, where one belongs")
        if not self._read:
            self._raise(f"token {self.steps + 1} of each row was chosen by a forward call that the hooks did not see")
        if self._rows is not None and self._rows != len(tokens):
            self._raise(f"tokens of {len(tokens)} rows were chosen by a forward call on {self._rows} rows")
        if self._width is None:
            self._width = self.length
        self.steps, self._read, self._chosen = self.steps + 1, 0, tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order."""
        self._rows = None if self._rows is None else len(rows)
        if self._chosen is not None:
            self._chosen = self._chosen.index_select(0, rows.to(self._chosen.device))

    def verify(self) -> None:
        """Raise RuntimeError if a token was fed that was not the one chosen for its row; this waits for the device."""
        strangers, self._strangers = self._strangers, None
        if strangers is not None and bool(strangers):
            self._raise(f"within the first {self.steps} tokens a row was fed a token that was not chosen for it")

    def _compare(self, fed: Tensor | None) -> None:
        """Hold the ids ``[rows, new]`` of a step against the tokens that were chosen, on the device."""
        chosen, self._chosen = self._chosen, None
        if chosen is None or fed is None:
            return
        if len(fed) != len(chosen):
            self._raise(f"{len(fed)} rows were fed after token {self.steps} of {len(chosen)} rows")
        strange = (fed[:, -1] != chosen.to(fed.device)).any()
        self._strangers = strange if self._strangers is None else self._strangers | strange.to(self._strangers.device)

    def _raise(self, seen: str) -> NoReturn:
        raise out_of_step(self._reader, seen)
