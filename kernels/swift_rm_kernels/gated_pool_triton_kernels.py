"""The kernels behind ``gated_pool_triton``: two read the states, by tokens and by columns, two read z and r, by response."""

from __future__ import annotations

import triton
import triton.language as tl

from swift_rm_kernels.tuning import GRADIENT_TILES, SCORE_TILES, tuned


@triton.jit
def _layer(table, index, ELEMENT: tl.constexpr, VECTOR: tl.constexpr):
    """Read a row of the table: where a layer's states are, the stride of its tokens, its width and its first column."""
    row = table + index * 4
    states, stride = tl.load(row).to(tl.pointer_type(ELEMENT)), tl.load(row + 1)
    first = tl.load(row + 3)
    if VECTOR > 1:
        states, stride, first = tl.multiple_of(states, 16), tl.multiple_of(stride, VECTOR), tl.multiple_of(first, 16)
    return states, stride, tl.load(row + 2).to(tl.int32), first


@triton.jit
def log_sigmoid(z):
    """Compute ``log(sigmoid(z))``, finite however far the gate is closed."""
    return tl.minimum(z, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(z)))


@triton.jit
def add_products(z, r, states, row, stride, there, column, inside, weight, first, total_width, GATE: tl.constexpr):
    """Multiply a tile of states with the columns of the weight it meets, and add that to z and r; without a gate z stays."""
    state = tl.load(states + row[:, None] * stride + column[None, :], mask=there[:, None] & inside, other=0.0).to(tl.float32)
    if GATE:
        z += state * tl.load(weight + first + column, mask=inside, other=0.0)[None, :]
        r += state * tl.load(weight + total_width + first + column, mask=inside, other=0.0)[None, :]
    else:
        r += state * tl.load(weight + first + column, mask=inside, other=0.0)[None, :]
    return z, r


@tuned(SCORE_TILES, key=["layers", "width", "ELEMENT"])
@triton.jit
def token_scores_kernel(
    table, ELEMENT: tl.constexpr, weight, bias, scores, tokens, layers, width,
    GATE: tl.constexpr, VECTOR: tl.constexpr, STEP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Score BLOCK_T tokens a program, through all layers: z and r, which are summed in registers until the end."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    there = token < tokens
    z = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    r = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for index in range(layers):
        states, stride, own_width, first = _layer(table, index, ELEMENT, VECTOR)
        for start in tl.range(0, own_width, BLOCK_D, num_stages=STAGES):
            column = start + tl.arange(0, BLOCK_D)
            inside = True if STEP % BLOCK_D == 0 else column < own_width
            z, r = add_products(z, r, states, token, stride, there, column, inside, weight, first, width, GATE)
    if GATE:
        tl.store(scores + 2 * token, tl.sum(z, 1) + tl.load(bias), mask=there)
        tl.store(scores + 2 * token + 1, tl.sum(r, 1) + tl.load(bias + 1), mask=there)
    else:
        tl.store(scores + token, tl.sum(r, 1) + tl.load(bias), mask=there)


@tuned(GRADIENT_TILES, key=["width", "ELEMENT"])
@triton.jit
def weight_gradient_kernel(
    table, ELEMENT: tl.constexpr, d_scores, sums, tokens, share, width,
    GATE: tl.constexpr, VECTOR: tl.constexpr, STEP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK_D columns of one layer a program, over its share of the tokens."""
    states, stride, own_width, first = _layer(table, tl.program_id(1), ELEMENT, VECTOR)
    start = tl.program_id(0) * BLOCK_D
    if start < own_width:
        part = tl.program_id(2).to(tl.int64)
        column = start + tl.arange(0, BLOCK_D)
        inside = True if STEP % BLOCK_D == 0 else column < own_width
        d_z = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        d_r = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
        end = tl.minimum((part + 1) * share, tokens)
        for begin in tl.range(part * share, end, BLOCK_T, num_stages=STAGES):
            token = begin + tl.arange(0, BLOCK_T)
            there = token < end
            state = tl.load(states + token[:, None] * stride + column[None, :], mask=there[:, None] & inside, other=0.0).to(
                tl.float32
            )
            if GATE:
                d_z += state * tl.load(d_scores + 2 * token, mask=there, other=0.0)[:, None]
                d_r += state * tl.load(d_scores + 2 * token + 1, mask=there, other=0.0)[:, None]
            else:
                d_r += state * tl.load(d_scores + token, mask=there, other=0.0)[:, None]
        if GATE:
            out = sums + part * 2 * width + first + column
            tl.store(out, tl.sum(d_z, 0), mask=inside)
            tl.store(out + width, tl.sum(d_r, 0), mask=inside)
        else:
            tl.store(sums + part * width + first + column, tl.sum(d_r, 0), mask=inside)


@triton.jit
def _tokens(scores, mask, begin, end, GATE: tl.constexpr, BLOCK: tl.constexpr):
    """Load a block of a response's tokens: where they are, z, r and the log gate, -inf where none is or it is masked."""
    token = begin + tl.arange(0, BLOCK)
    there = token < end
    if mask is not None:
        there = there & (tl.load(mask + token, mask=there, other=0) != 0)
    if GATE:
        z = tl.load(scores + 2 * token, mask=there, other=0.0)
        r = tl.load(scores + 2 * token + 1, mask=there, other=0.0)
        log_gate = log_sigmoid(z)
    else:
        r = tl.load(scores + token, mask=there, other=0.0)
        z = tl.zeros_like(r)
        log_gate = z
    return token, z, r, tl.where(there, log_gate, float("-inf"))


@triton.jit
def _gates(scores, mask, begin, end, GATE: tl.constexpr, BLOCK: tl.constexpr):
    """Run the online softmax: the largest log gate, and the sums of gates and of gates times rewards, scaled by it."""
    top, mass, total = float("-inf"), 0.0, 0.0
    for start in range(begin, end, BLOCK):
        _, _, r, log_gate = _tokens(scores, mask, start, end, GATE, BLOCK)
        higher = tl.maximum(top, tl.max(log_gate, 0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        gate, keep = tl.exp(log_gate - level), tl.exp(top - level)
        mass = mass * keep + tl.sum(gate, 0)
        total = total * keep + tl.sum(gate * r, 0)
        top = higher
    return tl.where(top == float("-inf"), 0.0, top), tl.where(mass == 0.0, 1.0, mass), total


@triton.jit
def pool_kernel(scores, offsets, mask, rewards, GATE: tl.constexpr, BLOCK: tl.constexpr):
    """Average one response a program."""
    response = tl.program_id(0)
    begin, end = tl.load(offsets + response).to(tl.int64), tl.load(offsets + response + 1).to(tl.int64)
    _, mass, total = _gates(scores, mask, begin, end, GATE, BLOCK)
    tl.store(rewards + response, total / mass)


@triton.jit
def score_gradient_kernel(
    scores, offsets, mask, rewards, grad, d_scores, GATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the gradient to z and r of one response a program."""
    response = tl.program_id(0)
    begin, end = tl.load(offsets + response).to(tl.int64), tl.load(offsets + response + 1).to(tl.int64)
    top, mass, _ = _gates(scores, mask, begin, end, GATE, BLOCK)
    scale, reward = tl.load(grad + response) / mass, tl.load(rewards + response)
    for start in range(begin, end, BLOCK):
        token, z, r, log_gate = _tokens(scores, mask, start, end, GATE, BLOCK)
        d_r = tl.exp(log_gate - top) * scale
        if GATE:
            small = tl.exp(-tl.abs(z))
            closed = tl.where(z > 0.0, small, 1.0) / (1.0 + small)  # sigmoid(-z)
            tl.store(d_scores + 2 * token, d_r * (r - reward) * closed, mask=token < end)
            tl.store(d_scores + 2 * token + 1, d_r, mask=token < end)
        else:
            tl.store(d_scores + token, d_r, mask=token < end)
