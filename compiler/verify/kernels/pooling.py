"""Poolings, as a walk over the kernel's elements: any rank, dilation and padding."""

from collections.abc import Sequence
from functools import reduce

import torch

from compiler.verify.kernels.call import Array, Call, Kernel, required, tensor
from compiler.verify.kernels.windows import Windows, pad_axes, windows


def _overhang(view: Windows, size: Sequence[int]) -> list[int]:
    """Elements to add after each axis so that every window fits; ceil_mode adds to the padding."""
    axes = range(len(size))
    return [max(view.after[i], view.reach(i) - size[i] - view.before[i]) for i in axes]


def _max_pool(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    if call.outputs > 1:
        raise call.refuse("the indices of the maxima are not implemented")
    x = tensor(required(inputs[0]))
    view = windows(call, x.shape[2:], call.attributes["kernel_shape"])
    padded = pad_axes(x, view.before, _overhang(view, x.shape[2:]), -torch.inf)
    return [reduce(torch.maximum, view.taps(padded)).numpy()]


def _average_pool(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """Sums over counts; count_include_pad counts the padding, but nothing that lies beyond it."""
    x = tensor(required(inputs[0]))
    view = windows(call, x.shape[2:], call.attributes["kernel_shape"])
    after = _overhang(view, x.shape[2:])
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if call.attributes["count_include_pad"]:
        ones = pad_axes(ones, view.before, view.after, 1.0)
        beyond = [a - b for a, b in zip(after, view.after, strict=True)]
        ones = pad_axes(ones, [0] * len(after), beyond)
    else:
        ones = pad_axes(ones, view.before, after)
    total = reduce(torch.add, view.taps(pad_axes(x, view.before, after)))
    return [(total / reduce(torch.add, view.taps(ones))).numpy()]


def _global_average_pool(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x = tensor(required(inputs[0]))
    return [x.mean(tuple(range(2, x.ndim)), keepdim=True).numpy()]


def _global_max_pool(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x = tensor(required(inputs[0]))
    return [x.amax(tuple(range(2, x.ndim)), keepdim=True).numpy()]


KERNELS: dict[str, Kernel] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
}
