"""Reading hidden states while a transformers model runs, through forward hooks that a context manager owns.

``HiddenStateTap`` gives what ``output_hidden_states=True`` would give, index for index: 0 is what enters the first
block, i what leaves block i, L the last hidden state, after the final norm. But it takes only the layers asked for, and
call by call. A state is the very tensor the model made: on its device (wherever ``device_map`` put the layer), in its
dtype, and in the autograd graph if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from swift_rm.capture import tap_refusals
from swift_rm.capture.fed_tokens import FedTokens
from swift_rm.capture.forward_call import ForwardCall, InputIds
from swift_rm.capture.generate_listeners import Generate, GenerateListener
from swift_rm.capture.step_order import out_of_step
from swift_rm.files.tested_versions import check_transformers
from swift_rm.models.generation_config import other_decoding
from swift_rm.models.model_shape import ModelShape, find_decoder, model_shape
from swift_rm.models.transformers_internals import find_cache, generates_its_own_way, runs_generate, undoes_steps

__all__ = ["HiddenStateTap", "LayerStates", "ModelShape", "model_shape"]

LayerStates = dict[int, Tensor]  # {layer: [batch, tokens, d]}


class HiddenStateTap:
    """Record the hidden states of every forward call made inside the ``with`` block.

    ``layers`` are transformers' indices, counted from the end if negative; results are keyed by the layer as asked for.
    A call with no cache, or an empty one, starts a sequence and drops the one before; calls that continue it, as the
    steps of ``generate`` do, are joined to it. ``on_forward`` gets each call's own states as soon as it is done, and
    :attr:`call` says what that call was; with ``keep=False`` nothing is stored.

    What cannot be read rightly raises: a compiled model, steps the hooks did not see, a cache cut back (assisted
    decoding), ``generate_batch``. When a ``generate`` that samples row by row, or greedily, returns, the tokens that the
    model was fed are held against those that came out: RuntimeError if a state belongs to no token, or to another. If
    ``generate`` has no cache, each step is a call on the whole sequence. In beam search a row is a beam of that step, as in
    transformers' own tuple. On Apple's mps, ``generate`` may run one step more than it returns. Give the tap the model that
    you call, not a part of it.

    Raises ValueError for a layer the model does not have, or a model that cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] = (-4, -3, -2, -1),
        *,
        keep: bool = True,
        on_forward: Callable[[LayerStates], None] | None = None,
    ) -> None:
        self.layers = tuple(layers)
        if not self.layers:
            raise ValueError("no layers asked for")
        self._decoder = find_decoder(model)
        self._index = {layer: self._decoder.index(layer) for layer in self.layers}
        self._wanted = sorted(set(self._index.values()))
        self._keep, self._on_forward = keep, on_forward
        self._handles: list[RemovableHandle] = []
        self._listening: GenerateListener | None = None
        self._ids = InputIds(self._decoder.path, self._handles)
        self.clear()

    def clear(self) -> None:
        """Forget everything recorded, so that the next call may start anywhere: within a cache, with other rows."""
        self._steps: list[LayerStates] = []
        self._last: LayerStates | None = None
        self._seen: LayerStates | None = None  # during a call: its states by index 0..L
        self._past = 0  # tokens in the cache when that call began
        self._ids.forget()
        self._fed, self._fresh = FedTokens(), True  # whether the next call is the first of its sequence, or of `generate`
        self.call: ForwardCall | None = None  # the latest one
        self._expected: int | None = None  # tokens in the cache when the next one begins, if it continues the sequence
        self._failure: str | None = None

    @property
    def states(self) -> LayerStates:
        """The latest sequence's states, ``{layer: [batch, seq, d]}``: one forward call's, or all steps' joined.

        The last token that ``generate`` sampled is never fed back and has none; nor has what a cache held before.
        Raises RuntimeError if nothing was recorded, or if what was cannot be joined.
        """
        self._require_recorded()
        rows = [step[self.layers[0]].shape[0] for step in self._steps]
        if len(set(rows)) > 1:
            raise RuntimeError(
                f"the batch had {rows[0]} rows, then {rows[-1]}, so its states cannot be joined: call clear() between "
                "the two, or take each call's states with on_forward"
            )
        if len(self._steps) > 1:  # joined once, not at every reading
            self._steps = [{layer: torch.cat([step[layer] for step in self._steps], dim=1) for layer in self.layers}]
        return dict(self._steps[0])

    @property
    def last(self) -> LayerStates:
        """The latest forward call's states, ``{layer: [batch, new tokens, d]}``; RuntimeError if there are none."""
        return dict(self._require_recorded())

    def __enter__(self) -> HiddenStateTap:
        """Attach the hooks; raise RuntimeError if they are attached already or the model is compiled."""
        if self._handles:
            raise RuntimeError("this HiddenStateTap is attached already: leave its with block first")
        check_transformers()
        reason = tap_refusals.compiled_model(self._decoder)
        if reason:
            raise RuntimeError(reason)
        self.clear()
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Remove every hook; raise RuntimeError if a refusal was swallowed on its way, as by a background thread."""
        self._detach()
        if kind is None and self._failure is not None:
            raise RuntimeError(self._failure)

    def _attach(self) -> None:
        owner, blocks, handles = self._decoder.owner, self._decoder.blocks, self._handles
        handles.append(owner.register_forward_pre_hook(self._begin, with_kwargs=True))
        for index in self._wanted:
            if index == 0:
                handles.append(blocks[0].register_forward_pre_hook(self._block_input, with_kwargs=True))
            elif index < len(blocks):
                handles.append(blocks[index - 1].register_forward_hook(partial(self._block_output, index)))
        handles.append(owner.register_forward_hook(self._end))
        self._listening = GenerateListener(runs_generate(self._decoder.path), self._around_generate, innermost=True)

    def _detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._listening is not None:
            self._listening.stop()
            self._listening = None  # it holds this tap, whose states are to go with it
        self._ids.stop_looking()
        self._seen = None

    def _around_generate(self, generate: Generate, args: Sequence[Any], settings: dict[str, Any]) -> Any:
        """Run `generate`, and hold what came out against what the model was fed, where rows go on one by one."""
        model: Any = runs_generate(self._decoder.path)
        if generates_its_own_way(model) or other_decoding(model, settings):
            return generate(*args, **settings)
        self._fed, self._fresh = FedTokens(), True
        out = generate(*args, **settings)
        sequences = getattr(out, "sequences", out)
        if isinstance(sequences, Tensor) and sequences.dim() == 2 and not sequences.is_floating_point():
            extra = undoes_steps(sequences.device, settings)
            reason = self._fed.contradiction(sequences, _prompt_width(settings), extra)
            if reason:
                self._fail(out_of_step(type(self).__name__, reason))
        return out

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ids.look(args, kwargs)
        cache = find_cache((*kwargs.values(), *args))
        first = self._expected is None
        reason = self._unreadable(cache, kwargs) if first else None
        self._past = 0 if reason or cache is None else int(cache.get_seq_length())
        if self._past == 0:
            reason = reason if first else self._unreadable(cache, kwargs)
            self._steps, self._last, self._expected = [], None, None
        reason = reason or tap_refusals.broken_sequence(self._past, self._expected)
        if reason:
            self._fail(reason)
        self._seen = {}

    def _unreadable(self, cache: Any, kwargs: dict[str, Any]) -> str | None:
        """Say why the sequence that begins cannot be read; what continues it is of the same kind."""
        return tap_refusals.packed_call(self._decoder, kwargs) or tap_refusals.compiled_steps(self._decoder, cache)

    def _block_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._see(0, args[0] if args else kwargs.get("hidden_states"))

    def _block_output(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        self._see(index, output[0] if isinstance(output, tuple | list) else output)

    def _see(self, index: int, state: Any) -> None:
        if self._seen is None:  # outside the decoder's forward call, as when a backward pass runs a block once more
            return
        if index in self._seen:
            self._fail(f"layer {index} was computed twice in one forward call, so it has no one hidden state")
        if not isinstance(state, Tensor) or state.dim() != 3:
            what = f"a tensor {list(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
            self._fail(f"layer {index} of this model is {what}, not one hidden state per token [batch, seq, d]")
        self._seen[index] = state

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._seen is None:
            return
        if self._wanted[-1] == len(self._decoder.blocks):
            last = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
            self._see(len(self._decoder.blocks), last)
        missing = [index for index in self._wanted if index not in self._seen]
        if missing:
            self._fail(f"the model ran without showing layer {missing[0]} to its hook: those hidden states are lost")
        step = {layer: self._seen[index] for layer, index in self._index.items()}
        self._seen = None
        rows, new = step[self.layers[0]].shape[:2]
        self._expected = self._past + new
        self._count(rows, new)
        self._take(step)

    def _count(self, rows: int, new: int) -> None:
        """Take note of a forward call's tokens."""
        ids = self._ids.take(rows, new)
        if self._past == 0 or self._fresh:
            self._fed.begin(self._past)
        self._fresh = False
        self._fed.add(ids, rows)
        self.call = ForwardCall(self._past, new, rows, ids)

    def _take(self, step: LayerStates) -> None:
        """Keep one forward call's states, and hand them on."""
        if self._keep:
            self._steps.append(step)
            self._last = step
        if self._on_forward is not None:
            self._on_forward(dict(step))

    def _fail(self, reason: str | RuntimeError) -> NoReturn:
        self._failure, self._seen = str(reason), None
        raise reason if isinstance(reason, RuntimeError) else RuntimeError(reason)

    def _require_recorded(self) -> LayerStates:
        if self._failure is not None:
            raise RuntimeError(self._failure)
        if self._last is None:
            missing = "no forward call of the model was seen to its end: make it inside the with block"
            raise RuntimeError(missing if self._keep else "with keep=False nothing is stored: use on_forward")
        return self._last


def _prompt_width(settings: Mapping[str, Any]) -> int | None:
    """Return how many tokens of the prompt `generate` returns, if that can be told from what it was given."""
    for name in ("inputs", "input_ids"):
        if isinstance(settings.get(name), Tensor):
            return int(settings[name].shape[1])
    return 0 if settings.get("inputs_embeds") is not None else None
