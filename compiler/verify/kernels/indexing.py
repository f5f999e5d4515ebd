"""Values picked by index, where `onnx.reference` falls short of the operator."""

from collections.abc import Sequence

import numpy as np

from compiler.verify.kernels.call import Array, Call, Kernel, required


def _gather_elements(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    """data[i0, …, indices[i0, …, ik], …, ik]; the indices may cover a part of the other axes.

    The reference refuses that, wraps what is out of range and takes at most 32 values to pick from.
    """
    data, indices = required(inputs[0]), required(inputs[1])
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[call.attributes["axis"]] = indices
    return [data[tuple(grid)]]


KERNELS: dict[str, Kernel] = {"GatherElements": _gather_elements}
