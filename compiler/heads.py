"""Where the heads of an attention are: an axis of its result, and where that is merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compiler.attention import Attending, Axes, attendings
from compiler.graph import Graph, Node, Tensor
from compiler.shapes import dims_of
from compiler.take import Dims, Take, runs

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


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
    with_features: bool = False
    """Whether the merged axis holds the features of a head as well, not only tokens."""
    heads_a_key: int = 1
    """How many heads of the query read one of the key, where the graph says so."""

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
        if self.heads_a_key == 0:
            key = self.tiles[0].softmax.inputs[1]
            return f"the heads of {key.name!r} are dynamic, or do not divide the query's"
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

    def first(self, count: int) -> Take:
        """The slice of the merged result that the first heads make."""
        return Take(self.merged_axis, 0, count * self.block)

    def kept(self, graph: Graph) -> list[tuple[Tensor, int]]:
        """The probabilities that are needed elsewhere too, and the axis that their heads are on."""
        place = self.tiles[0].axes.of_probabilities[self.axis]
        return [
            (tensor, -1 if place is None else place + len(tensor.shape))
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
        """Whether they stay an axis of their own, or are merged with others than the features."""
        return not self.with_features

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
    if joined.shape is None or tiles[0].is_other_sum:
        return Heads(tiles, None, 0, joined, 0, 1)
    dims = dims_of(joined)
    axes = tiles[0].axes
    known = [axis for axis in axes.batch if isinstance(dims[axis], int) and dims[axis] > 1]
    merges = [Heads(tiles, dims[k], k, *_follow(joined, k, axes.matrix)) for k in known]
    # Of several batch-like axes, the heads are merged with the features, or are next to them.
    best = max(merges, key=_likeness, default=None)
    dynamic = [axis for axis in axes.batch if not isinstance(dims[axis], int)]
    if best is None and any(dims[axis] == 1 for axis in axes.batch):
        # One head, and a batch: an axis that stays what it is to the end is not one of heads.
        dynamic = [axis for axis in dynamic if not _stays_apart(joined, axis, axes.matrix)]
    if best is None or best.is_batch:
        if dynamic:
            best = Heads(tiles, None, dynamic[-1], joined, dynamic[-1], 1)
        return _grouped(tiles, joined, axes) or best
    return best


def _grouped(tiles: list[Attending], joined: Tensor, axes: Axes) -> Heads | None:
    """Heads that are two axes, groups and the heads in each that share a key, and become one."""
    if len(joined.outputs) != 1 or joined.outputs[0].op != "Reshape":
        return None
    node, dims = joined.outputs[0], dims_of(joined)
    if node.outputs[0].shape is None or node.inputs[0] is not joined:
        return None
    for sources, targets in runs(dims, dims_of(node.outputs[0])):
        are_several = sum(isinstance(dims[axis], int) and dims[axis] > 1 for axis in sources) > 1
        if len(targets) == 1 and {*sources} <= {*axes.batch} and are_several:
            matrix = _moved_axes(node, joined, axes.matrix)
            followed = _follow(node.outputs[0], targets.start, matrix)
            count, inner = math.prod(dims[axis] for axis in sources), dims[sources[-1]]
            heads = Heads(tiles, count, sources.start, *followed, heads_a_key=inner)
            return None if heads.is_batch else heads
    return None


def _likeness(heads: Heads) -> tuple[bool, int, int]:
    """How much an axis looks like that of heads, where a batch or windows are axes as well."""
    return heads.with_features, heads.block, heads.merged_axis


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
    shared = tiles[0].heads_a_key
    if packed:
        return Heads(tiles, count, axis, joined, axis, length // count, True, shared)
    return Heads(tiles, count, axis, *_follow(joined, axis, (2, 3)), heads_a_key=shared)


def _follow(
    tensor: Tensor, axis: int, matrix: Sequence[int | None]
) -> tuple[Tensor, int, int, bool]:
    """Follows an axis through data movement to the last tensor where its indices are blocks.

    The last answer is whether it was merged with the features on the way, and not with the tokens:
    `matrix` are the axes of (tokens, features), None where one is lost.
    """
    block, with_features = 1, False
    features = matrix[1]
    is_thin = features is not None and dims_of(tensor)[features] == 1
    while len(tensor.outputs) == 1:
        node = tensor.outputs[0]
        moved = _moved(node, tensor, axis, block)
        # Also where this is the end, as heads lie apart: [N, D, H] becomes D·H features.
        with_tokens, with_them = (_are_merged(node, tensor, axis, other) for other in matrix)
        is_whole = moved is not None or block == 1
        with_features = with_features or (is_whole and with_them and not with_tokens)
        if moved is None:
            break
        matrix = _moved_axes(node, tensor, matrix)
        tensor, axis, block = node.outputs[0], *moved
    # Of one feature a head nothing is left to merge with: heads that end up last are the features.
    with_features = with_features or (is_thin and axis == len(tensor.shape) - 1)
    return tensor, axis, block, with_features


def _stays_apart(tensor: Tensor, axis: int, matrix: Sequence[int | None]) -> bool:
    """Whether an axis is never merged with another, as far as only data movement reads it."""
    last, place, block, with_features = _follow(tensor, axis, matrix)
    is_reshaped = any(user.op in _RESHAPES for user in last.outputs)
    return block == 1 and place < len(last.shape) - 1 and not (with_features or is_reshaped)


def _are_merged(node: Node, tensor: Tensor, axis: int, other: int | None) -> bool:
    """Whether a Reshape makes one axis of two."""
    if node.op not in _RESHAPES or node.outputs[0].shape is None or node.inputs[0] is not tensor:
        return False
    pairs = runs(dims_of(tensor), dims_of(node.outputs[0]))
    return any(axis in s and other in s and len(t) < len(s) for s, t in pairs)


def _moved_axes(node: Node, tensor: Tensor, axes: Sequence[int | None]) -> tuple[int | None, ...]:
    """Where a Transpose or Reshape moves axes; None for one that it does not keep whole."""
    found = [None if axis is None else _moved(node, tensor, axis, 1) for axis in axes]
    return tuple(place[0] if place is not None and place[1] == 1 else None for place in found)


def _moved(node: Node, tensor: Tensor, axis: int, block: int) -> tuple[int, int] | None:
    """Where a Transpose or Reshape moves (axis, block); None if it does something else to it."""
    if node.outputs[0].shape is None or node.inputs[0] is not tensor:
        return None
    source, target = dims_of(tensor), dims_of(node.outputs[0])
    if node.op == "Transpose":
        perm = node.attrs.get("perm", list(range(len(source) - 1, -1, -1)))
        return list(perm).index(axis), block
    if node.op in _RESHAPES and block == 1:
        return _reshaped(source, target, axis)
    return None


def _reshaped(source: Dims, target: Dims, axis: int) -> tuple[int, int] | None:
    """The axis of a reshape's result whose blocks are the indices of an axis of its input."""
    for sources, targets in runs(source, target):
        if len(sources) == len(targets) == 1 and axis in sources:
            return targets.start, 1
        if axis in sources:
            stride = math.prod(source[axis + 1 : sources.stop])
            for position in targets:
                inner = math.prod(target[position + 1 : targets.stop])
                if target[position] > 1 and target[position] * inner == source[axis] * stride:
                    return (position, stride // inner) if stride % inner == 0 else None
    return None
