"""Values that come from attributes, and changes of type: every float type becomes float64."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compiler.verify.kernels.call import Array, Call, Kernel, optional, required

# Rounding to these is what a float64 evaluation is there to leave out.
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
WHOLE = {TensorProto.BOOL} | {
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def is_float(array: Array) -> bool:
    """Whether the array holds real numbers, in any of the types ONNX has for them."""
    name = array.dtype.name  # ml_dtypes has its own kinds
    return np.issubdtype(array.dtype, np.floating) or name.startswith(("bfloat", "float"))


def promote(array: Array) -> Array:
    """Float tensors in float64, others as they are; writable, so that torch can share them."""
    wanted = np.float64 if is_float(array) else array.dtype
    return np.require(array, wanted, "W")


def _constant(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    given = call.attributes
    if "value" in given:
        return [promote(numpy_helper.to_array(given["value"]))]
    for name, dtype in {"value_float": np.float64, "value_int": np.int64}.items():
        for key in (name, f"{name}s"):
            if key in given:
                return [np.array(given[key], dtype)]
    raise call.refuse(f"a constant given as {', '.join(given) or 'nothing'}")


def _constant_of_shape(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    value = call.attributes.get("value")
    fill = np.zeros(1) if value is None else promote(numpy_helper.to_array(value))
    return [np.full(tuple(required(inputs[0])), fill.reshape(()), fill.dtype)]


def _cast(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, to = required(inputs[0]), call.attributes["to"]
    if to in FLOATS:
        return [x.astype(np.float64, copy=False)]
    if to in WHOLE and x.dtype.kind in "fiub":
        with np.errstate(invalid="ignore"):
            return [x.astype(helper.tensor_dtype_to_np_dtype(to))]
    raise call.refuse(f"{x.dtype} to {TensorProto.DataType.Name(to)} is no plain number type")


def _cast_like(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, like = required(inputs[0]), required(inputs[1])
    if {x.dtype.kind, like.dtype.kind} - set("fiub"):
        raise call.refuse(f"{x.dtype} like {like.dtype} is no plain number type")
    with np.errstate(invalid="ignore"):
        return [x.astype(like.dtype, copy=False)]


def _eye_like(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, wanted = required(inputs[0]), call.attributes.get("dtype")
    dtype = x.dtype if wanted is None else helper.tensor_dtype_to_np_dtype(wanted)
    return [promote(np.eye(x.shape[0], x.shape[1], k=call.attributes["k"], dtype=dtype))]


def _dropout(call: Call, inputs: list[Array | None]) -> Sequence[Array]:
    x, _, training = optional(inputs, 3)
    if training is not None and bool(training):
        raise call.refuse("training_mode draws random numbers")
    return [required(x), np.ones(required(x).shape, np.bool_)]


KERNELS: dict[str, Kernel] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": _dropout,
    "EyeLike": _eye_like,
}
