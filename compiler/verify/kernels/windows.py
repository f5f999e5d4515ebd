"""The geometry that convolutions and poolings share: kernels that slide over padded axes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch

from compiler.verify.kernels.call import Call


@dataclass(frozen=True)
class Windows:
    """Per spatial axis, in elements: the kernel, its step and spread, the padding, the result."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    out: Sequence[int]

    def reach(self, axis: int) -> int:
        """How many padded elements the windows cover along `axis`."""
        spread = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (self.out[axis] - 1) * self.strides[axis] + spread

    def taps(self, padded: torch.Tensor) -> Iterator[torch.Tensor]:
        """For each element of the kernel, the (N, C, *out) values that it meets."""
        for offsets in itertools.product(*map(range, self.kernel)):
            index: list[slice | EllipsisType] = [...]
            index += [
                slice(o * d, o * d + (n - 1) * s + 1, s)
                for o, d, n, s in zip(offsets, self.dilations, self.out, self.strides, strict=True)
            ]
            yield padded[tuple(index)]


def windows(call: Call, size: Sequence[int], kernel: Sequence[int]) -> Windows:
    """The windows of `call` over axes of `size` elements.

    Source: the attributes of Conv, AveragePool and MaxPool in the ONNX operator schemas. Windows
    that ceil_mode would start in the padding at the end are left out.
    """
    axes = len(size)
    strides = call.attributes.get("strides") or [1] * axes
    dilations = call.attributes.get("dilations") or [1] * axes
    spread = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after = _pads(call, size, strides, spread)
    ends = zip(size, strides, spread, before, after, strict=True)
    ceil = bool(call.attributes.get("ceil_mode"))
    out = [_count(n, s, e, b, a, ceil) for n, s, e, b, a in ends]
    return Windows(kernel, strides, dilations, before, after, out)


def _count(size: int, stride: int, spread: int, before: int, after: int, ceil: bool) -> int:
    """How many windows fit on one axis."""
    steps = (size + before + after - spread) / stride
    if not ceil:
        return math.floor(steps) + 1
    count = math.ceil(steps) + 1
    return count - 1 if (count - 1) * stride >= size + before else count


def _pads(
    call: Call, size: Sequence[int], strides: Sequence[int], spread: Sequence[int]
) -> tuple[list[int], list[int]]:
    mode = call.attributes.get("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = call.attributes.get("pads") if mode == "NOTSET" else None
        pads = list(pads or [0] * 2 * len(size))
        return pads[: len(size)], pads[len(size) :]
    total = [
        max(0, (math.ceil(n / s) - 1) * s + e - n)
        for n, s, e in zip(size, strides, spread, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def pad_axes(
    x: torch.Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0
) -> torch.Tensor:
    """`x` (N, C, *size) with constants before and after each spatial axis; negative ones crop."""
    if not any((*before, *after)):
        return x
    pairs = [pair for b, a in zip(before, after, strict=True) for pair in (a, b)]
    return torch.nn.functional.pad(x, pairs[::-1], value=value)
