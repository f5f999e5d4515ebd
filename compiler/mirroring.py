"""A flip is followed through every op, which gets mirrored weights instead of flipped data.

Behind a flip every tensor is a mirrored tensor: `old[i] = new[mirror[i]]` along some axes, where
`new` is computed from the data as it was before the flip. An axis of pixels is mirrored as a whole,
one of tokens (a class token, then rows of patches) row by row, one of windows in windows and within
them. Each op has a small rule that says what has to change for it to compute the new tensors: the
kernel of a convolution is mirrored and its padding swapped, a position embedding is mirrored, a
Softmax or a product of matrices takes tokens in any order. Where an op makes one number of all
along the axis, or another flip undoes it, nothing is mirrored any more. A rule that finds the op
knowing left from right says so. No rule knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compiler.graph import Graph, Node, Shape, Tensor, producer_of, reads_of, static_shape
from compiler.interpolation import NotLinear, matrices_of
from compiler.rewrite import Builder, TensorType, needed_nodes
from compiler.shapes import NoRule, shape_of
from compiler.take import runs
from compiler.weights import Array, NewWeight

Permutation = tuple[int, ...]
Mirror = Mapping[int, Permutation]
"""Axis → where each index of the old tensor is in the new one; the other axes are as they were."""

# A matrix of weights counts as symmetric up to the rounding of positions in float64.
SYMMETRIC = 1e-12


class Unmirrorable(Exception):  # noqa: N818 - a refusal, not an error
    """Why an op can't do without the flip."""


@dataclass(frozen=True)
class Step:
    """How one node is rebuilt: how its outputs are mirrored, and what changes for it.

    `constants` are inputs to be mirrored and `values` new integers for inputs, both by position. A
    node that `undoes` the flip goes: its output is its input before all flips.
    """

    node: Node
    results: Sequence[Mirror]
    constants: Mapping[int, Mirror] = field(default_factory=dict)
    values: Mapping[int, Array] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    undoes: bool = False


@dataclass(frozen=True)
class Operands:
    """What a rule sees: a node, and how each of its inputs is mirrored."""

    graph: Graph
    node: Node
    mirrors: Sequence[Mirror]

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the inputs; an input that is left out is a scalar."""
        return [shape_of(tensor) if tensor.name else () for tensor in self.node.inputs]

    @property
    def target(self) -> Shape:
        """The first output's shape."""
        return shape_of(self.node.outputs[0])

    def only_first(self) -> Mirror:
        """How the first input is mirrored, when no other input is."""
        pairs = zip(self.node.inputs[1:], self.mirrors[1:], strict=True)
        others = [tensor.name for tensor, mirror in pairs if mirror]
        if others:
            raise Unmirrorable(f"{others[0]!r} is mirrored")
        return self.mirrors[0]

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front of the first input."""
        return int(self.node.attrs.get("axis", default)) % len(self.shapes[0])


Rule = Callable[[Operands], Step]


def flip_of(graph: Graph, node: Node) -> tuple[int, Permutation] | None:
    """The axis that a node reverses, and the order, if it does that to float data and no more."""
    data = node.inputs[0] if node.inputs else None
    shape = None if data is None else static_shape(data)
    if node.op not in ("Gather", "Slice") or not shape or 0 in shape:
        return None
    if not TensorType.of(data).is_float:
        return None
    try:
        taken = _taken(Operands(graph, node, [{}] * len(node.inputs)))
    except (NoRule, Unmirrorable):
        return None
    changed = {axis: i for axis, i in taken.items() if i != tuple(range(shape[axis]))}
    ((axis, order),) = changed.items() if len(changed) == 1 else ((0, ()),)
    is_flip = len(order) == shape[axis] > 1 and order == _reversal(len(order))
    keeps_rank = static_shape(node.outputs[0]) == shape
    return (axis, order) if is_flip and keeps_rank else None


def steps_behind(graph: Graph, flip: Node) -> list[Step]:
    """What to do with each node that sees a flip, and with those in between, in order.

    Args:
        graph: in topological order.
        flip: a node that `flip_of` finds to be one; the outputs depend on it.

    Raises:
        Unmirrorable: naming the op that needs the flip, or an output that is flipped.
    """
    found = flip_of(graph, flip)
    assert found is not None
    mirrors: dict[int, Mirror] = {id(flip.outputs[0]): dict([found])}
    steps: list[Step] = []
    for node in needed_nodes(graph):
        read = {id(tensor) for tensor in reads_of(node)}
        if not mirrors.keys() & read:
            continue
        own = [mirrors.get(id(tensor), {}) for tensor in node.inputs]
        sees_it = any(mirrors[key] for key in mirrors.keys() & read)
        step = _step(Operands(graph, node, own)) if sees_it else _unchanged(node)
        pairs = zip(node.outputs, step.results, strict=True)
        mirrors |= {id(tensor): mirror for tensor, mirror in pairs}
        steps.append(step)
    for output in graph.outputs:
        if mirrors.get(id(output)):
            raise Unmirrorable(f"nothing flips the output {output.name!r} back")
    return _up_to_the_last(steps, mirrors)


def _unchanged(node: Node) -> Step:
    return Step(node, [{} for _ in node.outputs])


def _up_to_the_last(steps: list[Step], mirrors: Mapping[int, Mirror]) -> list[Step]:
    """Without what comes when nothing is flipped any more: it is the same as before."""
    kept: list[Step] = []
    needed: set[int] = set()
    for step in reversed(steps):
        read = {id(tensor) for tensor in reads_of(step.node)}
        if any(mirrors.get(key) for key in read) or needed & {id(t) for t in step.node.outputs}:
            if any(step.node.subgraphs()):
                raise Unmirrorable(f"{step.node.op} {step.node.name!r} has a body")
            needed |= read
            kept.append(step)
    return kept[::-1]


def rebuilt(graph: Graph, builder: Builder, step: Step, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a step's node, computed from inputs that nobody has flipped."""
    if step.undoes:
        return [inputs[0]]
    own = list(inputs)
    for position, mirror in step.constants.items():
        own[position] = _permuted(graph, builder, own[position], mirror)
    for position, values in step.values.items():
        how = f"{own[position].name}, mirrored"
        own[position] = builder.constant(values, own[position].dtype, how)
    twin = builder.copy(step.node, own)
    twin.attrs.update(step.attributes)
    return list(twin.outputs)


def _permuted(graph: Graph, builder: Builder, tensor: Tensor, mirror: Mirror) -> Tensor:
    weight = graph.weight(tensor)
    assert weight is not None
    values = weight.unrounded()
    for axis, order in mirror.items():
        values = values.take(order, axis)
    origin = weight.how if isinstance(weight, NewWeight) else tensor.name
    return builder.constant(values, tensor.dtype, f"{origin}, axes {sorted(mirror)} mirrored")


def _step(o: Operands) -> Step:
    node = o.node
    unknown = [t.name for t in [*node.inputs, *node.outputs]
               if t.name and static_shape(t) is None]  # fmt: skip
    try:
        if unknown:
            raise Unmirrorable(f"{unknown[0]!r} has no static shape")
        read = [t for t in node.inputs if t.name and not o.graph.is_constant(t)]
        empty = [t.name for t in [*read, *node.outputs] if t.name and 0 in shape_of(t)]
        if empty:
            raise Unmirrorable(f"{empty[0]!r} is empty")
        if node.op not in RULES or node.domain not in (None, "", "ai.onnx"):
            raise Unmirrorable("there is no rule for this op")
        step = RULES[node.op](o)
        if len(step.results) < len(node.outputs):
            raise Unmirrorable("there is no rule for its further outputs")
        return step
    except Unmirrorable as reason:
        raise Unmirrorable(f"{node.op} {node.name!r} needs the flip: {reason}") from None


def _reversal(length: int) -> Permutation:
    return tuple(range(length - 1, -1, -1))


def _changing(mirror: Mirror) -> Mirror:
    """The axes of a mirror that it really changes."""
    return {axis: order for axis, order in mirror.items() if order != tuple(range(len(order)))}


# -- axes by what they stand for: equal labels are mirrored alike ----------------------------------

Labels = Sequence[int]
SUM = -1  # the axis that products of matrices sum over


def _labelled(o: Operands, operands: Sequence[Labels], result: Labels) -> Step:
    """An op that treats all indices of an axis alike, its axes named by labels.

    Constants along a mirrored axis are mirrored; other operands have to be so already.
    """
    mirrored: dict[int, Permutation] = {}
    for labels, mirror in zip(operands, o.mirrors, strict=True):
        for axis, order in mirror.items():
            if mirrored.setdefault(labels[axis], order) != order:
                raise Unmirrorable("its operands are mirrored in different ways")
    constants = {}
    for position, (labels, shape) in enumerate(zip(operands, o.shapes, strict=True)):
        wanted = {axis: mirrored[label] for axis, label in enumerate(labels)
                  if label in mirrored and shape[axis] > 1}  # fmt: skip
        tensor = o.node.inputs[position]
        left = [axis for axis in wanted if axis not in o.mirrors[position]]
        if o.graph.is_constant(tensor) and left:
            constants[position] = wanted
        elif not all(_is_repeated(tensor, axis) for axis in left):
            raise Unmirrorable(f"{tensor.name!r} is not mirrored along axis {left[0]}")
    places = {place: mirrored[label] for place, label in enumerate(result) if label in mirrored}
    return Step(o.node, [places], constants)


def _is_repeated(tensor: Tensor, axis: int) -> bool:
    """Whether all slices of a tensor along an axis are one and the same, in whatever order."""
    node = producer_of(tensor)
    if node is None or node.op != "Expand":
        return False
    source = shape_of(node.inputs[0])
    place = axis - len(shape_of(tensor)) + len(source)
    return place < 0 or source[place] == 1


def _aligned(shape: Shape, rank: int) -> list[int]:
    """Labels of a shape that is broadcast to `rank` axes: those of the result."""
    return list(range(rank - len(shape), rank))


def _elementwise(o: Operands) -> Step:
    """Also what normalizes over some axes: it takes their indices in any order."""
    rank = len(o.target)
    return _labelled(o, [_aligned(shape, rank) for shape in o.shapes], range(rank))


def _matmul(o: Operands) -> Step:
    rank, (left, right) = len(o.target), o.shapes
    if min(len(left), len(right)) < 2:
        raise Unmirrorable("an operand is a vector")
    rows, columns = _aligned(left, rank)[:-1], _aligned(right, rank)
    return _labelled(o, [[*rows, SUM], [*columns[:-2], SUM, columns[-1]]], range(rank))


def _gemm(o: Operands) -> Step:
    left, right = [0, SUM], [SUM, 1]
    left = left[::-1] if o.node.attrs.get("transA", 0) else left
    right = right[::-1] if o.node.attrs.get("transB", 0) else right
    return _labelled(o, [left, right, *(_aligned(s, 2) for s in o.shapes[2:])], range(2))


def _einsum(o: Operands) -> Step:
    terms, arrow, result = o.node.attrs["equation"].replace(" ", "").partition("->")
    if not arrow or "." in terms:
        raise Unmirrorable(f"its equation {o.node.attrs['equation']!r} leaves axes open")
    return _labelled(o, [list(map(ord, term)) for term in terms.split(",")], list(map(ord, result)))


def _by_channel(o: Operands) -> Step:
    """BatchNormalization and InstanceNormalization: one value of each operand a channel."""
    if len(o.node.outputs) > 1:
        raise Unmirrorable("it also returns statistics")
    rank = len(o.target)
    return _labelled(o, [range(rank), *([1] for _ in o.shapes[1:])], range(rank))


def _group_norm(o: Operands) -> Step:
    if 1 in o.only_first():
        raise Unmirrorable("the channels, which it groups, are mirrored")
    return Step(o.node, [o.mirrors[0]])


def _global_pool(o: Operands) -> Step:
    return Step(o.node, [{axis: order for axis, order in o.only_first().items() if axis < 2}])


def _reduce(o: Operands) -> Step:
    given, rank = o.node.attrs.get("axes"), len(o.shapes[0])
    if given is None and len(o.node.inputs) > 1 and o.node.inputs[1].name:
        given = o.graph.ints(o.node.inputs[1])
        if given is None:
            raise Unmirrorable(f"its axes {o.node.inputs[1].name!r} are not constant")
    keeps_all = not given and o.node.attrs.get("noop_with_empty_axes", 0)
    axes = set() if keeps_all else {axis % rank for axis in given or range(rank)}
    kept = [axis for axis in range(rank) if axis not in axes]
    places = {axis: axis if o.node.attrs.get("keepdims", 1) else place
              for place, axis in enumerate(kept)}  # fmt: skip
    mirror = o.only_first()
    return Step(o.node, [{places[axis]: mirror[axis] for axis in mirror if axis in places}])


def _transpose(o: Operands) -> Step:
    rank = len(o.shapes[0])
    return _labelled(o, [range(rank)], o.node.attrs.get("perm", range(rank - 1, -1, -1)))


def _expand(o: Operands) -> Step:
    o.only_first()
    return _labelled(o, [_aligned(o.shapes[0], len(o.target)), []], range(len(o.target)))


def _shape(o: Operands) -> Step:
    return Step(o.node, [{}])


# -- indices: reshaped, joined, taken --------------------------------------------------------------


def _reshape(o: Operands) -> Step:
    """In row-major order the axes of a run hold the same numbers, before and after."""
    mirror, source = o.only_first(), o.shapes[0]
    result: dict[int, Permutation] = {}
    left = set(mirror)
    for axes, places in runs(source, o.target):
        if left.intersection(axes):
            orders = [np.array(mirror.get(a, range(source[a]))) for a in axes]
            sizes = tuple(o.target[place] for place in places)
            found = _factors(_mixed(orders), sizes)
            if found is None:
                break
            result |= dict(zip(places, found, strict=True))
            left -= set(axes)
    if left:
        raise Unmirrorable(f"{list(source)} → {list(o.target)} mixes axis {min(left)} with others")
    return Step(o.node, [_changing(result)])


def _mixed(orders: Sequence[Array]) -> Array:
    """The order of the numbers of several axes, given that of each axis."""
    sizes = [len(order) for order in orders]
    return np.asarray(np.ravel_multi_index(np.ix_(*orders), sizes))


def _factors(order: Array, sizes: Shape) -> list[Permutation] | None:
    """The order of each axis, given that of their numbers; None if the axes are mixed."""
    places = np.unravel_index(order.reshape(sizes), sizes)
    orders = [np.moveaxis(place, axis, 0).reshape(sizes[axis], -1)[:, 0]
              for axis, place in enumerate(places)]  # fmt: skip
    if any(len(set(one.tolist())) < len(one) for one in orders):
        return None
    same = np.array_equal(_mixed(orders).reshape(sizes), order.reshape(sizes))
    return [tuple(one.tolist()) for one in orders] if same else None


def _concat(o: Operands) -> Step:
    """Each part is mirrored in its place; along the other axes all are mirrored alike."""
    rank = len(o.target)
    axis = o.axis(0)
    across = [{a: order for a, order in mirror.items() if a != axis} for mirror in o.mirrors]
    step = _labelled(Operands(o.graph, o.node, across), [range(rank)] * len(across), range(rank))
    order: list[int] = []
    for mirror, shape in zip(o.mirrors, o.shapes, strict=True):
        first = len(order)
        order += [first + place for place in mirror.get(axis, range(shape[axis]))]
    results = [_changing({**step.results[0], axis: tuple(order)})]
    return Step(o.node, results, step.constants)


def _taken(o: Operands) -> dict[int, Permutation]:
    """The indices that a Slice, or a Gather of a list of constants, takes of each axis."""
    shape = o.shapes[0]
    if o.node.op == "Gather":
        indices = o.graph.ints(o.node.inputs[1])
        if indices is None or len(o.shapes[1]) != 1:
            raise Unmirrorable(f"{o.node.inputs[1].name!r} is no constant list")
        return {o.axis(0): tuple(i % shape[o.axis(0)] for i in indices)}
    if o.graph.opset < 10:
        raise Unmirrorable(f"a Slice of opset {o.graph.opset} (10 and later are known)")
    bounds = [o.graph.ints(t) if t.name else None for t in o.node.inputs[1:]]
    starts, stops, axes, steps = [*bounds, None, None][:4]
    unknown = [t.name for t, b in zip(o.node.inputs[1:], bounds, strict=True) if t.name and not b]
    if unknown or starts is None or stops is None or 0 in (steps or []):
        raise Unmirrorable(f"{unknown[0]!r} is not constant" if unknown else "a step is 0")
    taken = {}
    for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        axis = (axes[k] if axes else k) % len(shape)
        own = range(shape[axis])[slice(start, stop, steps[k] if steps else 1)]
        taken[axis] = tuple(own)
    return taken


def _slice(o: Operands) -> Step:
    mirror = dict(o.only_first())
    taken = {a: i for a, i in _taken(o).items() if i != tuple(range(o.shapes[0][a]))}
    if all(_undone(mirror.get(axis), i) for axis, i in taken.items()) and taken:
        left = {axis: order for axis, order in mirror.items() if axis not in taken}
        if not left:
            return Step(o.node, [{}], undoes=True)
    mirror |= {axis: _part(mirror[axis], i, axis) for axis, i in taken.items() if axis in mirror}
    return Step(o.node, [_changing(mirror)])


def _undone(order: Permutation | None, indices: Permutation) -> bool:
    """Whether what is taken of a mirrored axis is the axis as it was before."""
    return order is not None and tuple(order[i] for i in indices) == tuple(range(len(order)))


def _part(order: Permutation, indices: Permutation, axis: int) -> Permutation:
    """How a part of a mirrored axis is mirrored, where it is the image of itself."""
    if not _is_own_image(order, indices):
        raise Unmirrorable(f"it takes a part of axis {axis} that is not the mirror image of itself")
    return tuple(indices.index(order[i]) for i in indices)


def _is_own_image(order: Permutation, indices: Permutation) -> bool:
    return len({*indices}) == len(indices) and {order[i] for i in indices} == {*indices}


def _split(o: Operands) -> Step:
    axis, mirror, results, start = o.axis(0), o.only_first(), [], 0
    for output in o.node.outputs:
        length = shape_of(output)[axis]
        own = dict(mirror)
        if axis in mirror:
            own[axis] = _part(mirror[axis], tuple(range(start, start + length)), axis)
        results.append(_changing(own))
        start += length
    return Step(o.node, results)


def _gather(o: Operands) -> Step:
    """Along the mirrored axis a list that is its own image is a slice; others are looked up."""
    axis, mirror = o.axis(0), o.only_first()
    moved = len(o.shapes[1]) - 1
    places = {a + (moved if a > axis else 0): one for a, one in mirror.items() if a != axis}
    if axis not in mirror:
        return Step(o.node, [places])
    values, order = o.graph.values(o.node.inputs[1]), mirror[axis]
    if values is None:
        raise Unmirrorable(f"{o.node.inputs[1].name!r} is not constant")
    if values.ndim == 1 and _is_own_image(order, _taken(o)[axis]):
        return _slice(o)
    return Step(o.node, [places], values={1: np.array(order)[values].astype(values.dtype)})


# -- windows: kernels, padding, interpolation ------------------------------------------------------


def _conv(o: Operands) -> Step:
    """The kernel is mirrored, and the padding at both ends swapped.

    Where the channels are mirrored, so are the kernel's: it sums over them.
    """
    mirror, node, kernel = o.only_first(), o.node, o.shapes[1]
    windows = _windows(o, kernel[2:])
    mirrored = {axis: _reversal(kernel[axis]) for axis in mirror if axis > 1 and kernel[axis] > 1}
    if 1 in mirror:
        if node.attrs.get("group", 1) != 1:
            raise Unmirrorable(f"the channels, in {node.attrs['group']} groups, are mirrored")
        mirrored[0 if node.op == "ConvTranspose" else 1] = mirror[1]
    if mirrored and not o.graph.is_constant(node.inputs[1]):
        raise Unmirrorable(f"its weights {node.inputs[1].name!r} are not constant")
    images = {axis: order for axis, order in mirror.items() if axis == 0}
    constants = {1: mirrored} if mirrored else {}
    return Step(node, [images | windows.result], constants, attributes=windows.attributes)


def _pool(o: Operands) -> Step:
    if len(o.node.outputs) > 1:
        raise Unmirrorable("it also returns indices")
    windows = _windows(o, o.node.attrs["kernel_shape"])
    others = {axis: order for axis, order in o.only_first().items() if axis < 2}
    return Step(o.node, [others | windows.result], attributes=windows.attributes)


@dataclass(frozen=True)
class _Windows:
    """How the spatial axes of windows' results are mirrored, and the padding that makes it so."""

    result: dict[int, Permutation]
    attributes: dict[str, list[int]]


def _windows(o: Operands, kernel: Sequence[int]) -> _Windows:
    """Windows over the mirrored axes, laid from the other end."""
    rank, result = len(kernel), {}
    pads = _pads(o.node, rank)
    swapped = list(pads)
    for axis, order in o.only_first().items():
        k = axis - 2
        if k < 0:
            continue
        if kernel[k] == 1 and len(order) == o.target[axis] and not pads[k] and not pads[k + rank]:
            result[axis] = order
            continue
        _require_whole(axis, order)
        rest = _rest(o, axis, kernel[k], (pads[k], pads[k + rank]))
        swapped[k], swapped[k + rank] = pads[k + rank] - rest, pads[k]
        result[axis] = _reversal(o.target[axis])
    return _Windows(result, {} if swapped == pads else {"pads": swapped})


def _rest(o: Operands, axis: int, kernel: int, pads: tuple[int, int]) -> int:
    """How many places windows leave over at the end, all of which have to be padding."""
    given, k = o.node.attrs, axis - 2
    if o.node.op == "ConvTranspose":
        for key in ("output_padding", "output_shape"):
            if any(given.get(key, [])):
                raise Unmirrorable(f"{key}={given[key]} adds at the end")
        return 0
    stride, dilation = (given[key][k] if key in given else 1 for key in ("strides", "dilations"))
    length, span = o.shapes[0][axis], dilation * (kernel - 1) + 1
    rest = int(length + sum(pads) - span) % int(stride)
    if rest > pads[1] or (rest and given.get("ceil_mode", 0)):
        raise Unmirrorable(
            f"its windows of {span}, {stride} apart, leave {rest} of {length} + {sum(pads)} places "
            f"of axis {axis} over at the end"
        )
    return rest


def _require_whole(axis: int, order: Permutation) -> None:
    if order != _reversal(len(order)):
        raise Unmirrorable(f"axis {axis} is not mirrored as a whole")


def _pads(node: Node, rank: int) -> list[int]:
    """The padding at the starts of all spatial axes, then at their ends."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise Unmirrorable(f"auto_pad={auto} does not say how much is padded where")
    return list(node.attrs.get("pads", [0] * 2 * rank)) if auto == "NOTSET" else [0] * 2 * rank


def _pad(o: Operands) -> Step:
    """The padding at both ends is swapped."""
    mirror, rank = o.only_first(), len(o.target)
    is_attribute = o.graph.opset < 11
    pads = o.node.attrs["pads"] if is_attribute else o.graph.ints(o.node.inputs[1])
    has_axes = len(o.node.inputs) > 3 and o.node.inputs[3].name
    given = o.graph.ints(o.node.inputs[3]) if has_axes else list(range(rank))
    if pads is None or given is None:
        raise Unmirrorable("its padding is not constant")
    half, swapped, result = len(pads) // 2, list(pads), dict(mirror)
    for k, axis in enumerate(axis % rank for axis in given):
        if axis in mirror and (pads[k] or pads[k + half]):
            _require_whole(axis, mirror[axis])
            result[axis] = _reversal(o.target[axis])
            swapped[k], swapped[k + half] = pads[k + half], pads[k]
    if is_attribute:
        return Step(o.node, [result], attributes={"pads": swapped})
    return Step(o.node, [result], values={1: np.array(swapped, np.int64)})


def _resize(o: Operands) -> Step:
    """An interpolation that is the same from both ends."""
    mirror, result = o.only_first(), {}
    try:
        matrices = matrices_of(o.graph, o.node)
    except NotLinear as reason:
        raise Unmirrorable(str(reason)) from None
    for axis, order in mirror.items():
        if axis not in matrices:
            result[axis] = order
            continue
        matrix = matrices[axis]
        _require_whole(axis, order)
        if np.abs(matrix - matrix[::-1, ::-1]).max() > SYMMETRIC:
            how = o.node.attrs.get("coordinate_transformation_mode", "half_pixel")
            raise Unmirrorable(f"{how}: {len(order)} → {len(matrix)} differs from end to end")
        result[axis] = _reversal(len(matrix))
    return Step(o.node, [result])


_ELEMENTWISE = (
    "Abs Add And BitShift Cast Ceil Celu Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LayerNormalization LeakyRelu Less "
    "LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow RMSNormalization "
    "Reciprocal Relu Round Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Sub Sum Tan Tanh "
    "ThresholdedRelu Where Xor"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _by_channel),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("Shape", "Size"), _shape),
    "Concat": _concat,
    "Einsum": _einsum,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
