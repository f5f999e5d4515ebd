"""A per-channel Sub, Div, Mul, Add chain behind an input becomes one BatchNormalization.

    image → (Resize, Cast, …) → Sub mean[C×1×1] → Div std[C×1×1] → network
    image → (Resize, Cast, …) → BatchNormalization(scale 1/std, bias -mean/std) → network

    image[N×H×W×C] → Sub mean[C] → Div std[C] → Transpose → network
    image[N×H×W×C] → Transpose → BatchNormalization → network

Each op maps a channel's x to a·x + b, and so does the chain: c + x, x - c, c - x, c·x, x / c. The
BatchNormalization has mean 0, variance 1 and epsilon 0: it is scale·x + bias and nothing else. It
takes channels as axis 1: where the constants vary along another one, a Transpose has to follow.
`into=conv` goes on into the convolution that follows:

    W * (a·x + b) + d  =  (W·a) * x + (d + ΣW·b)        (Σ over input channels and the kernel)

as long as nothing pads the shifted image with zeros in between (before the shift, the padding would
have to be -b/a). It commutes with a Resize, whose weights sum to one. Behind the two matrices that
`resize_as_matrix` makes of a Resize it is found, too.

Contract: algebraic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from compiler.graph import Graph, Node, Tensor
from compiler.rewrite import Builder, Contract, Float64, LocalPass, Replacement, TensorType
from compiler.scaling import why_not_held

ARITHMETIC = ("Add", "Div", "Mul", "Sub")
MOVEMENT = ("Cast", "Concat", "Expand", "Gather", "Identity", "Pad", "Resize", "Slice", "Tile",
            "Transpose", "Unsqueeze")  # fmt: skip
CHANNELS_FIRST = [0, 3, 1, 2]
ROUNDING = 2.0**-10  # of the two or four weights of an interpolation, in float16
Dims = tuple[Any, ...]


@dataclass(frozen=True)
class Chain:
    """Arithmetic with constants, in order, and what follows it: Resize nodes, then their reader.

    `axis` is that of the channels. If it is not 1 a Transpose makes it 1, right behind the chain.
    """

    place: str
    nodes: list[Node]
    data: Tensor
    axis: int
    transpose: Node | None
    follow: list[Node]

    @property
    def channels(self) -> int:
        """How many channels the chain's data has."""
        return int(self.data.shape[self.axis])

    @property
    def result(self) -> Tensor:
        """What the chain computes, channels first."""
        return (self.transpose or self.nodes[-1]).outputs[0]


@dataclass(frozen=True)
class FoldNorm(LocalPass[Chain]):
    """See the module."""

    into: Literal["batchnorm", "conv"] = "batchnorm"

    @property
    def contract(self) -> Contract:
        """Divisions become multiplications, and sums are regrouped."""
        return "algebraic"

    def missing(self, graph: Graph) -> str:
        """Says what an input would have to go into."""
        return "nothing to fold: no input goes into arithmetic with a constant"

    def match(self, graph: Graph) -> Iterator[Chain]:
        """Every chain of arithmetic with constants that only data movement parts from an input."""
        pending, seen = list(graph.inputs), set()
        while pending:
            tensor = pending.pop(0)
            for node in tensor.outputs:
                if id(node) in seen:
                    continue
                moves = node.op in MOVEMENT and node.inputs[0] is tensor
                if moves or _is_interpolation(graph, node):
                    pending += node.outputs
                    seen.add(id(node))
                elif node.op in ARITHMETIC and _constant(graph, node) is not None:
                    yield _chain(graph, node)
                    seen.add(id(node))

    def guard(self, graph: Graph, match: Chain) -> str | None:
        """Refuses what is not one float scale and shift a channel, and padding after a shift."""
        if graph.opset < 7:
            return f"opset {graph.opset} has no NumPy broadcasting (7 and later do)"
        first, shape = match.nodes[0], _dims(match.data)
        return (
            _why_no_image(match)
            or _why_not_affine(graph, first, match.axis, shape)
            or _why_not_first(match)
            or _why_not_held(graph, match)
            or (_why_not_into_conv(graph, match) if self.into == "conv" else None)
        )

    def rewrite(self, graph: Graph, match: Chain) -> Replacement:
        """Computes scale and shift in float64 and puts them where `into` says."""
        builder = Builder(graph, match.place)
        scale, shift = _affine(graph, match)
        data = match.data
        if match.transpose is not None:
            data = builder.copy(match.transpose, [data]).outputs[0]
        if self.into == "conv":
            return _into_conv(graph, builder, match.follow, data, scale, shift)
        values = {"scale": scale, "bias": shift, "mean": 0 * scale, "variance": 0 * scale + 1}
        constants = [builder.constant(v, data.dtype, how) for how, v in values.items()]
        folded = builder.node("BatchNormalization", [data, *constants], _dims(data), epsilon=0.0)
        return Replacement(builder, [(match.result, folded)])


def _is_interpolation(graph: Graph, node: Node) -> bool:
    """Whether a node multiplies an axis of images by a Resize's matrix, whose rows sum to 1."""
    if node.op not in ("Conv", "MatMul") or len(node.inputs) != 2:
        return False
    position = _constant(graph, node)
    if position is None or len(_dims(node.outputs[0])) != 4 or node.attrs.get("group", 1) != 1:
        return False
    matrix = _exact(graph, node.inputs[position])
    if node.op == "Conv" and matrix.shape[2:] == (1, 1):
        matrix = matrix[:, :, 0, 0]
    if matrix.ndim != 2:
        return False
    sums = matrix.sum(axis=0 if node.op == "MatMul" and position == 1 else 1)
    return bool(np.allclose(sums, 1, rtol=0, atol=ROUNDING))


def _dims(tensor: Tensor) -> Dims:
    """The tensor's dimensions, of which some may be names; none if its rank is unknown."""
    return () if tensor.shape is None else tuple(tensor.shape)


def _constant(graph: Graph, node: Node) -> int | None:
    """The position of a binary op's one constant operand."""
    known = [graph.is_constant(tensor) for tensor in node.inputs]
    return known.index(True) if known in ([True, False], [False, True]) else None


def _chain(graph: Graph, node: Node) -> Chain:
    """The node and the arithmetic that follows it, while nothing else needs what is in between."""
    nodes, axes = [node], _varying_axes(graph, node)
    data = node.inputs[1 - (_constant(graph, node) or 0)]
    user = _only_user(graph, node.outputs[0])
    while user is not None and user.op in ARITHMETIC and len(_dims(nodes[-1].outputs[0])) == 4:
        together = axes | _varying_axes(graph, user)
        axis, shape = min(together, default=1), _dims(nodes[-1].outputs[0])
        if len(together) > 1 or axis < 1 or _why_not_affine(graph, user, axis, shape):
            break
        nodes, axes = [*nodes, user], together
        user = _only_user(graph, user.outputs[0])
    axis, transpose = _channel_axis(axes, user)
    follow = _readers(graph, (transpose or nodes[-1]).outputs[0])
    return Chain(nodes[-1].outputs[0].name, nodes, data, axis, transpose, follow)


def _channel_axis(axes: set[int], user: Node | None) -> tuple[int, Node | None]:
    """The axis of the channels, and the Transpose that makes it axis 1 if it isn't yet.

    Where the constants are scalars the channels are first unless a Transpose puts them there.
    """
    order = user.attrs.get("perm") if user is not None and user.op == "Transpose" else None
    if not axes and order == CHANNELS_FIRST:
        return 3, user
    axis = min(axes) if len(axes) == 1 and min(axes) > 0 else 1
    return axis, (user if axis > 1 and order is not None and order[1] == axis else None)


def _varying_axes(graph: Graph, node: Node) -> set[int]:
    """The axes of an N×C×H×W tensor along which a node's constant has several values."""
    position = _constant(graph, node)
    shape = () if position is None else _dims(node.inputs[position])
    return {axis - len(shape) + 4 for axis, length in enumerate(shape) if length != 1}


def _readers(graph: Graph, tensor: Tensor) -> list[Node]:
    """What reads a tensor, one after the other, up to the first that is no Resize."""
    nodes: list[Node] = []
    user = _only_user(graph, tensor)
    while user is not None:
        nodes.append(user)
        user = _only_user(graph, user.outputs[0]) if user.op == "Resize" else None
    return nodes


def _only_user(graph: Graph, tensor: Tensor) -> Node | None:
    return tensor.outputs[0] if len(tensor.outputs) == 1 and not graph.is_output(tensor) else None


def _why_no_image(match: Chain) -> str | None:
    """Why the chain's data are no images."""
    kind, shape = TensorType.of(match.data), _dims(match.data)
    if len(shape) != 4 or not kind.is_float or not isinstance(shape[match.axis], int):
        return f"{match.data.name!r} is {kind}, not a float N×C×H×W tensor of known shape"
    sides = [length for axis, length in enumerate(shape) if axis not in (0, match.axis)]
    if 1 in sides:
        return f"{match.data.name!r} is {kind}: a row of values is no image"
    return None


def _why_not_affine(graph: Graph, node: Node, axis: int, shape: Dims) -> str | None:
    """Why a node is not one scale and shift a channel, naming its constant."""
    position = _constant(graph, node)
    if position is None:
        return f"{node.op} {node.name!r} has no constant operand"
    constant = node.inputs[position]
    known = _dims(constant)
    strange = len(known) > 4 or _varying_axes(graph, node) - {axis}
    if strange or max(known, default=1) not in (1, shape[axis]):
        return (
            f"{node.op}'s constant {constant.name!r} is {list(known)}, not one value for each of "
            f"{shape[axis]} channels"
        )
    if node.op == "Div" and position == 0:
        return f"{node.op} divides the constant {constant.name!r} by the image"
    values = graph.exact(constant)
    if node.op == "Div" and values is not None and not values.all():
        return f"{node.op}'s constant {constant.name!r} has a zero"
    return None


def _why_not_first(match: Chain) -> str | None:
    """Why the channels can't be axis 1, where BatchNormalization and Conv have them."""
    if match.axis == 1 or match.transpose is not None:
        return None
    kind = TensorType.of(match.data)
    return f"the channels are axis {match.axis} of {kind}, and no Transpose makes them axis 1"


def _why_not_held(graph: Graph, match: Chain) -> str | None:
    """Why the chain's type can't hold its scale or shift: 1/std of a std that is next to zero."""
    (scale, shift), dtype = _affine(graph, match), match.data.dtype
    lost = why_not_held(scale, dtype, scale) or why_not_held(shift, dtype)
    return lost and f"a scale or shift up to {match.result.name!r} can't be held: {lost}"


def _affine(graph: Graph, match: Chain) -> tuple[Float64, Float64]:
    """The chain's (scale, shift) a channel: x → scale·x + shift."""
    scale, shift = np.ones(match.channels), np.zeros(match.channels)
    for node in match.nodes:
        position = _constant(graph, node)
        assert position is not None
        c = _exact(graph, node.inputs[position]).reshape(-1)
        if node.op == "Sub" and position == 0:
            scale, shift = -scale, c - shift
        elif node.op in ("Add", "Sub"):
            shift = shift + c if node.op == "Add" else shift - c
        else:
            scale, shift = (v * c if node.op == "Mul" else v / c for v in (scale, shift))
    return scale, shift


def _why_not_into_conv(graph: Graph, match: Chain) -> str | None:
    """Why the convolution can't take the scale and shift, naming what is between or at fault."""
    if not match.follow or match.follow[-1].op != "Conv":
        readers = [user.op for user in match.result.outputs]
        return f"into=conv: {[n.op for n in match.follow] or readers} read it, not one Conv"
    *resizes, conv = match.follow
    for resize in resizes:
        reason = _why_not_commuting(resize, match.channels)
        if reason is not None:
            return f"into=conv: Resize {resize.name!r} {reason}"
    if conv.attrs.get("group", 1) != 1:
        return f"into=conv: Conv {conv.name!r} has group={conv.attrs['group']}"
    if not all(graph.is_constant(tensor) for tensor in conv.inputs[1:] if tensor.name):
        return f"into=conv: the weights of Conv {conv.name!r} are not constant"
    pads, auto = conv.attrs.get("pads", []), conv.attrs.get("auto_pad", "NOTSET")
    if (any(pads) or auto not in ("NOTSET", "VALID")) and _affine(graph, match)[1].any():
        padding = f"pads={pads}" if auto == "NOTSET" else f"auto_pad={auto}"
        return f"into=conv: Conv {conv.name!r} pads the shifted image with zeros ({padding})"
    return _why_weights_not_held(graph, match, conv)


def _why_weights_not_held(graph: Graph, match: Chain, conv: Node) -> str | None:
    """Why the weights' type can't hold those of the convolution that takes scale and shift."""
    (kernel, offset), scale = _folded(graph, conv, *_affine(graph, match)), _affine(graph, match)[0]
    dtype, over_channels = conv.inputs[1].dtype, scale.reshape(-1, *[1] * (kernel.ndim - 2))
    lost = why_not_held(kernel, dtype, over_channels) or why_not_held(offset, dtype)
    return lost and f"into=conv: the weights of Conv {conv.name!r} can't be held: {lost}"


def _why_not_commuting(resize: Node, channels: int) -> str | None:
    """Why scale and shift a channel don't commute with a Resize."""
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "fills in extrapolation_value (tf_crop_and_resize)"
    shape = _dims(resize.outputs[0])
    if len(shape) != 4 or shape[1] != channels:
        return f"changes the number of channels from {channels}"
    return None


def _into_conv(
    graph: Graph, builder: Builder, follow: list[Node], data: Tensor, scale: Float64, shift: Float64
) -> Replacement:
    """The Resize nodes and the convolution again, on the image as it is."""
    *resizes, conv = follow
    for resize in resizes:
        data = builder.copy(resize, [data, *resize.inputs[1:]]).outputs[0]
    weights, *bias = [tensor for tensor in conv.inputs[1:] if tensor.name]
    names = f"{weights.name} · scale", " + ".join([*(t.name for t in bias), "Σ weights · shift"])
    folded = zip(names, _folded(graph, conv, scale, shift), strict=True)
    constants = [builder.constant(values, weights.dtype, how) for how, values in folded]
    twin = builder.copy(conv, [data, *constants])
    return Replacement(builder, [(conv.outputs[0], twin.outputs[0])])


def _folded(graph: Graph, conv: Node, scale: Float64, shift: Float64) -> tuple[Float64, Float64]:
    """Weights and bias of a convolution that takes scale and shift of its input."""
    weights, *bias = [tensor for tensor in conv.inputs[1:] if tensor.name]
    kernel = _exact(graph, weights)
    over_channels = (-1, *[1] * (kernel.ndim - 2))
    offset = (kernel * shift.reshape(over_channels)).sum(axis=tuple(range(1, kernel.ndim)))
    for tensor in bias:
        offset = offset + _exact(graph, tensor)
    return kernel * scale.reshape(over_channels), offset


def _exact(graph: Graph, constant: Tensor) -> Float64:
    values = graph.exact(constant)
    assert values is not None
    return values
