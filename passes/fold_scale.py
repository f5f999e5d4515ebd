"""Products with constants, one for each channel, go into the weights of a linear op nearby.

    MatMul(x, W[K×C]) → Add b[C] → Mul γ[C]        Div c[K×1] → Transpose → MatMul W[K×C]
    MatMul(x, W · γ) → Add b · γ                   Transpose → MatMul(W / c)

Backwards a scale goes into what computes the tensor: columns of a MatMul's or Gemm's weights, the
output channels of a Conv or ConvTranspose, and the bias on the way. Forwards it goes into what
reads the tensor: rows, and input channels. In between values may move (Transpose, Reshape, Slice,
Concat …); the scale's channels are followed, and nothing else may read the tensors. Of a packed
projection the part that is meant is scaled. So LayerScale goes away, before split_heads or after.

`scalars=fold` takes products with a single number as well: 1/√D of attention goes through
MatMul(q, kᵀ) into the projection of q. They are kept unless asked for, as NPUs compute them for
nothing within a Softmax or Gelu. The scale of an input that is shifted first (Sub mean, Div std) is
left to fold_norm, which takes both: the shift alone may cost more than the two.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: behind split_heads, IQ-9075 44.45 →
39.84 | 17.14 → 15.33, SA8797 16.08 → 14.72 | 6.86 → 5.87.

Contract: algebraic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
import onnx

from compiler.graph import Graph, Node, Tensor, is_standard, producer_of
from compiler.region import ancestors
from compiler.rewrite import Builder, Contract, Float64, LocalPass, Replacement, TensorType
from compiler.scaling import (
    PARTS,
    NoFold,
    backwards,
    exact,
    factor_position,
    fitted,
    forwards,
    narrow,
    parts_of,
    why_not_held,
)
from compiler.shapes import NoRule, dims_of
from compiler.weights import NewWeight, onnx_type_of

# What may stand between an input and its normalization.
MOVEMENT = ("Cast", "Gather", "Identity", "Resize", "Slice", "Transpose", "Unsqueeze")
# A constant operand of these may be broadcast: it gets a value for each channel where it had one.
MAY_GROW = ("Add", "Sub", "Mul", "Div", "Gemm")
# How many ops may stand between a scale and what takes it.
STEPS = 32


@dataclass(frozen=True)
class Product:
    """A tensor that is data times a constant, or data by a constant."""

    result: Tensor

    @property
    def place(self) -> str:
        """The tensor's name."""
        return str(self.result.name)

    @property
    def node(self) -> Node:
        """What computes the tensor now, after the rewrites at other places."""
        return producer_of(self.result)

    def operands(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Data and constant."""
        position = factor_position(graph, self.node)
        assert position is not None
        return self.node.inputs[1 - position], self.node.inputs[position]


@dataclass
class Scaled:
    """A tensor times a scale, by scaled operands of what computes it; by none if it is a constant.

    `beside` are nodes that read another part of the tensor, and don't notice.
    """

    tensor: Tensor
    scale: Float64
    operands: dict[int, Scaled] = field(default_factory=dict)
    beside: Sequence[Node] = ()


@dataclass
class Passed:
    """The nodes that a scale passes forwards, with the input it comes in by; the last takes it."""

    path: list[tuple[Node, int]]
    operands: dict[int, Scaled]


@dataclass(frozen=True)
class FoldScale(LocalPass[Product]):
    """See the module."""

    scalars: Literal["keep", "fold"] = "keep"

    @property
    def contract(self) -> Contract:
        """Products are regrouped."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        more = " (scalars=fold takes single numbers as well)" if self.scalars == "keep" else ""
        return f"nothing to fold: no tensor is multiplied by a constant for each channel{more}"

    def match(self, graph: Graph) -> Iterator[Product]:
        """Every Mul of a tensor and a constant, and every Div by one."""
        for node in graph.nodes:
            position = factor_position(graph, node)
            if position is not None and self._covers(node.inputs[position]):
                yield Product(node.outputs[0])

    def guard(self, graph: Graph, match: Product) -> str | None:
        """Refuses what no linear op can take whole, naming what is in the way on either side."""
        try:
            self._plan(graph, match, _scale(graph, match))
        except (NoFold, NoRule) as reason:
            return str(reason)
        return None

    def rewrite(self, graph: Graph, match: Product) -> Replacement:
        """The tensor again by scaled weights, or what it leads to by weights that are scaled."""
        data, constant = match.operands(graph)
        plan = self._plan(graph, match, _scale(graph, match))
        sign = "·" if match.node.op == "Mul" else "/"
        maker = Maker(graph, Builder(graph, match.place), f" {sign} {constant.name}")
        if isinstance(plan, Scaled):
            maker.outputs.append((match.result, maker.scaled(plan)))
        else:
            maker.pass_on(plan, data)
        return Replacement(maker.builder, maker.outputs)

    def _covers(self, constant: Tensor) -> bool:
        return self.scalars == "fold" or tuple(constant.shape) != (1,) * len(constant.shape)

    def _plan(self, graph: Graph, match: Product, scale: Float64) -> Scaled | Passed:
        data, _ = match.operands(graph)
        try:
            found = _scaled(graph, data, scale, match.node)
            _check_apart(found)
        except (NoFold, NoRule) as behind:
            if _is_normalized(graph, data):
                raise NoFold(f"{data.name!r} is a shifted input: fold_norm takes both") from None
            try:
                return self._passed(graph, match.result, scale)
            except (NoFold, NoRule) as ahead:
                raise NoFold(f"backwards: {behind}; forwards: {ahead}") from None
        return found

    def _passed(self, graph: Graph, tensor: Tensor, scale: Float64) -> Passed:
        """The way forwards from a tensor that is to lose its scale."""
        path: list[tuple[Node, int]] = []
        while len(path) < STEPS:
            node = _only_reader(graph, tensor)
            path.append((node, [t is tensor for t in node.inputs].index(True)))
            step = self._step(graph, *path[-1], narrow(scale))
            if isinstance(step, dict):
                taken = {k: _scaled(graph, node.inputs[k], own, node) for k, own in step.items()}
                return Passed(path, taken)
            tensor, scale = node.outputs[0], step
        raise NoFold(f"more than {STEPS} ops are in between")

    def _step(
        self, graph: Graph, node: Node, position: int, scale: Float64
    ) -> Float64 | dict[int, Float64]:
        """Across one op. Of two scales in a row, each of which is a place, one is made."""
        other = factor_position(graph, node)
        if other is None or not self._covers(node.inputs[other]):
            return forwards(graph, node, position, scale)
        if node.op == "Mul":
            return {other: scale}
        if not scale.all():
            raise NoFold(f"{node.inputs[other].name!r} can't be divided by a zero of the scale")
        return {other: 1 / scale}


def _scale(graph: Graph, match: Product) -> Float64:
    """What the data is multiplied by. Raises NoFold where that is no scale of it."""
    data, constant = match.operands(graph)
    kind, values = TensorType.of(data), exact(graph, constant)
    if data.dtype is None or not kind.is_float:
        raise NoFold(f"{data.name!r} is {kind}, not float")
    if 0 in dims_of(data):
        raise NoFold(f"{data.name!r} is {kind}: it is empty")
    if not np.isfinite(values).all():
        raise NoFold(f"{match.node.op}'s constant {constant.name!r} is not finite")
    if match.node.op == "Div" and not values.all():
        raise NoFold(f"Div's constant {constant.name!r} has a zero")
    scale = narrow(fitted(values if match.node.op == "Mul" else 1 / values, data))
    if values.ndim > scale.ndim:
        raise NoFold(f"{constant.name!r} has {values.ndim} axes, and {data.name!r} {scale.ndim}")
    return scale


def _is_normalized(graph: Graph, tensor: Tensor) -> bool:
    """Whether a tensor is an input, moved perhaps, plus or minus a constant."""
    shift = producer_of(tensor)
    known = [] if shift is None else [graph.is_constant(t) for t in shift.inputs]
    if shift is None or shift.op not in ("Add", "Sub") or sum(known) != 1:
        return False
    node = producer_of(shift.inputs[known.index(False)])
    while node is not None and node.op in MOVEMENT:
        node = producer_of(node.inputs[0])
    return node is None


# -- planning --------------------------------------------------------------------------------------


def _scaled(graph: Graph, tensor: Tensor, scale: Float64, reader: Node, steps: int = 0) -> Scaled:
    """How to compute `tensor · scale` for `reader` without a product; raises NoFold or NoRule."""
    if graph.is_constant(tensor):
        return _scaled_constant(graph, tensor, scale, reader)
    scale, node = narrow(fitted(scale, tensor)), producer_of(tensor)
    if node is None:
        raise NoFold(f"{tensor.name!r} is an input")
    if graph.is_output(tensor):
        raise NoFold(f"{tensor.name!r} is also an output")
    if steps == STEPS:
        raise NoFold(f"more than {STEPS} ops are in between")
    beside = _unaware(graph, tensor, scale, reader)
    faults: list[NoFold | NoRule] = []
    for way in backwards(graph, node, tensor, scale):
        try:
            operands = {k: _scaled(graph, node.inputs[k], own, node, steps + 1)
                        for k, own in way.items()}  # fmt: skip
        except (NoFold, NoRule) as fault:
            faults.append(fault)
        else:
            return Scaled(tensor, scale, operands, beside)
    raise faults[0]


def _scaled_constant(graph: Graph, tensor: Tensor, scale: Float64, reader: Node) -> Scaled:
    """The constant, if its product with the scale keeps its precision, and no one else reads it."""
    if reader.op not in MAY_GROW:
        scale = fitted(scale, tensor)
    values = exact(graph, tensor)
    if values.ndim > 1 and len(tensor.outputs) > 1:
        raise NoFold(f"the weights {tensor.name!r} are shared by {len(tensor.outputs)} nodes")
    storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(tensor.dtype))
    eps = float(ml_dtypes.finfo(storage).eps)  # type: ignore[no-untyped-call]
    product = values * scale
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = NewWeight(product, tensor.dtype, "").load().astype(np.float64)
    if not np.linalg.norm(rounded - product) <= eps * np.linalg.norm(product):
        raise NoFold(f"{tensor.name!r} times its scale does not fit {storage}")
    lost = why_not_held(product, tensor.dtype, scale)
    if lost is not None:
        raise NoFold(f"{tensor.name!r} times its scale does not fit: {lost}")
    return Scaled(tensor, scale)


def _unaware(graph: Graph, tensor: Tensor, scale: Float64, reader: Node) -> list[Node]:
    """The other readers of a tensor, if they take parts of it that have scale 1."""
    others = [node for node in tensor.outputs if node is not reader]
    is_noticed = len(tensor.outputs) - len(others) != 1
    for node in others:
        is_part = node.op in PARTS and is_standard(node) and node.inputs[0] is tensor
        is_noticed |= not is_part or any((p != 1).any() for p in parts_of(graph, node, scale))
    if is_noticed:
        raise NoFold(f"{tensor.name!r} is used elsewhere as well")
    return others


def _only_reader(graph: Graph, tensor: Tensor) -> Node:
    if graph.is_output(tensor):
        raise NoFold(f"{tensor.name!r} is also an output")
    if len(tensor.outputs) != 1:
        raise NoFold(f"{tensor.name!r} is used elsewhere as well")
    return tensor.outputs[0]


def _check_apart(plan: Scaled) -> None:
    """Raises NoFold if the nodes on the way read what is computed from another part of a tensor.

    Both are then at the cut, where one can't be chosen without the other.
    """
    path = [part for part in _parts_of_plan(plan) if part.operands]
    nodes = [node for part in path if (node := producer_of(part.tensor)) is not None]
    several = [node for node in nodes if len(node.outputs) > 1]
    others = {id(node) for node in [*several, *(node for part in path for node in part.beside)]}
    if not others:
        return
    inside = {id(part.tensor) for part in path}
    for tensor in (t for node in nodes for t in node.inputs if id(t) not in inside):
        if any(id(node) in others for node in ancestors([tensor], inside)):
            raise NoFold(f"{tensor.name!r} is computed from another part of the same product")


def _parts_of_plan(plan: Scaled) -> Iterator[Scaled]:
    yield plan
    for part in plan.operands.values():
        yield from _parts_of_plan(part)


# -- making ----------------------------------------------------------------------------------------


@dataclass
class Maker:
    """Makes the nodes that were planned; `outputs` pairs what they compute with what was there."""

    graph: Graph
    builder: Builder
    how: str
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def scaled(self, plan: Scaled) -> Tensor:
        """The tensor times its scale."""
        tensor = plan.tensor
        if not plan.operands:
            values = exact(self.graph, tensor)
            product = values * plan.scale
            while product.ndim > values.ndim and product.shape[0] == 1:
                product = product[0]
            return self.builder.constant(product, tensor.dtype, f"{tensor.name}{self.how}")
        node = producer_of(tensor)
        assert node is not None
        twin = self._copy(node, {k: self.scaled(part) for k, part in plan.operands.items()})
        new = twin.outputs[[t is tensor for t in node.outputs].index(True)]
        self._redirect(node, twin, tensor)
        for other in plan.beside:
            self._redirect(other, self._copy(other, {0: new}), None)
        return new

    def pass_on(self, plan: Passed, data: Tensor) -> None:
        """What the path leads to, from the data without their scale."""
        *path, (last, position) = plan.path
        for node, place in path:
            data = self._copy(node, {place: data}).outputs[0]
        constants = {k: self.scaled(part) for k, part in plan.operands.items()}
        twin = self._copy(last, {position: data, **constants})
        self.outputs.append((last.outputs[0], twin.outputs[0]))

    def _copy(self, node: Node, changed: Mapping[int, Tensor]) -> Node:
        inputs = [changed.get(k, tensor) for k, tensor in enumerate(node.inputs)]
        return self.builder.copy(node, inputs)

    def _redirect(self, node: Node, twin: Node, kept: Tensor | None) -> None:
        """Lets what reads other outputs of a node read those of its copy."""
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            if old is not kept and (old.outputs or self.graph.is_output(old)):
                self.outputs.append((old, new))
