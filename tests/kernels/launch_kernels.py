"""Go the whole way to a launch on a GPU that is not there: arguments are bound, specialised and compiled, nothing runs.

The driver is a stand-in that says "an H100"; a kernel's launch compiles it for the very arguments, and stops there.
"""

import os

import torch
import triton
from swift_rm_kernels import gated_pool_triton, gated_step, gated_step_triton, new_running
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

launches = []


class Driver:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self):
        """Say what to compile for."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        """Say which device is meant."""
        return 0

    def get_current_stream(self, device):
        """Say which stream is meant."""
        return 0


def compile_only(self, *args, grid, warmup, run=JITFunction.run, **kwargs):
    """Stand in for a launch."""
    built = run(self, *args, grid=grid, warmup=True, **kwargs)
    launches.append(f"{self.__name__} {grid(kwargs) if callable(grid) else grid} {built.asm['ptx'].count('0x10') > 0}")


def main():
    """Launch each kernel with tensors of several shapes, as the functions of the package do."""
    triton.runtime.driver.set_active(Driver())
    JITFunction.run = compile_only
    os.environ["TRITON_INTERPRET"] = "1"  # only now: the tensors are on the CPU, the kernels are real ones
    layers = [torch.randn(40, 1, 96, dtype=torch.bfloat16) for _ in range(5)]
    weight, bias = torch.randn(2, 480), torch.randn(2)
    gated_step(layers, weight, bias, new_running(40), torch.ones(40, dtype=torch.bool), impl="triton")
    gated_step(layers[:1], weight[1:, :96], bias[1:], new_running(40), scores=torch.zeros(40, 1), impl="triton")
    stacks = [
        [layer[:, 0] for layer in layers],
        [torch.randn(1, 480)],
        [torch.randn(9, 101)[:, 1:40].half(), torch.randn(9, 7).half()],
    ]
    for states in stacks:
        width = sum(state.shape[1] for state in states)
        for heads in (1, 2):
            scores = gated_pool_triton.token_scores(states, torch.randn(heads, width), torch.randn(heads))
            gated_pool_triton.weight_gradient(states, scores)
    offsets, rewards = torch.tensor([0, 4, 9]), gated_pool_triton.pool(scores, torch.tensor([0, 4, 9]), None)
    gated_pool_triton.score_gradient(scores, offsets.int(), torch.ones(9, dtype=torch.bool), rewards, rewards)
    assert gated_step_triton._arrivals == {}, "on a CPU nothing is kept"
    print("\n".join(launches))


if __name__ == "__main__":
    main()
