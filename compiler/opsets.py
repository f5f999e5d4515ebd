"""Whether a node means the same in an older operator set: what ONNX's own schemas say, and more."""

from __future__ import annotations

import onnx
from onnx import TensorProto, defs

from compiler.graph import Node
from compiler.weights import onnx_type_of

# Operators that changed in what they compute, and not just in the types that they take, since
# opset 20: the text of their schemas, opsets 21 to 26.
CHANGED = {
    "GroupNormalization": "scales groups, not channels,",
    "LpNormalization": "divides by a norm of 0",
}
_DEFAULT_DOMAIN = (None, "", "ai.onnx")


def obstacle(node: Node, opset: int, older: int) -> str | None:
    """Why a node of one opset does not mean the same in an older one (20 or newer); None if so.

    An attribute that the older opset does not know is no obstacle where it has its default value
    (`drop_newer_attributes`), except within If, Loop and Scan, whose bodies are kept as read.
    """
    if node.domain not in _DEFAULT_DOMAIN:
        return None
    new, old = defs.get_schema(node.op, opset, ""), _schema(node.op, older)
    if old is None:
        return f"{node.op} is new in opset {new.since_version}"
    if new.since_version != old.since_version:
        reason = _changed(node, new, old) or _wide_type(node, old, older)
        if reason is not None:
            return reason
    for inner in (n for body in node.subgraphs() for n in body.nodes):
        reason = obstacle(inner, opset, older)
        if reason is None and _newer_attributes(inner, older):
            reason = f"{inner.op} in a branch names attributes of opset {new.since_version}"
        if reason is not None:
            return reason
    return None


def drop_newer_attributes(node: Node, older: int) -> None:
    """Takes attributes away that an older opset does not know; see `obstacle`."""
    for name in _newer_attributes(node, older):
        del node.attrs[name]


def _schema(op: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return None


def _newer_attributes(node: Node, older: int) -> list[str]:
    schema = _schema(node.op, older) if node.domain in _DEFAULT_DOMAIN else None
    return [] if schema is None else [name for name in node.attrs if name not in schema.attributes]


def _changed(node: Node, new: defs.OpSchema, old: defs.OpSchema) -> str | None:
    since = new.since_version
    if node.op in CHANGED:
        return f"{node.op} {CHANGED[node.op]} before opset {since}"
    if node.op in ("AveragePool", "MaxPool") and node.attrs.get("ceil_mode"):
        return f"{node.op} with ceil_mode has other windows before opset {since}"
    for name in node.attrs:
        if name not in old.attributes and node.attrs[name] != _default(new, name):
            return f"{node.op} has no {name!r} before opset {since}"
    return None


def _default(schema: defs.OpSchema, name: str) -> object:
    default = schema.attributes[name].default_value
    value = onnx.helper.get_attribute_value(default) if default.type else None
    return value.decode() if isinstance(value, bytes) else value


def _wide_type(node: Node, old: defs.OpSchema, older: int) -> str | None:
    """A tensor of a type that the older operator does not take."""
    allowed = {c.type_param_str: c.allowed_type_strs for c in old.type_constraints}
    for tensors, formals in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        for position, tensor in enumerate(tensors):
            formal = formals[min(position, len(formals) - 1)].type_str
            kind = 0 if tensor.dtype is None else onnx_type_of(tensor.dtype)
            name = TensorProto.DataType.Name(kind).lower()
            if kind and f"tensor({name})" not in allowed.get(formal, [formal]):
                return f"{node.op} takes no {name} in opset {older}"
    return None
