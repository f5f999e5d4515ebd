"""A 1×1 convolution behind a Resize moves before it, where there are fewer pixels to compute.

    x[1×64×25×25] → Resize[1×64×50×50] → Conv 1×1[1×32×50×50]
    x[1×64×25×25] → Conv 1×1[1×32×25×25] → Resize[1×32×50×50]

The convolution mixes the channels of each pixel, the Resize the pixels of each channel, and both
are linear: they commute. So does the bias, as the weights of a Resize sum to one where it doesn't
extrapolate. Crops (Slice) that stand in between move along. It is done where it takes fewer
products: C·C′ for each pixel that the convolution sees, 4·C for each that a bilinear Resize makes.

Measured on Depth Anything V2 Small, 518 | 350, simulated ms: behind fold_scale, IQ-9075 39.84 →
39.61 | 15.33 → 15.29, SA8797 14.72 → 14.69 | 5.87 → 5.91.

Contract: algebraic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.graph import Graph, Node, Shape, Tensor, is_standard, producer_of, static_shape
from compiler.rewrite import Builder, Contract, LocalPass, Replacement, TensorType
from compiler.slicing_moves import slice_takes

# Values that a result of a Resize is computed from, along each axis that it changes.
TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


@dataclass(frozen=True)
class Hoist:
    """What a 1×1 convolution computes, behind a Resize or a crop of one."""

    result: Tensor

    @property
    def place(self) -> str:
        """The tensor's name."""
        return str(self.result.name)

    @property
    def conv(self) -> Node:
        """The convolution as it is now, after the rewrites at other places."""
        return producer_of(self.result)

    def movers(self, graph: Graph) -> list[Node]:
        """The Resize and Slice nodes that it can be moved in front of, the nearest first."""
        movers = _movers(self.conv)
        faults = [_why_not_passed(graph, mover) is not None for mover in movers]
        return movers[: faults.index(True) if any(faults) else None]


@dataclass(frozen=True)
class HoistConv(LocalPass[Hoist]):
    """See the module."""

    @property
    def contract(self) -> Contract:
        """Sums over channels and over pixels are exchanged."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what there would have to be."""
        return "nothing to move: no 1×1 convolution reads a Resize"

    def match(self, graph: Graph) -> Iterator[Hoist]:
        """Every convolution with a 1×1 kernel behind a Resize, others like it in between."""
        behind: set[int] = set()
        for node in graph.nodes:
            if not _is_pointwise(node):
                continue
            movers = _movers(node)
            source = producer_of((movers[-1] if movers else node).inputs[0])
            if any(m.op == "Resize" for m in movers) or id(source) in behind:
                behind.add(id(node))
                yield Hoist(node.outputs[0])

    def guard(self, graph: Graph, match: Hoist) -> str | None:
        """Refuses what mixes more than pixels, other readers, and what would take more products."""
        conv, movers = match.conv, match.movers(graph)
        reason = _why_not_plain(conv)
        if reason is None and not movers:
            reason = _why_not_passed(graph, producer_of(conv.inputs[0]))
        if reason is not None:
            return reason
        now, *moved = _costs(conv, movers)
        if min(moved) >= now:
            return f"it would take {min(moved)} products instead of {now}"
        return None

    def rewrite(self, graph: Graph, match: Hoist) -> Replacement:
        """The convolution of what is in front, then the same moves of fewer or more channels."""
        conv, builder = match.conv, Builder(graph, match.place)
        movers = match.movers(graph)
        costs = _costs(conv, movers)
        movers = movers[: costs.index(min(costs))]
        channels = _shape(conv.inputs[1])[0]
        data = movers[-1].inputs[0]
        moved = builder.copy(conv, [data, *conv.inputs[1:]]).outputs[0]
        moved.shape = _with_channels(data, channels)
        for mover in reversed(movers):
            others = _other_inputs(graph, builder, mover, channels)
            moved = builder.copy(mover, [moved, *others]).outputs[0]
            moved.shape = _with_channels(mover.outputs[0], channels)
        return Replacement(builder, [(match.result, moved)])


def _is_pointwise(node: Node) -> bool:
    kernel = static_shape(node.inputs[1]) if node.op == "Conv" and is_standard(node) else None
    return kernel is not None and len(kernel) > 2 and set(kernel[2:]) == {1}


def _movers(conv: Node) -> list[Node]:
    """The chain of Resize and Slice nodes that ends in a convolution, the nearest first."""
    movers: list[Node] = []
    node = producer_of(conv.inputs[0])
    while node is not None and node.op in ("Resize", "Slice") and is_standard(node):
        movers.append(node)
        node = producer_of(node.inputs[0])
    return movers


def _why_not_plain(conv: Node) -> str | None:
    """Why the convolution is more than a product at each pixel."""
    for name, plain in (("strides", 1), ("pads", 0)):
        values = conv.attrs.get(name, [])
        if any(value != plain for value in values):
            return f"Conv {conv.name!r} has {name}={list(values)}"
    return None


def _why_not_passed(graph: Graph, mover: Node) -> str | None:
    """Why a convolution can't be moved in front of a node, naming what is at fault."""
    result = mover.outputs[0]
    if mover.op not in ("Resize", "Slice"):
        return f"{mover.op} {mover.name!r} computes {result.name!r}, which stays where it is"
    if graph.is_output(result):
        return f"{result.name!r} is also an output"
    if len(result.outputs) != 1:
        return f"{result.name!r} is used elsewhere as well"
    for tensor in (mover.inputs[0], result):
        shape = static_shape(tensor)
        if not shape or 0 in shape:
            return f"{tensor.name!r} is {TensorType.of(tensor)}: its size has to be known"
    what = _why_not_spatial if mover.op == "Slice" else _why_not_linear
    reason = what(graph, mover)
    return None if reason is None else f"{mover.op} {mover.name!r} {reason}"


def _why_not_spatial(graph: Graph, node: Node) -> str | None:
    takes = slice_takes(graph, node)
    if takes is None:
        return "has computed bounds, or a negative step"
    shape = _shape(node.inputs[0])
    if any(take.axis < 2 and not take.is_whole(shape[take.axis]) for take in takes):
        return "takes some of the channels or images"
    return None


def _why_not_linear(graph: Graph, resize: Node) -> str | None:
    """Why a Resize is not, for each channel alone, a mean of pixels."""
    mode = resize.attrs.get("mode", "nearest")
    if mode not in TAPS:
        return f"has mode={mode}"
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "fills in extrapolation_value (tf_crop_and_resize)"
    policy = resize.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return f"has keep_aspect_ratio_policy={policy}"
    given = _factors(graph, resize)
    if given is None:
        return "has computed scales or sizes"
    axes, factors, whole = given
    if any(
        factor != size for axis, factor, size in zip(axes, factors, whole, strict=True) if axis < 2
    ):
        return "changes the number of channels or images"
    return None


def _factors(graph: Graph, resize: Node) -> tuple[list[int], list[float], list[float]] | None:
    """The axes that a Resize is about, their scales or sizes, and those of axes that stay."""
    shape = _shape(resize.inputs[0])
    axes = [axis % len(shape) for axis in resize.attrs.get("axes", range(len(shape)))]
    position = _sizes_position(resize)
    known = resize.inputs[position] if position else resize.inputs[1 if graph.opset < 11 else 2]
    values = graph.values(known)
    if values is None:
        return None
    same = [float(shape[axis]) if position else 1.0 for axis in axes]
    return axes, [float(value) for value in values.reshape(-1)], same


def _sizes_position(resize: Node) -> int | None:
    """Where the sizes are among the inputs of a Resize that has sizes, not scales."""
    return 3 if len(resize.inputs) > 3 and resize.inputs[3].name else None


def _other_inputs(graph: Graph, builder: Builder, mover: Node, channels: int) -> list[Tensor]:
    """The inputs beside the data; sizes that name the channels get their new number."""
    others = list(mover.inputs[1:])
    position = _sizes_position(mover) if mover.op == "Resize" else None
    sizes = graph.ints(mover.inputs[position]) if position else None
    if position and sizes is not None:
        axes = [
            axis % len(_shape(mover.inputs[0]))
            for axis in mover.attrs.get("axes", range(len(sizes)))
        ]
        changed = [channels if axis == 1 else size for axis, size in zip(axes, sizes, strict=True)]
        others[position - 1] = builder.ints(changed, "sizes")
    return others


# -- what it costs ---------------------------------------------------------------------------------


def _costs(conv: Node, movers: Sequence[Node]) -> list[int]:
    """The products of all, with the convolution in front of none, one, two … of the movers."""
    new, each = _shape(conv.inputs[1])[:2]
    places = [conv.inputs[0], *(mover.inputs[0] for mover in movers)]
    old = _shape(conv.inputs[0])[1]
    costs = []
    for count, place in enumerate(places):
        moves = [_taps(m) * _pixels(m.outputs[0]) * (new if k < count else old)
                 for k, m in enumerate(movers)]  # fmt: skip
        costs.append(_pixels(place) * new * each + sum(moves))
    return costs


def _taps(mover: Node) -> int:
    if mover.op != "Resize":
        return 0
    before, after = _shape(mover.inputs[0]), _shape(mover.outputs[0])
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    return int(TAPS[mover.attrs.get("mode", "nearest")] ** changed)


def _pixels(tensor: Tensor) -> int:
    shape = _shape(tensor)
    return shape[0] * math.prod(shape[2:])


def _shape(tensor: Tensor) -> Shape:
    shape = static_shape(tensor)
    assert shape is not None
    return shape


def _with_channels(tensor: Tensor, channels: int) -> list[int]:
    shape = _shape(tensor)
    return [shape[0], channels, *shape[2:]]
