"""Compiles the shipped kernels for GPUs that need not be there; prints what each of them uses, as JSON."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fmcefast.kernels.fmce_head import triton_block, triton_kernels

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HALF, FLOAT = "*fp16", "*fp32"
SIZES = {"HEIGHT": 7, "WIDTH": 7, "BLOCK": triton_block.CHANNEL_BLOCK}
WARPS = triton_block.CHANNEL_WARPS


def main() -> None:
    rows = []
    for capability in (80, 86, 90, 100, 120):
        products = triton_block.PRODUCTS_SM90 if capability in (90, 100) else triton_block.PRODUCTS_SM80
        for kernel, pointers, constants, warps, stages in shipped(products):
            rows.append({"capability": capability, **compiled(kernel, pointers, constants, capability, warps, stages)})
    print(json.dumps(rows))


def shipped(products: tuple[int, ...]):
    rows, columns, depth, products_warps, stages = products
    for maps in (HALF, "*bf16"):
        for relu_input in (False, True):
            constants = {"RELU_INPUT": relu_input, "CHANNELS": 1024, **SIZES}
            yield triton_kernels.input_transform_kernel, {"maps": maps, "inputs": HALF}, constants, WARPS, 3
    pointers = {"products": FLOAT, "bias": FLOAT, "pooled": HALF, "argmax": "*u8"}
    yield triton_kernels.output_transform_kernel, pointers, {"CHANNELS": 512, "BLOCK": SIZES["BLOCK"]}, WARPS, 3
    pointers = {"direction": HALF, "argmax": "*u8", "filters": HALF, "inputs": HALF}
    constants = {"INNER": 512, "OUTER": 1024, "BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth}
    yield triton_kernels.backward_products_kernel, pointers, constants, products_warps, stages
    for masked in (False, True):
        pointers = {"inputs": HALF, "mask_maps": HALF, "maps": HALF}
        constants = {"MASKED": masked, "CHANNELS": 1024, **SIZES}
        yield triton_kernels.input_transform_adjoint_kernel, pointers, constants, WARPS, 3
    pointers = {"features": HALF, "weight": HALF, "bias": HALF, "losses": FLOAT, "slopes": FLOAT, "directions": HALF}
    yield triton_kernels.score_kernel, pointers, {"LENGTH": 256, "GRADIENT": True, "BLOCK": 256}, 4, 3


def compiled(kernel, pointers: dict, constants: dict, capability: int, warps: int, stages: int) -> dict:
    signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(kernel.arg_names) if name in pointers}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
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
        "wgmma": "wgmma.mma_async" in made.asm["ptx"],
    }


if __name__ == "__main__":
    main()
