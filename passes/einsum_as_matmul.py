"""An Einsum that is a product of matrices becomes a MatMul between Transposes and Reshapes.

    Einsum 'bhwc,wkc->bhwk'
    Transpose[b×w×h×c] → MatMul(·, [w×c×k]) → Transpose[b×h×w×k]

A letter is of the batch if both operands and the result have it, summed if the result lacks it,
else of the rows or the columns. Rows but the last stay axes of their own, over which MatMul
broadcasts; no tensor has more axes than before. An NPU takes an Einsum apart by general rules, and
some not at all: 'hwc,wkc->hwk', which split_heads makes of the one above, is left to the CPU.
Constant operands are turned once, now.

Measured on a windowed layer of SAM-B's image encoder at 1024×1024, behind merge_axes and together
with broadcast_as_matmul, simulated ms: IQ-9075 231.00 → 60.62; before, 4 ops had no cost in the
simulation, after it none. With the pipeline of tools/npu.toml SA8797 has 10.97.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from compiler.graph import Graph, Node, Shape, Tensor, is_standard, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType, needed_nodes


@dataclass(frozen=True)
class Letters:
    """An equation's letters, by what a product of matrices does with an axis of each."""

    left: str
    right: str
    result: str

    @property
    def batch(self) -> str:
        """Those of both operands and the result."""
        return "".join(k for k in self.left if k in self.right and k in self.result)

    @property
    def summed(self) -> str:
        """Those of both operands alone."""
        return "".join(k for k in self.left if k in self.right and k not in self.result)

    @property
    def rows(self) -> str:
        """Those of the left operand and the result."""
        return "".join(k for k in self.left if k not in self.right)

    @property
    def columns(self) -> str:
        """Those of the right operand and the result."""
        return "".join(k for k in self.right if k not in self.left)

    @property
    def is_product(self) -> bool:
        """Whether matrices are multiplied: no diagonals, no sums within one operand."""
        terms = (self.left, self.right, self.result)
        is_plain = all(term.isalpha() and len({*term}) == len(term) for term in terms)
        shown = {*self.batch, *self.rows, *self.columns}
        return (
            is_plain
            and bool(self.rows and self.columns and self.summed)
            and ({*self.result} == shown)
        )


@dataclass(frozen=True)
class Sum:
    """An Einsum of two operands."""

    node: Node

    @property
    def place(self) -> str:
        """The name of what it computes."""
        return str(self.node.outputs[0].name)

    @property
    def equation(self) -> str:
        """What it says; ONNX requires it."""
        return str(self.node.attrs.get("equation", ""))

    @property
    def letters(self) -> Letters:
        """Those of its equation; of one without an arrow nothing is known of the result."""
        terms, _, result = self.equation.replace(" ", "").partition("->")
        left, _, right = terms.partition(",")
        return Letters(left, right, result)

    def sizes(self) -> dict[str, int]:
        """How long the axis of each letter is; the shapes are known."""
        terms = (self.letters.left, self.letters.right)
        shapes = [static_shape(tensor) or () for tensor in self.node.inputs]
        return {k: n for t, s in zip(terms, shapes, strict=True) for k, n in zip(t, s, strict=True)}


@dataclass(frozen=True)
class EinsumAsMatmul(LocalPass[Sum]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """The same sum, in the kernel's order."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to multiply: no Einsum has two operands"

    def match(self, graph: Graph) -> Iterator[Sum]:
        """Every Einsum of two operands."""
        for node in needed_nodes(graph):
            if node.op == "Einsum" and is_standard(node) and len(node.inputs) == 2:
                yield Sum(node)

    def guard(self, graph: Graph, match: Sum) -> str | None:
        """Refuses sums that are no product of matrices, sizes that are open, whole numbers."""
        if not match.letters.is_product:
            what = f"Einsum '{match.equation}'"
            return f"{match.place!r} is no product of matrices in a batch: {what}"
        terms = (match.letters.left, match.letters.right)
        for tensor, term in zip(match.node.inputs, terms, strict=True):
            kind, shape = TensorType.of(tensor), static_shape(tensor)
            if shape is None or 0 in shape or not kind.is_float:
                return f"{tensor.name!r} is {kind}, not floats of a fixed shape"
            if len(shape) != len(term):
                return f"{tensor.name!r} is {kind}, which has not the axes {term!r}"
        sizes = match.sizes()
        for k, n in zip(match.letters.left, match.node.inputs[0].shape, strict=True):
            if n != sizes[k]:
                return f"{match.node.inputs[0].name!r} has {n} of {k!r}, the other {sizes[k]}"
        return None

    def rewrite(self, graph: Graph, match: Sum) -> Replacement:
        """The operands as batches of matrices, their product, and its axes in the asked order."""
        letters, sizes, builder = match.letters, match.sizes(), Builder(graph, match.place)
        left, right = match.node.inputs
        outer = letters.rows[:-1] + letters.batch
        row, n_summed = letters.rows[-1], math.prod(sizes[k] for k in letters.summed)
        rows = tuple(sizes[k] for k in outer + row)
        batch = tuple(sizes[k] for k in letters.batch)
        n_columns = math.prod(sizes[k] for k in letters.columns)
        order = outer + row + letters.summed
        a = _arranged(graph, builder, left, _places(letters.left, order), (*rows, n_summed))
        order = letters.batch + letters.summed + letters.columns
        shape = (*batch, n_summed, n_columns)
        b = _arranged(graph, builder, right, _places(letters.right, order), shape)
        product = builder.node("MatMul", [a, b], (*rows, n_columns))
        made = outer + row + letters.columns
        product = _reshaped(builder, product, tuple(sizes[k] for k in made))
        result = _transposed(builder, product, _places(made, letters.result))
        return Replacement(builder, [(match.node.outputs[0], result)])


def _places(letters: str, order: str) -> list[int]:
    return [letters.index(k) for k in order]


def _arranged(
    graph: Graph, builder: Builder, tensor: Tensor, order: list[int], shape: Shape
) -> Tensor:
    """An operand with its axes in another order, then in another shape; a constant stays one."""
    if order == sorted(order) and static_shape(tensor) == shape:
        return tensor
    values = graph.exact(tensor)
    if values is not None:
        turned = values.transpose(order).reshape(shape)
        return builder.constant(turned, tensor.dtype, f"{tensor.name} as matrices")
    return _reshaped(builder, _transposed(builder, tensor, order), shape)


def _transposed(builder: Builder, tensor: Tensor, order: list[int]) -> Tensor:
    if order == sorted(order):
        return tensor
    shape = static_shape(tensor) or ()
    return builder.node("Transpose", [tensor], tuple(shape[k] for k in order), perm=order)


def _reshaped(builder: Builder, tensor: Tensor, shape: Shape) -> Tensor:
    if static_shape(tensor) == shape:
        return tensor
    return builder.node("Reshape", [tensor, builder.ints(shape, "shape")], shape)
