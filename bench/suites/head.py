r"""The FMCE-Net head as a loss: FusedFMCSLoss against PyTorch's own layers, eager and compiled.

    fmcefast bench head                    # a CPU: N = 64, float32 and bfloat16, about 2 minutes
    fmcefast bench head --batch 32 128 512 # on an NVIDIA GPU float16 and bfloat16, in CUDA graphs

`plain` is FMCSLoss, channels-last, with weights of the maps' type; `compiled` is the same under torch.compile
(max-autotune). First every contestant's loss and gradient are compared with float64. Then they take turns, round by
round. The roofline is the rate of one large matrix product in the same type and run; its share counts the
multiplications that each contestant makes, TFLOP/s those of the plain head; products with the padding count, which
PyTorch's layers leave out on a CPU and may so pass 100%. Freed memory is kept, as `fmcefast` does, which helps
everybody. Leaves head-*.json.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from fmcefast import FMCENet, FMCSLoss, FusedFMCSLoss
from fmcefast.bench.tools.arguments import SuiteParser
from fmcefast.bench.tools.results import publish, ratios, row
from fmcefast.kernels.fmce_head.cpu_block import has_amx
from fmcefast.losses.implementation import FEW_MAPS
from fmcefast.runtime.allocator import keep_freed_memory

Loss = Callable[[torch.Tensor], torch.Tensor]
# Of float16 and bfloat16 a near tie of the max pooling may go another way: the plain head's own errors are as large.
WORST = {torch.float32: (1e-5, 1e-2), torch.float16: (5e-3, 0.2), torch.bfloat16: (1e-2, 0.3)}
SLOW_PRODUCT = 0.1  # seconds of a product of 512 x 512 matrices, which takes milliseconds natively


def main(argv: Sequence[str] | None = None) -> None:
    parser = SuiteParser("head", __doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--channels", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well, which takes minutes")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = True  # as anybody would who trains with the plain layers
    rows = []
    for channels in arguments.channels:
        net = random_net(channels)
        for dtype in (torch.float16, torch.bfloat16) if on_gpu else (torch.float32, torch.bfloat16):
            losses = contestants(net, dtype, device, compiled=arguments.compiled)
            check(net, losses, arguments.batch[0], dtype, device)
            roofline = peak(dtype, device)
            for batch in arguments.batch:
                speeds = speed_rows(net, losses, batch, dtype, device, roofline, arguments.rounds)
                print(table(speeds), flush=True)
                rows += speeds
    publish(arguments, "head", rows)


def random_net(channels: int) -> FMCENet:
    """Weights that keep the size of the maps, as trained ones do."""
    torch.manual_seed(0)
    net = FMCENet(channels)
    with torch.no_grad():
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.05)
    return net


def random_maps(channels: int, batch: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    maps = torch.randn(batch, channels, 7, 7, generator=generator).relu()
    return maps.to(device, dtype, memory_format=torch.channels_last).requires_grad_()


def contestants(net: FMCENet, dtype: torch.dtype, device: torch.device, compiled: bool) -> dict[str, Loss]:
    torch.compiler.reset()  # or it gives up compiling after a few shapes and types
    plain = FMCSLoss(net).to(device, dtype, memory_format=torch.channels_last)
    losses: dict[str, Loss] = {"plain": plain}
    if compiled:
        losses["compiled"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    losses["fmcefast"] = FusedFMCSLoss(net)
    return losses


def check(net: FMCENet, losses: dict[str, Loss], batch: int, dtype: torch.dtype, device: torch.device) -> None:
    maps = random_maps(net.settings["in_channels"], batch, dtype, device)
    exact = maps.detach().double().requires_grad_()
    exact_loss, exact_gradient = FMCSLoss(net)(exact), torch.autograd.grad(FMCSLoss(net)(exact), exact)[0]
    for name, loss_function in losses.items():
        loss = loss_function(maps)
        gradient = torch.autograd.grad(loss, maps)[0].double()
        loss_error = ((loss.double() - exact_loss) / exact_loss).abs().item()
        gradient_error = ((gradient - exact_gradient).norm() / exact_gradient.norm()).item()
        worst_loss, worst_gradient = WORST[dtype]
        assert loss_error <= worst_loss and gradient_error <= worst_gradient, (
            f"{name}, {dtype}: the loss is off by {loss_error:.1e} and the gradient by {gradient_error:.1e}"
        )


def speed_rows(net, losses, batch, dtype, device, roofline, rounds) -> list[dict]:
    channels = net.settings["in_channels"]
    maps = random_maps(channels, batch, dtype, device)
    rows = []
    for backward in (False, True):
        ways = {name: step(loss_function, maps, backward) for name, loss_function in losses.items()}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                taken[name].append(timed(way, device))
        plain, fewest = operations(net, batch, dtype, backward)
        title = f"{channels} channels, N = {batch}, {str(dtype).removeprefix('torch.')}"
        for name, seconds in taken.items():
            performed = fewest if name == "fmcefast" else plain
            rows.append(
                row(
                    f"{title}, {'forward and backward' if backward else 'forward'}: {name}",
                    [value * 1e3 for value in seconds],
                    "ms",
                    tflops=plain / median(seconds) / 1e12,
                    part_of_roofline=performed / median(seconds) / roofline,
                    saved_mb=saved_bytes(losses[name], maps) / 1e6 if backward else 0,
                    **ratios(name, taken),
                )
            )
    return rows


def step(loss_function: Loss, maps: torch.Tensor, backward: bool) -> Callable[[], object]:
    """On a GPU the step is captured in a CUDA graph, so that launches cost nobody anything."""

    def run() -> object:
        if not backward:
            with torch.no_grad():
                return loss_function(maps)
        return torch.autograd.grad(loss_function(maps), maps)

    if not maps.is_cuda:
        run()
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.result = run()
    return graph.replay


def timed(way: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        way()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product, or of a small one where the processor emulates the type."""
    size = 8192 if device.type == "cuda" else 2048
    if device.type == "cpu" and product_seconds(512, dtype, device) > SLOW_PRODUCT:
        size = 512
    return 2 * size**3 / min(product_seconds(size, dtype, device) for _ in range(5))


def product_seconds(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return timed(lambda: a @ b, device)


def operations(net: FMCENet, batch: int, dtype: torch.dtype, backward: bool) -> tuple[float, float]:
    """FLOP of the plain head, and with the tiles of the first block that FusedFMCSLoss chooses.

    F(3x3, 3x3) on a GPU, F(6x6, 3x3) or F(2x2, 3x3) on a CPU.
    """
    channels = net.settings["in_channels"]
    maps = torch.empty(batch, channels, 7, 7, device="meta", requires_grad=backward)
    with FlopCounterMode(display=False) as counter:
        loss = FMCSLoss(net).to("meta")(maps)
        if backward:
            loss.backward()
    inner = min(channels, 1024)
    reduce = 49 * channels * inner if channels > inner else 0
    large = batch >= FEW_MAPS and (dtype == torch.float32 or not has_amx())
    products = 4 * 25 if torch.cuda.is_available() else 64 if large else 9 * 16
    one_way = 2 * batch * (reduce + products * inner * (inner // 2) + 16 * (inner // 2) * (inner // 4))
    return counter.get_total_flops(), one_way * (2 if backward else 1)


def saved_bytes(loss_function: Loss, maps: torch.Tensor) -> int:
    """Between forward and backward pass, besides maps and weights."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.data_ptr() != maps.data_ptr():
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_function(maps)
    return sum(kept.values())


def table(rows: list[dict]) -> str:
    lines = []
    for entry in rows:
        share = f"{entry['part_of_roofline']:4.0%}"
        others = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in entry.get("ratio", {}).items())
        saved = f"{entry['saved_mb']:6.1f} MB kept" if entry["saved_mb"] else ""
        lines.append(
            f"{entry['name']:72} {entry['value']:9.3f} ms {entry['tflops']:7.2f} TFLOP/s {share} {others} {saved}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
