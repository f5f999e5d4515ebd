"""Softmax and the normalizations; stash_type is ignored, since everything is float64."""

from collections.abc import Sequence

import torch

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, required, tensor


def _softmax(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x = tensor(required(inputs[0]))
    view, axis = _softmax_view(call, x)
    out = torch.softmax(view, axis, out=fresh(view.shape))
    return [out.reshape(x.shape).numpy()]


def _log_softmax(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x = tensor(required(inputs[0]))
    view, axis = _softmax_view(call, x)
    return [torch.log_softmax(view, axis).reshape(x.shape).numpy()]


def _softmax_view(call: Call, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The view and axis to normalize; before opset 13 all axes from `axis` on were one."""
    axis = int(call.attributes["axis"])
    if call.version >= 13:
        return x, axis
    return x.reshape(x.shape[: axis % x.ndim].numel(), -1), 1


def _layer_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """Y, and where they are wanted the mean and 1 / sqrt(variance + epsilon)."""
    x, gain, bias = optional(inputs, 3)
    data = tensor(required(x))
    shape = data.shape[call.attributes["axis"] % data.ndim :]
    parts = torch.native_layer_norm(data, shape, None, None, call.attributes["epsilon"])
    # The gain and bias may broadcast, which torch's layer_norm does not allow.
    result = parts[0].mul_(tensor(required(gain)))
    result = result if bias is None else result.add_(tensor(bias))
    return [part.numpy() for part in (result, *parts[1:])]


def _rms_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x = tensor(required(inputs[0]))
    axes = tuple(range(call.attributes["axis"] % x.ndim, x.ndim))
    square = x.square().mean(axes, keepdim=True)
    result = x / torch.sqrt(square + call.attributes["epsilon"])
    return [(result * tensor(required(inputs[1]))).numpy()]


def _batch_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    if call.version < 9 or call.attributes.get("training_mode") or call.outputs > 1:
        raise call.refuse("only inference from opset 9 on is implemented")
    x, gain, bias, mean, variance = (tensor(required(v)) for v in inputs)
    per_channel = (-1, *[1] * (x.ndim - 2))
    scale = gain / torch.sqrt(variance + call.attributes["epsilon"])
    out = torch.sub(x, mean.reshape(per_channel), out=fresh(x.shape))
    return [out.mul_(scale.reshape(per_channel)).add_(bias.reshape(per_channel)).numpy()]


def _normalized(x: torch.Tensor, groups: int, epsilon: float) -> torch.Tensor:
    """`x` (N, C, *size) with mean 0 and variance 1 in each of `groups` groups of channels."""
    view = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(view, 2, unbiased=False, keepdim=True)
    return ((view - mean) / torch.sqrt(variance + epsilon)).reshape(x.shape)


def _instance_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, gain, bias = (tensor(required(v)) for v in inputs)
    per_channel = (-1, *[1] * (x.ndim - 2))
    result = _normalized(x, x.shape[1], call.attributes["epsilon"])
    return [(result * gain.reshape(per_channel) + bias.reshape(per_channel)).numpy()]


def _group_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """Gain and bias are given per group in opset 18 and per channel from 21 on."""
    x, gain, bias = (tensor(required(v)) for v in inputs)
    groups = call.attributes["num_groups"]
    if call.version < 21:
        gain, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (gain, bias))
    per_channel = (-1, *[1] * (x.ndim - 2))
    result = _normalized(x, groups, call.attributes["epsilon"])
    return [(result * gain.reshape(per_channel) + bias.reshape(per_channel)).numpy()]


def _lp_norm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """Vectors of norm 0 stay 0, as the schema asks from opset 22 on."""
    x = tensor(required(inputs[0]))
    norm = torch.linalg.vector_norm(x, call.attributes["p"], call.attributes["axis"], keepdim=True)
    return [torch.where(norm == 0, x, x / norm).numpy()]


def _lrn(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """X / (bias + alpha / size * sum of squares over `size` channels around)^beta.

    `onnx.reference` divides alpha by size in float32, and only sums for as many channels as the
    batch has images.
    """
    x, given = tensor(required(inputs[0])), call.attributes
    size = given["size"]
    around = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2]
    squares = torch.nn.functional.pad(x.square(), around).unfold(1, size, 1).sum(-1)
    return [(x / (given["bias"] + given["alpha"] / size * squares) ** given["beta"]).numpy()]


KERNELS: dict[str, Kernel] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "Softmax": _softmax,
}
