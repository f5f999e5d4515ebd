"""Matrix products, by torch on all cores."""

from collections.abc import Sequence

import numpy as np
import torch

from compiler.verify.kernels.call import Array, Call, Kernel, fresh, optional, required, tensor


def _matmul(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    a, b = tensor(required(inputs[0])), tensor(required(inputs[1]))
    if a.ndim < 2 or b.ndim < 2:
        return [torch.matmul(a, b).numpy()]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = fresh((*batch, a.shape[-2], b.shape[-1]))
    return [torch.matmul(a, b, out=out).numpy()]


def _gemm(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    a, b, c = optional(inputs, 3)
    left, right = tensor(required(a)), tensor(required(b))
    left = left.T if call.attributes["transA"] else left
    right = right.T if call.attributes["transB"] else right
    out = torch.mm(left, right, out=fresh((left.shape[0], right.shape[1])))
    out.mul_(call.attributes["alpha"])
    if c is not None:
        out.add_(tensor(c), alpha=call.attributes["beta"])
    return [out.numpy()]


def _einsum(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    equation = call.attributes["equation"].replace(" ", "")
    return [torch.einsum(equation, *(tensor(required(x)) for x in inputs)).numpy()]


KERNELS: dict[str, Kernel] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
