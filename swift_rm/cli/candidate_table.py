"""The live table of `swift-rm best-of-n`: the candidates of the question being answered, while they are generated."""

from __future__ import annotations

import inspect
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from swift_rm.decoding.decoded_candidate import Step
from swift_rm.decoding.pruning import Prune
from swift_rm.files.text import printable
from swift_rm.selection.candidates import Ended

if TYPE_CHECKING:
    from rich.console import Console, Group

    from swift_rm.reward.reward_model import SwiftRewardModel
    from swift_rm.selection.candidates import BestOfN

TAIL = 64  # tokens that are turned into text, of which the last ones are shown
ENDED: dict[Ended, str] = {
    "all": "all candidates were sampled",
    "probability": "one is probable enough",
    "gain": "more would hardly help",
    "budget": "the budget is spent",
    "interrupted": "interrupted by Ctrl-C",
    "failed": "some requests failed",
    "cancelled": "nobody waits for it any more",
}
STYLES = {"writing": "", "done": "green", "pruned": "dim"}


@dataclass
class Row:
    """One candidate: the question it answers (its place in the batch), what was last seen of it, and its state."""

    place: int
    token_ids: list[int]
    reward: float
    state: Literal["writing", "done", "pruned"] = "writing"


class LiveTable:
    """Show the candidates of one question after another, redrawn at most every ``interval`` seconds; a context manager.

    ``watch`` is best_of_n's; between two drawings it only counts. It is called once a token, so that a step whose responses
    are not as long as its count says belongs to a later wave. A candidate that is done stands as it was last seen, some
    tokens before its end. ``told(rule)`` is a pruning rule that acts like ``rule`` and tells the table whom it dropped.
    Nothing of the model's text reaches the terminal unescaped.
    """

    def __init__(
        self,
        questions: Sequence[str],
        decode: Callable[[list[int]], str],
        probability: Callable[[list[float]], Sequence[float]],
        console: Console | None = None,
        interval: float = 0.125,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._questions, self._decode, self._probability = list(questions), decode, probability
        self._console = console or Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, vertical_overflow="crop"
        )
        self._interval, self._clock, self._due = interval, clock, -math.inf
        self._look: Callable[[], Callable[[], Step] | None] = lambda: None
        self.answered = 0
        self.forget()

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def watch(self, look: Callable[[], Step]) -> None:
        """Count a token; look at the candidates and redraw the table if it is time to."""
        self._length += 1
        # A plain reference would keep a finished wave's cache in memory until the next wave's first token.
        self._look = weakref.WeakMethod(look) if inspect.ismethod(look) else lambda: look
        if self._clock() < self._due:
            return
        self.see(look())
        self._live.update(self.render(), refresh=True)
        self._due = self._clock() + self._interval

    def next_batch(self, answered: int) -> None:
        """Begin the next batch: ``answered`` questions more are done."""
        self.answered += answered
        self.forget()

    def forget(self) -> None:
        """Forget the candidates of the batch."""
        self.rows: dict[tuple[int, int], Row] = {}  # by wave and number of the candidate in it
        self._wave, self._length = 0, 0

    def see(self, step: Step) -> None:
        """Take in a step: new candidates, longer responses, and who has left."""
        length = len(step.token_ids[0]) if step.token_ids else self._length
        if length != self._length:
            self._wave, self._length = self._wave + 1, length
        here = {(self._wave, candidate) for candidate in step.candidates}
        for key, row in self.rows.items():
            if row.state == "writing" and key not in here:
                row.state = "done"
        for candidate, place, ids, reward in zip(
            step.candidates, step.prompts, step.token_ids, step.partial_rewards, strict=True
        ):
            before = self.rows.get((self._wave, candidate))
            if before is None or before.state == "writing":  # a rule is asked of each question while the rows are still there
                self.rows[self._wave, candidate] = Row(place, ids, reward)

    def told(self, rule: Prune) -> Prune:
        """Return a rule that acts like this one and tells the table whom it dropped."""
        return _Told(rule, self)

    def drop(self, rewards: Sequence[float], dropped: Sequence[bool]) -> None:
        """Mark the candidates that a rule drops: it knows a question's candidates by their order and rewards only."""
        look = self._look()
        if look is None or self._length == 0:
            return
        self._length += 1  # the step's token is there already, but `watch` has not been called for it
        self.see(step := look())
        self._length -= 1
        asked = {repr(reward) for reward in rewards}  # text, in which NaN equals NaN
        for place in set(step.prompts):
            rows = zip(step.candidates, step.prompts, step.partial_rewards, strict=True)
            own = [candidate for candidate, its, reward in rows if its == place and repr(reward) in asked]
            if len(own) == len(rewards):
                for candidate, drop in zip(own, dropped, strict=True):
                    if drop:
                        self.rows[self._wave, candidate].state = "pruned"

    def render(self) -> Group:
        """Return the table as it is now, no higher and no wider than the terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        width, height = self._console.size
        place = min((row.place for row in self.rows.values() if row.state == "writing"), default=0)
        rows = [row for row in self.rows.values() if row.place == place]
        rows.sort(key=lambda row: (math.isnan(row.reward), -row.reward))
        shown = rows[: max(1, height - 4)]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name, size in (("reward", 7), ("right", 6), ("tokens", 6), ("state", 7)):
            table.add_column(name, justify="left" if name == "state" else "right", width=size, no_wrap=True)
        room = max(1, width - 36)
        table.add_column("text", width=room, no_wrap=True, overflow="crop")
        chances = self._probability([row.reward for row in shown])
        for row, chance in zip(shown, chances, strict=True):
            known = (f"{row.reward:.2f}", f"{chance:.1%}") if math.isfinite(row.reward) else ("-", "-")
            cells = (*known, str(len(row.token_ids)), row.state, self._tail(row, room))
            table.add_row(*(Text(cell, style=STYLES[row.state]) for cell in cells))
        number = self.answered + place
        asked = printable(self._questions[number]) if number < len(self._questions) else ""
        title = Text(f"question {number + 1} of {len(self._questions)}: {asked}", no_wrap=True, overflow="ellipsis", style="bold")
        hidden = len(rows) - len(shown)
        last = (
            f"and {hidden} more" if hidden else f"{sum(row.state == 'writing' for row in rows)} of {len(rows)} are being written"
        )
        return Group(title, table, Text(last, style="dim", no_wrap=True, overflow="ellipsis"))

    def _tail(self, row: Row, room: int) -> str:
        from rich.cells import cell_len

        text = printable(self._decode(row.token_ids[-TAIL:]))[-room:]
        while cell_len(text) > room:  # some characters are two cells wide
            text = text[1:]
        return text


def final_table(question: str, result: BestOfN, n: int) -> str:
    """Return one question's candidates as lines of text, the chosen one marked, and what they cost."""
    lines = [question, "  reward  probability  answer   end         response"]
    for candidate in result.candidates:
        mark = "*" if candidate is result.best else " "
        text, given = printable(candidate.text), printable(candidate.answer or "-")
        numbers = f"{mark} {candidate.reward:6.2f}  {candidate.probability:11.3f}"
        lines.append(f"{numbers}  {given:8.8} {candidate.finish_reason:11} {text:.90}")
    saved = f", about {result.tokens_saved} saved of what {n} whole candidates cost" if result.tokens_saved else ""
    return "\n".join([*lines, f"  {result.tokens_spent} tokens spent{saved}; {ENDED[result.ended]}"])


@dataclass(frozen=True)
class _Told:
    """A pruning rule, and the table that hears of what it drops."""

    rule: Prune
    table: LiveTable

    @property
    def guide(self) -> SwiftRewardModel | None:
        return self.rule.guide

    def checks(self, tokens: int) -> bool:
        return self.rule.checks(tokens)

    def hopeless(self, tokens: int, rewards: Sequence[float], finished: Sequence[float], pruned: int) -> list[bool]:
        dropped = self.rule.hopeless(tokens, rewards, finished, pruned)
        if any(dropped):
            self.table.drop(rewards, dropped)
        return dropped
