"""The kernels of gated_pool that numba compiles: eight tokens meet a column of the weight together, all sums in float32.

The weight so stays in the cache while the states stream by. A kernel takes parts of one job that its threads share; what
it takes is one pointer to that job. All of it is in this file, whose change is how numba knows that what it kept is old.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

CLAIM = 32  # tokens a thread takes at a time
TILE = 4096  # columns of the gradient a thread takes at a time, whose sums its cache holds, for
LONGEST = 16384  # so many tokens: a longer sum in float32 loses digits
ONE, EIGHT = (np.float32(0),), (np.float32(0),) * 8  # the sums of a block of tokens
FIELDS = ("taken", "tokens", "rows", "columns", "pieces", "table", "weight", "bias", "scores", "part", "parts", "sums")
OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}  # NaN and Inf stay


@cache
def job_type(element: type) -> np.dtype[np.void]:
    """Describe a job; of its last field only the type is used, that of the states."""
    return np.dtype([*((name, np.int64) for name in FIELDS), ("element", element)], align=True)


@cache
def compiled(function: Callable[[Any], None], element: type) -> Any:
    """Compile a kernel for one type of states, or load what numba kept."""
    signature = types.void(types.CPointer(numba.from_dtype(job_type(element))))
    try:
        return cfunc(signature, cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder can be written: every process compiles
        return cfunc(signature, **OPTIONS)(function)


@cache
def widens_half() -> bool:
    """Tell if this CPU has an instruction that widens float16; without one LLVM ends the process."""
    return platform.machine() in ("aarch64", "arm64") or bool(get_host_cpu_features().get("f16c"))


def take_scores(pointer):
    """Take tokens from the job and score them, until none is left."""
    job = carray(pointer, 1)[0]
    table = carray(_pointer(job.table, job.taken), (job.pieces, 4))
    weight = carray(_pointer(job.weight, ONE[0]), (job.rows, job.columns))
    bias = carray(_pointer(job.bias, ONE[0]), (job.rows,))
    scores = carray(_pointer(job.scores, ONE[0]), (job.tokens, job.rows))
    first = _take(pointer, CLAIM)
    while first < job.tokens:
        end = min(first + CLAIM, job.tokens)
        whole = end - (end - first) % len(EIGHT)
        for token in range(first, whole, len(EIGHT)):
            _score_block(job, table, weight, bias, scores, token, EIGHT)
        for token in range(whole, end):
            _score_block(job, table, weight, bias, scores, token, ONE)
        first = _take(pointer, CLAIM)


@njit(**OPTIONS)
def _score_block(job, table, weight, bias, scores, token, zeros):
    """Score as many tokens as there are zeros, from ``token`` on."""
    gates = rewards = zeros
    for piece in range(len(table)):
        address, stride, width, column = table[piece, 0], table[piece, 1], table[piece, 2], table[piece, 3]
        to_gate, to_reward = weight[0, column : column + width], weight[-1, column : column + width]
        for i in range(width):
            states = _load(address + token * stride, stride, i, zeros, job.element)
            gates = _multiply_add(gates, states, to_gate[i])
            rewards = _multiply_add(rewards, states, to_reward[i])
    for k in range(len(zeros)):
        scores[token + k, 0] = gates[k] + bias[0]
        scores[token + k, -1] = rewards[k] + bias[-1]


def take_gradient(pointer):
    """Take a piece of the weight and a part of the tokens from the job and sum the gradient there, until none is left."""
    job = carray(pointer, 1)[0]
    table = carray(_pointer(job.table, job.taken), (job.pieces, 4))
    sums = carray(_pointer(job.sums, ONE[0]), (job.parts, 2, job.columns))
    tile = np.empty((2, TILE), np.float32)
    taken = _take(pointer, 1)
    while taken < job.pieces * job.parts:
        part, piece = divmod(taken, job.pieces)
        address, stride, width, column = table[piece, 0], table[piece, 1], table[piece, 2], table[piece, 3]
        sums[part, :, column : column + width] = 0
        for first in range(part * job.part, min((part + 1) * job.part, job.tokens), LONGEST):
            end = min(first + LONGEST, (part + 1) * job.part, job.tokens)
            whole = end - (end - first) % len(EIGHT)
            tile[:, :width] = 0
            for token in range(first, whole, len(EIGHT)):
                _gradient_block(job, address, stride, token, EIGHT, tile[0, :width], tile[1, :width])
            for token in range(whole, end):
                _gradient_block(job, address, stride, token, ONE, tile[0, :width], tile[1, :width])
            sums[part, :, column : column + width] += tile[:, :width]
        taken = _take(pointer, 1)


@njit(**OPTIONS)
def _gradient_block(job, address, stride, token, zeros, to_gate, to_reward):
    """Add the gradient of as many tokens as there are zeros."""
    step = 4 * job.rows  # bytes from one token's scores to the next's
    gates = _load(job.scores + token * step, step, 0, zeros, ONE[0])
    rewards = _load(job.scores + token * step, step, job.rows - 1, zeros, ONE[0])
    for i in range(len(to_gate)):
        states = _load(address + token * stride, stride, i, zeros, job.element)
        to_gate[i] += _dot(states, gates)
        to_reward[i] += _dot(states, rewards)


@intrinsic
def _pointer(typing_context, address, value):
    """Read an address as that of values like ``value``."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(value)(address, value), generate


@intrinsic
def _take(typing_context, job, amount):
    """Add to the first field of the job at one stroke, and return what was there: the first part that no thread has taken."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.bitcast(args[0], ir.IntType(64).as_pointer()), args[1], "monotonic")

    return types.int64(job, amount), generate


@intrinsic
def _load(typing_context, address, stride, column, block, element):
    """Load one column of as many tokens as the block has, in float32."""

    def generate(context, builder, signature, args):
        kind = {"float32": ir.FloatType(), "uint16": ir.IntType(16), "int16": ir.HalfType()}[element.name]
        states = context.get_constant_undef(signature.return_type)
        for k in range(block.count):
            row = builder.inttoptr(builder.add(args[0], builder.mul(args[1], args[1].type(k))), kind.as_pointer())
            state = builder.load(builder.gep(row, [args[2]]), align=element.bitwidth // 8)
            state.set_metadata("invariant.load", builder.module.add_metadata([]))  # no store goes there: no loop need check
            if element.name == "uint16":  # a bfloat16 is the upper half of a float32
                state = builder.bitcast(builder.shl(builder.zext(state, ir.IntType(32)), ir.IntType(32)(16)), ir.FloatType())
            elif element.name == "int16":
                state = builder.fpext(state, ir.FloatType())
            states = builder.insert_value(states, state, k)
        return states

    return block(address, stride, column, block, element), generate


@intrinsic
def _multiply_add(typing_context, sums, states, weight):
    """Add ``state * weight`` to the sum of each token."""

    def generate(context, builder, signature, args):
        out, states, weight = args
        for k in range(sums.count):
            product = builder.fmul(builder.extract_value(states, k), weight)
            out = builder.insert_value(out, builder.fadd(builder.extract_value(out, k), product), k)
        return out

    return sums(sums, states, weight), generate


@intrinsic
def _dot(typing_context, states, factors):
    """Sum ``state * factor`` over the tokens."""

    def generate(context, builder, signature, args):
        total = ir.FloatType()(0.0)
        for k in range(states.count):
            total = builder.fadd(total, builder.fmul(*(builder.extract_value(arg, k) for arg in args)))
        return total

    return types.float32(states, factors), generate
