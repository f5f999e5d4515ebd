"""Float64 implementations of ONNX operators, grouped as the ONNX documentation groups them."""

from compiler.verify.kernels import (
    attention,
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    resize,
)
from compiler.verify.kernels.call import Kernel

# The others take floats: on integers alone they are refused, unless the reference has them.
ANY_TYPE: dict[str, Kernel] = {**constants.KERNELS, **indexing.KERNELS}
KERNELS: dict[str, Kernel] = {
    **attention.KERNELS,
    **ANY_TYPE,
    **convolution.KERNELS,
    **elementwise.KERNELS,
    **linear.KERNELS,
    **normalization.KERNELS,
    **pooling.KERNELS,
    **resize.KERNELS,
}
