"""What our own autograd functions gain over torch's, at the sizes of a training step.

    python benchmarks/kernels.py [--batch 500] [--rounds 15] [--threads 2] [--only KERNEL ...]

Both sides of a row take turns in one process, so that a drift of the machine's speed hits both. Times are medians of a
forward and a backward pass, in ms. ``ratio`` is the median of torch's time over ours of the same round (above 1: ours
is faster) and ``quartiles`` are those of the ratio. Sizes are those of the thesis network at 32 x 32 x 3, two views.
The largest difference of results is printed relative to the largest entry.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from cases import ROOT  # noqa: F401  (this checkout comes first on the path)
from torch import Tensor
from torch.nn import functional as F

from dtp_lightning.learners.noise import tiled
from dtp_lightning.learners.reconstruction import LocalDifference, squares
from dtp_lightning.models.convolution import weight_gradient
from dtp_lightning.models.feedback_maps import ConvFeedback

STAGES = ((3, 32, 32), (32, 64, 16), (64, 128, 8), (128, 256, 4))  # channels below, channels, side of the input
Pass = Callable[[], Sequence[Tensor]]


@dataclass
class Kernel:
    """One row: ours and torch's do the same.

    Attributes:
        name: of the kernel.
        case: size and data type.
        ours, torchs: a forward and a backward pass, of ``weight_gradient`` the backward pass alone; they return the
            results to be compared.
    """

    name: str
    case: str
    ours: Pass
    torchs: Pass


def image(n: int, channels: int, side: int) -> Tensor:
    """A random activation, channels last."""
    return torch.randn(n, channels, side, side).to(memory_format=torch.channels_last)


def gradients(function: Callable[[], Tensor], inputs: Sequence[Tensor], bf16: bool = False) -> Pass:
    """A forward pass, and a backward pass of a gradient that is the same for every function of one shape."""
    probe: list[Tensor] = []

    def both() -> Sequence[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = function()
        if not probe:  # once, in the rounds that warm up
            values = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
            probe.append(torch.empty_like(y).copy_(values))
        return torch.autograd.grad(y, inputs, probe)

    return both


def weight_gradients(n: int) -> Iterator[Kernel]:
    """:func:`weight_gradient` in bfloat16, as the feedback maps of stages 3 and 4 use it."""
    for i, (below, here, side) in list(enumerate(STAGES, 1))[2:]:
        x, at_y = image(n, below, side).bfloat16(), image(n, here, side // 2).bfloat16()
        weight = torch.empty(here, below, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last)

        def ours(x: Tensor = x, at_y: Tensor = at_y, weight: Tensor = weight) -> Sequence[Tensor]:
            return [weight_gradient(x, at_y, weight, (2, 2), (1, 1))]

        def theirs(x: Tensor = x, at_y: Tensor = at_y, weight: Tensor = weight) -> Sequence[Tensor]:
            options = (None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
            return [torch.ops.aten.convolution_backward(at_y, x, weight, *options)[1]]

        yield Kernel("weight_gradient", f"stage {i}, bfloat16", ours, theirs)


def transposed_convolutions(n: int) -> Iterator[Kernel]:
    """``TransposedConv``: the feedback maps of stages 2 to 4, gradients of weight and bias."""
    for bf16 in (False, True):
        for i, (below, here, side) in list(enumerate(STAGES, 1))[1:]:
            u = image(n, here, side // 2)
            g = ConvFeedback(here, below, 3, 2, activation="Identity").to(memory_format=torch.channels_last)
            inputs, options = [g.weight, g.bias], ([2, 2], [1, 1], [1, 1])

            def ours(u: Tensor = u, g: ConvFeedback = g, side: int = side) -> Tensor:
                return g(u, (side, side))

            def theirs(u: Tensor = u, g: ConvFeedback = g, options: tuple = options) -> Tensor:
                return F.conv_transpose2d(u, g.weight, g.bias, *options)

            passes = (gradients(f, inputs, bf16) for f in (ours, theirs))
            yield Kernel("TransposedConv", f"stage {i}, {'bfloat16' if bf16 else 'float32'}", *passes)


def mean_squares(n: int) -> Iterator[Kernel]:
    """``MeanSquare``: the reconstruction loss of stages 2 to 4."""
    for dtype in (torch.float32, torch.bfloat16):
        for i, (below, _, side) in list(enumerate(STAGES, 1))[1:]:
            a, b = image(n, below, side).to(dtype).requires_grad_(), image(n, below, side)

            def theirs(a: Tensor = a, b: Tensor = b) -> Tensor:
                return F.mse_loss(a.float(), b)

            passes = (gradients(lambda f=f, a=a, b=b: f(a, b), [a]) for f in (squares, theirs))
            yield Kernel("MeanSquare", f"stage {i}, {str(dtype)[6:]}", *passes)


def local_differences(n: int) -> Iterator[Kernel]:
    """``LocalDifference``: the loss of L-DRL at stages 2 to 4, a noise sample for each image or 50 for all."""
    for patterns in (n, 50):
        for i, (below, _, side) in list(enumerate(STAGES, 1))[1:]:
            stacked, e = image(3 * n, below, side).requires_grad_(), image(min(patterns, n), below, side)

            def theirs(stacked: Tensor = stacked, e: Tensor = e) -> Tensor:
                rest, up, down = stacked.chunk(3)
                noise = tiled(e, len(rest))
                return ((down - rest).square().sum() - 2 * (noise * (up - rest)).sum()) / len(rest)

            def ours(stacked: Tensor = stacked, e: Tensor = e) -> Tensor:
                value: Tensor = LocalDifference.apply(stacked, e)
                return value

            passes = (gradients(f, [stacked]) for f in (ours, theirs))
            yield Kernel("LocalDifference", f"stage {i}, {len(e)} noise samples", *passes)


KERNELS = {
    "TransposedConv": transposed_convolutions,
    "weight_gradient": weight_gradients,
    "MeanSquare": mean_squares,
    "LocalDifference": local_differences,
}


def measure(kernel: Kernel, rounds: int) -> dict[str, str]:
    """A row of the table."""
    ours, theirs = [], []
    for k in range(rounds + 2):  # two rounds warm up
        for side, seconds in ((kernel.ours, ours), (kernel.torchs, theirs)) if k % 2 else (
            (kernel.torchs, theirs), (kernel.ours, ours)
        ):  # fmt: skip
            begun = time.perf_counter()
            side()
            if k > 1:
                seconds.append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    errors = [
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        for a, b in zip(kernel.ours(), kernel.torchs(), strict=True)
    ]
    return {
        "kernel": kernel.name, "case": kernel.case, "ours": f"{1e3 * statistics.median(ours):.2f}",
        "torch": f"{1e3 * statistics.median(theirs):.2f}", "ratio": f"{middle:.2f}",
        "quartiles": f"{low:.2f}-{high:.2f}", "difference": f"{max(errors):.0e}",
    }  # fmt: skip


def main() -> None:
    """Measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(KERNELS), default=list(KERNELS), metavar="KERNEL")
    parser.add_argument("--batch", type=int, default=500, help="images; two views each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"batch {arguments.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = ("kernel", "case", "ours", "torch", "ratio", "quartiles", "difference")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in arguments.only:
        for kernel in KERNELS[name](2 * arguments.batch):
            print("| " + " | ".join(measure(kernel, arguments.rounds).values()) + " |", flush=True)


if __name__ == "__main__":
    main()
