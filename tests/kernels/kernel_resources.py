"""Compiles the shipped kernels for GPUs that need not be there; prints what each of them uses, as JSON.

Arguments: compute capabilities, 80 90 100.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fmcefast.kernels.fmce_head import triton_head
from fmcefast.kernels.fmce_head import triton_kernels as kernels
from fmcefast.kernels.fmce_head.layers import Affine
from fmcefast.kernels.fmce_head.triton_transforms import Convolution

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MAPS, HALF, FLOAT, BYTE, INT = "*bf16", "*fp16", "*fp32", "*u8", "*i32"
CHANNELS, MIDDLE, OUTPUTS, SIZE, PHASES = 1024, 512, 256, 7, 10


def main() -> None:
    rows = []
    for capability in map(int, sys.argv[1:]):
        for kernel, pointers, constants, warps in shipped():
            rows.append({"capability": capability, **compiled(kernel, pointers, constants, capability, warps)})
    print(json.dumps(rows))


def shipped():
    """Kernels, their pointers, constants and warps, for bfloat16 maps of 7x7."""
    layer = Affine(torch.zeros(1, 1, 3, 3), torch.zeros(1))
    first, second = (Convolution(layer, size, size, torch.device("cpu")) for size in (SIZE, SIZE // 2))
    block, warps = {"BLOCK": triton_head.BLOCK}, triton_head.WARPS
    for relu in (False, True):
        pointers = {"maps": MAPS, "maxima": FLOAT, "scales": FLOAT, "inputs": HALF, "positive": INT}
        constants = {"HEIGHT": SIZE, "WIDTH": SIZE, "RELU": relu, "CHANNELS": CHANNELS, "GRID": first.grid}
        constants |= sides(first.input_transform) | block | {"BLOCKS": CHANNELS // triton_head.BLOCK}
        yield kernels.input_transform_kernel, pointers, constants, warps
        pointers = {"products": HALF, "positive": INT, "slopes": FLOAT, "loss_gradient": FLOAT, "gradient": MAPS}
        constants = {"RELU": relu, "CHANNELS": CHANNELS, "GRID": first.grid}
        yield kernels.input_gradient_kernel, pointers, constants | sides(first.input_adjoint) | block, warps
    pointers = {"products": HALF, "scales": FLOAT, "bias": FLOAT, "argmax": BYTE, "inputs": HALF}
    constants = {"GRID": first.grid, "NEXT_GRID": second.grid, "CHANNELS": MIDDLE}
    constants |= sides(first.output_transform) | sides(second.input_transform, "NEXT_") | block
    yield kernels.pool_kernel, pointers, constants, warps
    pointers = {"products": HALF, "argmax": BYTE, "directions": HALF}
    constants = {"GRID": second.grid, "NEXT_GRID": first.grid, "CHANNELS": MIDDLE}
    constants |= sides(second.input_adjoint) | sides(first.output_adjoint, "NEXT_") | block
    yield kernels.unpool_kernel, pointers, constants, warps
    pointers = dict.fromkeys(("scales", "bias", "weight", "phase_bias", "losses", "slopes"), FLOAT)
    pointers |= {"products": HALF, "directions": HALF}
    constants = {"GRID": second.grid, "PHASES": PHASES, "PHASE_BLOCK": 16, "CHANNELS": OUTPUTS, "BLOCK": OUTPUTS}
    constants |= sides(second.output_transform) | sides(second.output_adjoint, "ADJOINT_")
    yield kernels.score_kernel, pointers, constants, warps


def sides(transform, prefix: str = "") -> dict:
    return {f"{prefix}DOWN": transform.down, f"{prefix}ACROSS": transform.across}


def compiled(kernel, pointers: dict, constants: dict, capability: int, warps: int) -> dict:
    numbers = {name: "i32" if name in ("samples", "again") else "fp32" for name in kernel.arg_names}
    constant = dict.fromkeys(constants, "constexpr")
    signature = numbers | constant | pointers
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(kernel.arg_names) if name in pointers}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        command = [TOOLS / "nvdisasm", cubin.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = dict(re.findall(r"(\w+):(\d+)", usage.split("Function")[-1]))
    return {
        "kernel": kernel.__name__,
        "registers": int(used["REG"]),
        "local_bytes": int(used["STACK"]) + int(used["LOCAL"]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "shared_bytes": made.metadata.shared,
    }


if __name__ == "__main__":
    main()
