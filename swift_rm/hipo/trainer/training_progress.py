"""What somebody who waits for a training run sees and does: a line on stderr, and Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any


def watch(trainer: Any, what: str, figures: Sequence[str], progress: bool) -> None:
    """Show steps, an estimate and some of the logged figures on stderr if ``progress``, and nothing on stdout."""
    from tqdm.auto import tqdm
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not progress:
        return

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=what, unit="step")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            known = {name.removeprefix("hipo/"): (logs or {}).get(name) for name in figures}
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in known.items() if value is not None})

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    trainer.add_callback(Bar())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what TRL's defaults are warned of, and the bars of preparing the data, which nobody here can act on."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def stopping(trainer: Any) -> Iterator[list[int]]:
    """End the run after its present step, with a checkpoint, on the first Ctrl-C; the second one ends it at once.

    The list that is given holds the step at which the run was stopped, if it was.
    """
    from transformers import TrainerCallback

    stopped: list[int] = []
    asked: list[bool] = []

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if asked:
                control.should_save = control.should_training_stop = True
                stopped.append(state.global_step)

    def ask(number: int, frame: Any) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    trainer.add_callback(Stop())
    if current_thread() is not main_thread():  # signals are for the main thread alone
        yield stopped
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
