"""What a float64 kernel is given and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import defs, helper

Array = npt.NDArray[Any]


class UnsupportedInFloat64(Exception):  # noqa: N818 - a statement about the model, not an error
    """No float64 result can be given for an operator; the verifier then says UNVERIFIED."""

    def __init__(self, op: str, reason: str) -> None:
        super().__init__(f"{op} has no float64 evaluation: {reason}")
        self.op = op
        self.reason = reason


@dataclass(frozen=True)
class Call:
    """A node without its tensors: attributes hold the schema's defaults where the node is silent.

    `version` is the opset in which the operator last changed, `outputs` the number that is wanted.
    """

    op: str
    version: int
    attributes: Mapping[str, Any]
    outputs: int

    def refuse(self, reason: str) -> UnsupportedInFloat64:
        """The exception to raise where this call cannot be computed."""
        return UnsupportedInFloat64(self.op, reason)


Kernel = Callable[[Call, list[Array | None]], Sequence[Array]]


def read_call(node: onnx.NodeProto, opset: int) -> Call:
    """The call that `node` makes in the default domain at `opset`."""
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError as error:
        raise UnsupportedInFloat64(node.op_type, f"unknown in opset {opset}") from error
    if any(attribute.ref_attr_name for attribute in node.attribute):
        raise UnsupportedInFloat64(node.op_type, "an attribute refers to a function's attribute")
    wanted = max((i + 1 for i, name in enumerate(node.output) if name), default=0)
    return Call(node.op_type, schema.since_version, _attributes(node, schema), wanted)


def _attributes(node: onnx.NodeProto, schema: defs.OpSchema) -> dict[str, Any]:
    defaults = {name: a.default_value for name, a in schema.attributes.items()}
    given = {attribute.name: attribute for attribute in node.attribute}
    return {name: _value(a) for name, a in {**defaults, **given}.items() if a.type}


def _value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def tensor(array: Array) -> torch.Tensor:
    """`array` as a torch tensor on the same memory, or on a copy where torch has no such view."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def fresh(shape: Sequence[int]) -> torch.Tensor:
    """An uninitialised float64 tensor on NumPy's memory.

    NumPy asks the kernel for huge pages and torch does not: the first writes to a 90 MB tensor of
    attention scores then cost 5 ms instead of 20.
    """
    return torch.from_numpy(np.empty(tuple(shape), np.float64))


def optional(inputs: list[Array | None], count: int) -> list[Array | None]:
    """`inputs` padded to `count` with None, as trailing optional inputs may be left out."""
    return inputs + [None] * (count - len(inputs))


def required(array: Array | None) -> Array:
    """`array`, which the operator's schema does not allow to be missing."""
    if array is None:
        raise ValueError("a required input is missing")
    return array
