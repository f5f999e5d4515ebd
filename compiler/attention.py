"""Where a model attends: a Softmax of scores and the product of its probabilities with values.

The Softmax may be an op, or taken apart into Exp, ReduceSum and Div; or all of it is one Attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compiler.graph import Graph, Node, Tensor, producer_of
from compiler.region import ancestors
from compiler.shapes import dims_of
from compiler.take import Dims, runs

# What probabilities pass through on their way to the values and stay probabilities, a head a slice.
_KEPT_BY = frozenset({"Cast", "Identity", "IsNaN", "Mul", "Not", "Where"})


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
    def query_axis(self) -> int:
        """The axis of the result that the query tokens are along."""
        rank = len(self.result.shape)
        return 1 if self.is_whole_op and rank == 3 else rank - 2

    @property
    def is_whole_op(self) -> bool:
        """Whether one Attention op does it all."""
        return self.softmax is self.product

    @property
    def heads_a_key(self) -> int:
        """How many heads of the query read one of the key, where an Attention op says so."""
        if not self.is_whole_op:
            return 1
        query, key = self.softmax.inputs[:2]
        if len(query.shape) == 4:
            return int(query.shape[1]) // int(key.shape[1])
        return int(self.softmax.attrs["q_num_heads"]) // int(self.softmax.attrs["kv_num_heads"])

    def fault(self, graph: Graph) -> str | None:
        """Why it stays as it is: nothing is rewritten there, or no Softmax along the last axis."""
        if self.inside:
            return f"it is in {self.inside}, which is left as it is"
        if self.is_whole_op:
            return None
        shape = self.softmax.outputs[0].shape
        axis = _softmax_axis(graph, self.softmax)
        if shape is None or axis not in (-1, len(shape) - 1):
            return f"the Softmax runs over axis {axis} of {shape}"
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


def attendings(graph: Graph) -> Iterator[Attending]:
    """Every Softmax whose probabilities multiply values, and every Attention op."""
    yield from _attendings(graph, graph.nodes, "")
    for inside, nodes in graph.bodies():
        yield from _attendings(graph, nodes, inside)


def no_attention(graph: Graph) -> str:
    """Why there is nothing to split in a model without several heads: the reason of a refusal."""
    count = sum(1 for _ in attendings(graph))
    if count == 0:
        return "nothing to split: no Softmax weighs values, and there is no Attention op"
    return f"nothing to split: every attention has one head ({count} in all)"


def _attendings(graph: Graph, nodes: Sequence[Node], inside: str) -> Iterator[Attending]:
    for node in nodes:
        if node.op == "Attention" and node.domain in (None, "", "ai.onnx"):
            yield Attending(node, [], node, inside)
        elif node.op == "Softmax" or _sums(graph, node) is not None:
            found = _probabilities(node)
            product = _value_product(found)
            if product is not None:
                behind = {id(n) for n in ancestors([product.inputs[0]], {id(node.outputs[0])})}
                up_to = [t for t in found[1:] if id(producer_of(t)) in behind]
                yield Attending(node, [found[0], *up_to], product, inside)


@dataclass(frozen=True)
class Heads:
    """Where the heads of an attention are: `count` along `axis` of its result.

    Head h is `merged[h·block : (h+1)·block]` along `merged_axis`. The result is that of one
    Softmax, or of one a tile of queries, joined again. The count is None if it is dynamic.
    """

    tiles: list[Attending]
    count: int | None
    axis: int
    merged: Tensor
    merged_axis: int
    block: int

    def fault(self, graph: Graph) -> str | None:
        """Why they can't be taken apart, naming the tensor at fault; None if they can."""
        for tile in self.tiles:
            fault = tile.fault(graph) or tile.op_fault(by_query=False)
            if fault is not None:
                return fault
        name, shape = self.merged.name, self.merged.shape
        if shape is None:
            return f"{name!r} has no shape: the number of heads has to be known"
        if self.count is None:
            called = f" ({shape[self.axis]})" if shape[self.axis] else ""
            return f"axis {self.axis} of {name!r} is dynamic{called}: no number of heads"
        if self.is_batch and not self.tiles[0].is_whole_op:
            return f"axis {self.merged_axis} of {name!r} is never merged with the features: a batch"
        return self._other_use(graph)

    def _other_use(self, graph: Graph) -> str | None:
        shown = next((tensor for tensor in self.path if graph.is_output(tensor)), None)
        if shown is not None:
            return f"{shown.name!r} is also an output: all heads would be computed twice"
        for tensor, axis in self.kept(graph):
            if axis < 0 or tensor.shape[axis] != self.count:
                return f"{tensor.name!r} is also used elsewhere, and has no axis of heads"
        return None

    def kept(self, graph: Graph) -> list[tuple[Tensor, int]]:
        """The probabilities that are needed elsewhere too, and the axis that their heads are on."""
        rank = len(self.tiles[0].result.shape)
        return [
            (tensor, self.axis - rank + len(tensor.shape))
            for tile in self.tiles
            for tensor in tile.used_elsewhere(graph)
        ]

    def projection(self, graph: Graph) -> Node | None:
        """The MatMul of the merged heads with constant weights, if that is all that reads them."""
        users = self.merged.outputs
        if len(users) != 1 or users[0].op != "MatMul" or users[0].inputs[0] is not self.merged:
            return None
        weights, is_last = users[0].inputs[1], self.merged_axis == len(self.merged.shape) - 1
        is_one = is_last and graph.is_constant(weights) and len(weights.shape) == 2
        return users[0] if is_one else None

    @property
    def is_batch(self) -> bool:
        """Whether they stay an axis of their own, before the features."""
        return self.block == 1 and self.merged_axis < len(self.merged.shape) - 1

    @property
    def path(self) -> list[Tensor]:
        """The tensors from the results of the tiles to the one before the merged result."""
        tensors = [tile.result for tile in self.tiles]
        while tensors[-1] is not self.merged:
            tensors.append(tensors[-1].outputs[0].outputs[0])
        return [tensor for tensor in tensors if tensor is not self.merged]


def heads_of(graph: Graph) -> Iterator[Heads]:
    """The heads of every attention that has several, or an unknown number of them."""
    found = {id(attending.result): attending for attending in attendings(graph)}
    while found:
        first = next(iter(found.values()))
        tiles, joined = _joined(first, found)
        for tile in tiles:
            del found[id(tile.result)]
        heads = _heads_of_op(tiles, joined) if first.is_whole_op else _heads(tiles, joined)
        if heads is not None:
            yield heads


def _joined(first: Attending, found: Mapping[int, Attending]) -> tuple[list[Attending], Tensor]:
    """All tiles of an attention, and what they are joined to: the consumer's Concat, if any."""
    users = first.result.outputs
    if len(users) == 1 and users[0].op == "Concat" and first.result.shape is not None:
        node, rank = users[0], len(first.result.shape)
        is_alone = all(id(t) in found and len(t.outputs) == 1 for t in node.inputs)
        if is_alone and node.attrs["axis"] % rank == found[id(first.result)].query_axis:
            return [found[id(tensor)] for tensor in node.inputs], node.outputs[0]
    return [first], first.result


def _heads(tiles: list[Attending], joined: Tensor) -> Heads | None:
    if joined.shape is None:
        return Heads(tiles, None, 0, joined, 0, 1)
    dims = dims_of(joined)
    known = [axis for axis, d in enumerate(dims[:-2]) if isinstance(d, int) and d > 1]
    merges = [Heads(tiles, dims[axis], axis, *_follow(joined, axis)) for axis in known]
    # Of several batch-like axes, the heads are merged with the features, or are next to them.
    best = max(merges, key=lambda merge: (merge.block, merge.merged_axis), default=None)
    dynamic = [axis for axis, d in enumerate(dims[:-2]) if not isinstance(d, int)]
    if dynamic and (best is None or best.is_batch):
        return Heads(tiles, None, dynamic[-1], joined, dynamic[-1], 1)
    return best


def _heads_of_op(tiles: list[Attending], joined: Tensor) -> Heads | None:
    node = tiles[0].softmax
    if joined.shape is None or node.inputs[0].shape is None:
        return Heads(tiles, None, 0, joined, 0, 1)
    packed = len(joined.shape) == 3
    axis = 2 if packed else 1
    count, length = node.attrs.get("q_num_heads") if packed else None, dims_of(joined)[axis]
    count = length if count is None else count
    if not isinstance(count, int) or not isinstance(length, int):
        return Heads(tiles, None, axis, joined, axis, 1)
    if count == 1:
        return None
    followed = (joined, axis, length // count) if packed else _follow(joined, axis)
    return Heads(tiles, count, axis, *followed)


def _follow(tensor: Tensor, axis: int) -> tuple[Tensor, int, int]:
    """Follows an axis through data movement to the last tensor where its indices are blocks."""
    block = 1
    while len(tensor.outputs) == 1:
        moved = _moved(tensor.outputs[0], tensor, axis, block)
        if moved is None:
            break
        tensor, axis, block = tensor.outputs[0].outputs[0], *moved
    return tensor, axis, block


def _moved(node: Node, tensor: Tensor, axis: int, block: int) -> tuple[int, int] | None:
    """Where a Transpose or Reshape moves (axis, block); None if it does something else to it."""
    if node.outputs[0].shape is None or node.inputs[0] is not tensor:
        return None
    source, target = dims_of(tensor), dims_of(node.outputs[0])
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(len(source) - 1, -1, -1)))
        return list(perm).index(axis), block
    if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten") and block == 1:
        return _reshaped(source, target, axis)
    return None


def _reshaped(source: Dims, target: Dims, axis: int) -> tuple[int, int] | None:
    """The axis of a reshape's result whose blocks are the indices of an axis of its input."""
    for sources, targets in runs(source, target):
        if axis in sources:
            stride = math.prod(source[axis + 1 : sources.stop])
            for position in targets:
                inner = math.prod(target[position + 1 : targets.stop])
                if target[position] > 1 and target[position] * inner == source[axis] * stride:
                    return (position, stride // inner) if stride % inner == 0 else None
    return None


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


def _probabilities(softmax: Node) -> list[Tensor]:
    """The Softmax's output, and what is computed from it element by element."""
    found = [softmax.outputs[0]]
    for tensor in found:
        for user in tensor.outputs:
            result = user.outputs[0]
            if user.op in _KEPT_BY and all(result is not known for known in found):
                found.append(result)
    return found


def _value_product(probabilities: list[Tensor]) -> Node | None:
    """The MatMul of the probabilities with the values."""
    for tensor in probabilities:
        for user in tensor.outputs:
            if user.op == "MatMul" and user.inputs[0] is tensor:
                return user
    return None
