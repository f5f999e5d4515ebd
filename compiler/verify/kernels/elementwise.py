"""Elementwise operators and activations, by torch on all cores."""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, required, tensor

Formula = Callable[[torch.Tensor, Any], torch.Tensor]


def _unary(function: Callable[..., torch.Tensor]) -> Kernel:
    def kernel(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
        x = tensor(required(inputs[0]))
        return [function(x, out=fresh(x.shape)).numpy()]

    return kernel


def _formula(function: Formula) -> Kernel:
    def kernel(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
        return [function(tensor(required(inputs[0])), call.attributes).numpy()]

    return kernel


def _fold(function: Callable[..., torch.Tensor]) -> Kernel:
    def pair(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return function(a, b, out=fresh(np.broadcast_shapes(a.shape, b.shape)))

    def kernel(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
        return [reduce(pair, (tensor(required(x)) for x in inputs)).numpy()]

    return kernel


def _mean(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    return [_fold(torch.add)(call, inputs)[0] / len(inputs)]


def _pow(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    base, exponent = required(inputs[0]), required(inputs[1])
    if base.dtype != np.float64:  # the result has the base's type
        return [np.power(base, exponent).astype(base.dtype)]
    return _fold(torch.pow)(call, [base, exponent.astype(np.float64)])


def _mod(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    if not call.attributes["fmod"]:
        raise call.refuse("fmod=0 is only defined for integers")
    return [np.fmod(required(inputs[0]), required(inputs[1]))]


def _where(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    condition, a, b = (required(x) for x in inputs)
    return [torch.where(tensor(condition), tensor(a), tensor(b)).numpy()]


def _clip(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, low, high = optional(inputs, 3)
    if call.version < 11:  # the bounds were attributes
        low, high = (np.asarray(call.attributes.get(k, v)) for k, v in _CLIP_6.items())
    result = tensor(required(x))
    # Minimum last: where low > high, ONNX says that every value becomes high.
    result = result if low is None else torch.maximum(result, tensor(low))
    result = result if high is None else torch.minimum(result, tensor(high))
    return [result.numpy()]


_CLIP_6 = {"min": -math.inf, "max": math.inf}


def _prelu(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, slope = tensor(required(inputs[0])), tensor(required(inputs[1]))
    return [torch.where(x < 0, x * slope, x).numpy()]


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp x); torch's own switches to x above 20, which is 2e-9 off there."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def _gelu(x: torch.Tensor, attributes: Any) -> torch.Tensor:
    if attributes["approximate"] == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return x * torch.sigmoid(2 * inner)  # (1 + tanh z) / 2, without its cancellation
    return 0.5 * x * torch.erfc(x * -math.sqrt(0.5))


def _elu(x: torch.Tensor, alpha: float, gamma: float = 1.0) -> torch.Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _celu(x: torch.Tensor, a: Any) -> torch.Tensor:
    alpha: float = a["alpha"]
    return x.clamp(min=0) + alpha * torch.expm1((x / alpha).clamp(max=0))


def _shrink(x: torch.Tensor, a: Any) -> torch.Tensor:
    outer = torch.where(x > a["lambd"], x - a["bias"], torch.zeros_like(x))
    return torch.where(x < -a["lambd"], x + a["bias"], outer)


def _hard_swish(x: torch.Tensor, a: Any) -> torch.Tensor:
    return x * (x / 6 + 0.5).clamp(0, 1)


UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # halves to even, as ONNX asks
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

FORMULAS: dict[str, Formula] = {
    "Celu": _celu,
    "Elu": lambda x, a: _elu(x, a["alpha"]),
    "Gelu": _gelu,
    "HardSigmoid": lambda x, a: (a["alpha"] * x + a["beta"]).clamp(0, 1),
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda x, a: torch.where(x < 0, a["alpha"] * x, x),
    "Mish": lambda x, a: x * torch.tanh(softplus(x)),
    "Relu": lambda x, a: torch.clamp_min(x, 0),
    "Selu": lambda x, a: _elu(x, a["alpha"], a["gamma"]),
    "Shrink": _shrink,
    "Softplus": lambda x, a: softplus(x),
    "Softsign": lambda x, a: x / (1 + x.abs()),
    "Swish": lambda x, a: x * torch.sigmoid(a["alpha"] * x),
    "ThresholdedRelu": lambda x, a: torch.where(x > a["alpha"], x, torch.zeros_like(x)),
}

FOLDS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "Div": torch.div,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Sub": torch.sub,
    "Sum": torch.add,
}

KERNELS: dict[str, Kernel] = {
    **{op: _unary(function) for op, function in UNARY.items()},
    **{op: _formula(function) for op, function in FORMULAS.items()},
    **{op: _fold(function) for op, function in FOLDS.items()},
    "Clip": _clip,
    "Mean": _mean,
    "Mod": _mod,
    "PRelu": _prelu,
    "Pow": _pow,
    "Where": _where,
}
