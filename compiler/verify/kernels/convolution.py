"""Convolutions in one, two and three dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, tensor
from compiler.verify.kernels.windows import Windows, pad_axes, windows

CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
# torch unfolds the whole image to columns for float64: strips whose columns stay in the cache are
# two to three times faster and save 0.6 GB on a 518 x 518 head.
STRIP_NBYTES = 8 << 20


def _conv(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """X (N, C, *size), W (M, C / group, *kernel), B (M) -> Y (N, M, *out)."""
    data, weight, bias = (x if x is None else tensor(x) for x in optional(inputs, 3))
    if data is None or weight is None or data.ndim - 2 not in CONVOLUTIONS:
        raise call.refuse("only 1 to 3 spatial axes are implemented")
    view = windows(call, data.shape[2:], weight.shape[2:])
    padded = pad_axes(data, view.before, view.after)
    options = {
        "bias": bias,
        "stride": tuple(view.strides),
        "dilation": tuple(view.dilations),
        "groups": call.attributes["group"],
    }
    if data.ndim != 4:
        return [CONVOLUTIONS[data.ndim - 2](padded, weight, **options).numpy()]
    return [_in_strips(padded, weight, view, options).numpy()]


def _in_strips(
    padded: torch.Tensor, weight: torch.Tensor, view: Windows, options: dict[str, Any]
) -> torch.Tensor:
    height, width = view.out
    out = fresh((padded.shape[0], weight.shape[0], height, width))
    columns = padded.shape[0] * padded.shape[1] * weight[0, 0].numel()
    rows = max(1, STRIP_NBYTES // max(1, columns * width * 8))
    stride, spread = view.strides[0], (view.kernel[0] - 1) * view.dilations[0] + 1
    for first in range(0, height, rows):
        last = min(first + rows, height) - 1
        strip = padded[:, :, first * stride : last * stride + spread]
        out[:, :, first : last + 1] = functional.conv2d(strip, weight, **options)
    return out


def _conv_transpose(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """X (N, C, *size), W (C, M / group, *kernel), B (M) -> Y (N, M, *out).

    The full result, without padding, is cropped or extended with zeros: so padding that differs at
    the two ends needs no case of its own.
    """
    data, weight, bias = (x if x is None else tensor(x) for x in optional(inputs, 3))
    if data is None or weight is None or data.ndim - 2 not in TRANSPOSED:
        raise call.refuse("only 1 to 3 spatial axes are implemented")
    axes = data.ndim - 2
    strides = tuple(call.attributes.get("strides") or [1] * axes)
    dilations = tuple(call.attributes.get("dilations") or [1] * axes)
    full = TRANSPOSED[axes](
        data, weight, stride=strides, groups=call.attributes["group"], dilation=dilations
    )
    before, out = _transposed_crop(call, data.shape[2:], full.shape[2:], strides)
    after = [o + b - n for o, b, n in zip(out, before, full.shape[2:], strict=True)]
    result = pad_axes(full, [-b for b in before], after)
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * axes)
    return [result.numpy()]


def _transposed_crop(
    call: Call, size: Sequence[int], full: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What to leave out before each axis, and each axis' length: the equations of the schema."""
    axes, mode = len(size), call.attributes["auto_pad"]
    extra = call.attributes.get("output_padding") or [0] * axes
    out = call.attributes.get("output_shape")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        out = out or [n * s for n, s in zip(size, strides, strict=True)]
    if not out:
        pads = call.attributes.get("pads") if mode == "NOTSET" else None
        pads = list(pads or [0] * 2 * axes)
        ends = zip(full, extra, pads, pads[axes:], strict=False)
        return pads[:axes], [n + e - b - a for n, e, b, a in ends]
    total = [n + e - o for n, e, o in zip(full, extra, out, strict=True)]
    if min(total) < 0:
        raise call.refuse("output_shape is larger than the full result")
    return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total], list(out)


KERNELS: dict[str, Kernel] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
