"""Where a model attends: a Softmax of scores and the product of its probabilities with values.

The Softmax may be an op, or taken apart into Exp, ReduceSum and Div; or all of it is one Attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.graph import Graph, Node, Tensor, is_standard, producer_of
from compiler.region import ancestors

# What probabilities pass through on their way to the values and stay probabilities, a head a slice.
_KEPT_BY = frozenset({"Cast", "Identity", "IsNaN", "Mul", "Not", "Where"})
_PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Axes:
    """The axes of a product of probabilities and values: query tokens, features, and the others.

    `of_probabilities` is where each axis of the result is in the probabilities, counted from the
    end; None for what only the values have.
    """

    query: int
    features: int
    batch: tuple[int, ...]
    of_probabilities: tuple[int | None, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """The axes of what is a matrix a head: query tokens and features."""
        return self.query, self.features

    @classmethod
    def of_matmul(cls, rank: int) -> Axes:
        """Those of a MatMul with a result of that rank."""
        places = (*range(-rank, -1), None)
        return cls(rank - 2, rank - 1, tuple(range(rank - 2)), places)


@dataclass(frozen=True)
class Attending:
    """A Softmax over scores and the product with the values; of an Attention op both are itself.

    `probabilities` are the Softmax's output and what is computed from it element by element (a
    Cast, PyTorch's guard against rows that are masked whole, dropout), up to the product.
    """

    softmax: Node
    probabilities: list[Tensor]
    product: Node
    inside: str = ""
    """The body or local function that it is in, where no pass rewrites; empty in the main graph."""

    @property
    def result(self) -> Tensor:
        """What is attended to: the values, weighted."""
        return self.product.outputs[0]

    @property
    def axes(self) -> Axes:
        """What the axes of the result are, for a product of matrices or an Einsum like one."""
        rank = len(self.result.shape)
        if self.product.op == "Einsum":
            return _einsum_axes(self.product, self.probabilities) or Axes.of_matmul(rank)
        return Axes.of_matmul(rank)

    @property
    def query_axis(self) -> int:
        """The axis of the result that the query tokens are along."""
        return 1 if self.is_whole_op and len(self.result.shape) == 3 else self.axes.query

    @property
    def is_whole_op(self) -> bool:
        """Whether one Attention op does it all."""
        return self.softmax is self.product

    @property
    def is_other_sum(self) -> bool:
        """Whether the probabilities go into an Einsum that is no product of matrices."""
        is_einsum = self.product.op == "Einsum"
        return is_einsum and _einsum_axes(self.product, self.probabilities) is None

    @property
    def heads_a_key(self) -> int:
        """How many heads of the query read one of the key of an Attention op; 0 if not known."""
        tensors = zip(self.softmax.inputs, ("q_num_heads", "kv_num_heads"), strict=False)
        many, few = (
            tensor.shape[1] if tensor.shape is not None and len(tensor.shape) == 4
            else self.softmax.attrs.get(name)
            for tensor, name in tensors
        )  # fmt: skip
        is_known = isinstance(many, int) and isinstance(few, int) and few > 0
        return many // few if is_known and many % few == 0 else 0

    @property
    def operands(self) -> list[Tensor]:
        """What the scores are products of: queries and keys, as the products read them.

        Not what a Concat makes of several: relative positions that stand beside queries (see
        join_products) are products of them, and wider than they.
        """
        if self.is_whole_op:
            return list(self.softmax.inputs[:2])
        found: dict[int, Node] = {}
        pending = list(self.softmax.inputs[:1])
        while pending:
            node = producer_of(pending.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                pending += [] if node.op in _PRODUCTS else node.inputs
        products = [node for node in found.values() if node.op in _PRODUCTS]
        read = [(t, producer_of(t)) for node in products for t in node.inputs]
        return [t for t, node in read if node is None or node.op != "Concat"]

    def fault(self, graph: Graph) -> str | None:
        """Why it stays as it is: nothing is rewritten there, or no Softmax along the last axis."""
        if self.inside:
            return f"it is in {self.inside}, which is left as it is"
        if self.is_whole_op:
            return None
        if self.is_other_sum:
            equation, name = self.product.attrs["equation"], self.result.name
            return f"{name!r} is no product of matrices in a batch: Einsum '{equation}'"
        shape = self.softmax.outputs[0].shape
        axis = _softmax_axis(graph, self.softmax)
        if axis != -1 and (shape is None or axis != len(shape) - 1):
            of = "a tensor without shape" if shape is None else shape
            return f"the Softmax runs over axis {axis} of {of}"
        return None

    def op_fault(self, *, by_query: bool) -> str | None:
        """What keeps an Attention op whole: a cache, more outputs, queries that count."""
        if not self.is_whole_op:
            return None
        node = self.softmax
        if any(tensor.name for tensor in [*node.inputs[4:], *node.outputs[1:]]):
            return "the Attention has a cache or more outputs than one"
        names = ("left_window_size", "right_window_size")
        placed = [name for name in names if node.attrs.get(name, -1) >= 0]
        placed += ["is_causal"] if node.attrs.get("is_causal", 0) else []
        if by_query and placed:
            return f"the Attention has {placed[0]}: what a query sees depends on its number"
        return None

    def used_elsewhere(self, graph: Graph) -> list[Tensor]:
        """The probabilities that are outputs, or that anything but the product reads."""
        inside = {id(self.product)} | {id(producer_of(tensor)) for tensor in self.probabilities}
        return [
            tensor
            for tensor in self.probabilities
            if graph.is_output(tensor) or any(id(user) not in inside for user in tensor.outputs)
        ]


def attendings(graph: Graph, *, tiled: bool = False) -> Iterator[Attending]:
    """Every Softmax whose probabilities multiply values, and every Attention op.

    Args:
        graph: the model.
        tiled: also where a Reshape that keeps the keys' axis joins rows of probabilities, of which
            `Attending.axes` says nothing: they are those of the result's probabilities.
    """
    yield from _attendings(graph, graph.nodes, "", tiled)
    for inside, nodes in graph.bodies():
        yield from _attendings(graph, nodes, inside, tiled)


def no_attention(graph: Graph) -> str:
    """Why there is nothing to split in a model without several heads: the reason of a refusal."""
    count = sum(1 for _ in attendings(graph))
    tiled = next(attendings(graph, tiled=True), None)
    if count == 0 and tiled is not None:
        name = tiled.softmax.outputs[0].name
        why = f"{name!r} is reshaped before it weighs values (as by tile_softmax)"
        return f"nothing to split: {why}"
    if count == 0:
        return "nothing to split: no Softmax weighs values, and there is no Attention op"
    return f"nothing to split: every attention has one head ({count} in all)"


def _attendings(
    graph: Graph, nodes: Sequence[Node], inside: str, tiled: bool
) -> Iterator[Attending]:
    for node in nodes:
        if node.op == "Attention" and is_standard(node):
            yield Attending(node, [], node, inside)
        elif node.op == "Softmax" or _sums(graph, node) is not None:
            found = _probabilities(node, tiled)
            product = _value_product(found)
            if product is not None:
                read = [t for t in product.inputs if any(t is known for known in found)]
                behind = {id(n) for n in ancestors(read, {id(node.outputs[0])})}
                up_to = [t for t in found[1:] if id(producer_of(t)) in behind]
                yield Attending(node, [found[0], *up_to], product, inside)


def _sums(graph: Graph, node: Node) -> Node | None:
    """The ReduceSum of a Softmax that is taken apart: e / ΣE with e = exp(…)."""
    if node.op != "Div":
        return None
    above, below = (producer_of(tensor) for tensor in node.inputs)
    if above is None or below is None or (above.op, below.op) != ("Exp", "ReduceSum"):
        return None
    return below if below.inputs[0] is node.inputs[0] else None


def _softmax_axis(graph: Graph, node: Node) -> int | None:
    summed = _sums(graph, node)
    if summed is None:
        return int(node.attrs.get("axis", -1 if graph.opset >= 13 else 1))
    axes = summed.attrs.get("axes")
    if axes is None and len(summed.inputs) > 1:
        axes = graph.ints(summed.inputs[1])
    return int(axes[0]) if axes is not None and len(axes) == 1 else None


def _probabilities(softmax: Node, tiled: bool) -> list[Tensor]:
    """The Softmax's output, and what is computed from it element by element."""
    found = [softmax.outputs[0]]
    for tensor in found:
        for user in tensor.outputs:
            result = user.outputs[0]
            is_kept = user.op in _KEPT_BY or (tiled and _keeps_keys(user))
            if is_kept and all(result is not known for known in found):
                found.append(result)
    return found


def _keeps_keys(node: Node) -> bool:
    """Whether a Reshape leaves the last axis as it is."""
    shapes = [tensor.shape for tensor in (node.inputs[0], node.outputs[0])]
    if node.op != "Reshape" or not all(shapes):
        return False
    before, after = (shape[-1] for shape in shapes)
    return isinstance(before, int) and bool(before == after)


def _value_product(probabilities: list[Tensor]) -> Node | None:
    """The MatMul of the probabilities with the values, or the Einsum that is one."""
    for tensor in probabilities:
        for user in tensor.outputs:
            if user.op == "Einsum" or (user.op == "MatMul" and user.inputs[0] is tensor):
                return user
    return None


def _einsum_axes(node: Node, probabilities: list[Tensor]) -> Axes | None:
    """What the letters of an Einsum mean; None if it weighs no values by the last axis.

    `bhqk,bkhd->bqhd`: k is summed, q is not in the values, d not in the probabilities.
    """
    terms, arrow, result = node.attrs["equation"].replace(" ", "").partition("->")
    places = [k for k, t in enumerate(node.inputs) if any(t is known for known in probabilities)]
    letters = terms.split(",")
    is_plain = arrow and "." not in terms and all(len({*t}) == len(t) for t in [*letters, result])
    if not is_plain or len(letters) != 2 or len(places) != 1 or not letters[places[0]]:
        return None
    weights, values = letters[places[0]], letters[1 - places[0]]
    queries = [k for k in result if k not in values]
    features = [k for k in result if k not in weights]
    if weights[-1] in result or weights[-1] not in values or len(queries) != 1 or not features:
        return None
    query, feature = result.index(queries[0]), result.index(features[-1])
    others = tuple(axis for axis in range(len(result)) if axis not in (query, feature))
    of_weights = (weights.find(k) - len(weights) if k in weights else None for k in result)
    return Axes(query, feature, others, tuple(of_weights))
