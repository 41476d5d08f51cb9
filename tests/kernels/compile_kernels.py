"""Compile every Triton kernel for NVIDIA GPUs, which needs none, and print what the machine code uses: a JSON object a line."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from swift_rm_kernels import gated_pool_triton, gated_step_triton
from swift_rm_kernels import gated_pool_triton_kernels as pooling
from swift_rm_kernels.tuning import FUSED, gradient_tile, score_tile, step_tile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    "table": "*i64", "weight": "*fp32", "bias": "*fp32", "scores": "*fp32", "d_scores": "*fp32", "sums": "*fp32",
    "rewards": "*fp32", "grad": "*fp32", "offsets": "*i64", "mask": "*i1", "running": "*fp32", "active": "*i1",
    "found": "*fp32", "arrived": "*i32",
}  # fmt: skip
LAYERS = 33


def build(kernel, capability, warps=4, **constants):
    """Compile one kernel, its sizes divisible by 16 as a decoder's are."""
    element = constants.pop("element", None)
    kinds = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
    if "layers" in kinds and "table" not in kinds:
        kinds["layers"] = (element,) * LAYERS
    signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
    divisible = [i for i, name in enumerate(kernel.arg_names) if name in ("weight", "width", "total_width", "stride", *POINTERS)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible if kernel.arg_names[i] not in constants}
    if isinstance(kinds.get("layers"), tuple):
        attributes |= {(kernel.arg_names.index("layers"), i): [["tt.divisibility", 16]] for i in range(LAYERS)}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, **FUSED})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    wide = re.findall(r"ld\.global\.v4\.b32|cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", built.asm["ptx"])
    print(
        json.dumps(
            {
                "kernel": kernel.__name__, "capability": capability, "element": str(constants.get("ELEMENT", element)),
                "registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
                "local": int(re.search(r"LOCAL:(\d+)", usage)[1]), "shared": built.metadata.shared, "wide_loads": len(wide),
            }
        )
    )  # fmt: skip


def main():
    """Compile all of them, with the tiles that the default picks for an 8B model."""
    for capability in (80, 90):
        for element, name, vector in ((tl.bfloat16, "*bf16", 8), (tl.float16, "*fp16", 8), (tl.float32, "*fp32", 4)):
            common = {"ELEMENT": element, "GATE": True, "VECTOR": vector, "STEP": 1024}
            for kernel, tiles in (
                (pooling.token_scores_kernel, [score_tile(32768, 4096), score_tile(512, 4096)]),
                (pooling.weight_gradient_kernel, [gradient_tile(4096)]),
            ):
                for tile in tiles:
                    build(kernel, capability, tile.pop("num_warps"), **common, **tile)
            step = {"count": LAYERS, "GATE": True, "BLOCK_L": 64, "scores": None}
            tile = dict(step_tile(4096, 16 // vector))
            build(gated_step_triton._gated_step_kernel, capability, tile.pop("num_warps"), element=name, **step, **tile)
        for mask in ({"mask": None}, {}):
            build(pooling.pool_kernel, capability, GATE=True, BLOCK=gated_pool_triton.POOL_BLOCK, **mask)
            build(pooling.score_gradient_kernel, capability, GATE=True, BLOCK=gated_pool_triton.POOL_BLOCK, **mask)


if __name__ == "__main__":
    main()
