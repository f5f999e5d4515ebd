"""A per-channel Sub, Div, Mul, Add chain behind an input becomes one BatchNormalization.

    image → (Resize, Cast, …) → Sub mean[C×1×1] → Div std[C×1×1] → network
    image → (Resize, Cast, …) → BatchNormalization(scale 1/std, bias -mean/std) → network

Each op maps a channel's x to a·x + b, and so does the chain: c + x, x - c, c - x, c·x, x / c. The
BatchNormalization has mean 0, variance 1 and epsilon 0: it is scale·x + bias and nothing else.
`into=conv` goes on into the convolution that follows:

    W * (a·x + b) + d  =  (W·a) * x + (d + ΣW·b)        (Σ over input channels and the kernel)

as long as nothing pads the shifted image with zeros in between (before the shift, the padding would
have to be -b/a). It commutes with a Resize, whose weights sum to one.

Contract: algebraic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.graph import Graph, Node, Tensor, static_shape
from compiler.rewrite import Builder, Contract, Float64, LocalPass, Replacement, TensorType

ARITHMETIC = ("Add", "Div", "Mul", "Sub")
MOVEMENT = ("Cast", "Gather", "Identity", "Resize", "Slice", "Transpose")


@dataclass(frozen=True)
class Chain:
    """Arithmetic with constants, in order, and what follows it: Resize nodes, then their reader."""

    place: str
    nodes: list[Node]
    data: Tensor
    follow: list[Node]


@dataclass(frozen=True)
class FoldNorm(LocalPass[Chain]):
    """See the module."""

    into: Literal["batchnorm", "conv"] = "batchnorm"

    @property
    def contract(self) -> Contract:
        """Divisions become multiplications, and sums are regrouped."""
        return "algebraic"

    def match(self, graph: Graph) -> Iterator[Chain]:
        """Every chain of arithmetic with constants that only data movement parts from an input."""
        pending = list(graph.inputs)
        while pending:
            tensor = pending.pop(0)
            for node in tensor.outputs:
                if node.op in MOVEMENT and node.inputs[0] is tensor:
                    pending += node.outputs
                elif node.op in ARITHMETIC and _constant(graph, node) is not None:
                    nodes = _chain(graph, node)
                    place = nodes[-1].outputs[0]
                    yield Chain(place.name, nodes, tensor, _readers(graph, place))

    def guard(self, graph: Graph, match: Chain) -> str | None:
        """Refuses what is not one float scale and shift a channel, and padding after a shift."""
        if graph.opset < 7:
            return f"opset {graph.opset} has no NumPy broadcasting (7 and later do)"
        shape, kind = static_shape(match.data), TensorType.of(match.data)
        if shape is None or len(shape) != 4 or not kind.is_float:
            return f"{match.data.name!r} is {kind}, not a float N×C×H×W tensor of known shape"
        reason = _why_not_affine(graph, match.nodes[0], shape[1])
        if reason is None and self.into == "conv":
            reason = _why_not_into_conv(graph, match)
        return reason

    def rewrite(self, graph: Graph, match: Chain) -> Replacement:
        """Computes scale and shift in float64 and puts them where `into` says."""
        builder = Builder(graph, match.place)
        scale, shift = _affine(graph, match)
        if self.into == "conv":
            return _into_conv(graph, builder, match, scale, shift)
        values = {"scale": scale, "bias": shift, "mean": 0 * scale, "variance": 0 * scale + 1}
        dtype, shape = match.data.dtype, static_shape(match.data)
        constants = [builder.constant(v, dtype, how) for how, v in values.items()]
        folded = builder.node("BatchNormalization", [match.data, *constants], shape, epsilon=0.0)
        return Replacement(builder, [(match.nodes[-1].outputs[0], folded)])


def _constant(graph: Graph, node: Node) -> int | None:
    """The position of a binary op's one constant operand."""
    known = [graph.is_constant(tensor) for tensor in node.inputs]
    return known.index(True) if known in ([True, False], [False, True]) else None


def _chain(graph: Graph, node: Node) -> list[Node]:
    """The node and the arithmetic that follows it, while nothing else needs what is in between."""
    nodes = [node]
    shape = static_shape(node.outputs[0])
    while shape is not None and len(shape) == 4:
        user = _only_user(graph, nodes[-1].outputs[0])
        if user is None or user.op not in ARITHMETIC or _why_not_affine(graph, user, shape[1]):
            break
        nodes.append(user)
    return nodes


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


def _why_not_affine(graph: Graph, node: Node, channels: int) -> str | None:
    """Why a node is not one scale and shift a channel, naming its constant."""
    position = _constant(graph, node)
    if position is None:
        return f"{node.op} {node.name!r} has no constant operand"
    constant = node.inputs[position]
    shape = static_shape(constant) or ()
    padded = (*[1] * (4 - len(shape)), *shape)
    if len(padded) != 4 or padded[0] != 1 or padded[1] not in (1, channels) or padded[2:] != (1, 1):
        return (
            f"{node.op}'s constant {constant.name!r} is {list(shape)}, not one value for each of "
            f"{channels} channels"
        )
    if node.op == "Div" and position == 0:
        return f"{node.op} divides the constant {constant.name!r} by the image"
    values = graph.exact(constant)
    if node.op == "Div" and values is not None and not values.all():
        return f"{node.op}'s constant {constant.name!r} has a zero"
    return None


def _affine(graph: Graph, match: Chain) -> tuple[Float64, Float64]:
    """The chain's (scale, shift) a channel: x → scale·x + shift."""
    channels = match.data.shape[1]
    scale, shift = np.ones(channels), np.zeros(channels)
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
        readers = [user.op for user in match.nodes[-1].outputs[0].outputs]
        return f"into=conv: {[n.op for n in match.follow] or readers} read it, not one Conv"
    *resizes, conv = match.follow
    for resize in resizes:
        reason = _why_not_commuting(resize, match.data.shape[1])
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
    return None


def _why_not_commuting(resize: Node, channels: int) -> str | None:
    """Why scale and shift a channel don't commute with a Resize."""
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "fills in extrapolation_value (tf_crop_and_resize)"
    shape = static_shape(resize.outputs[0])
    if shape is None or shape[1] != channels:
        return f"changes the number of channels from {channels}"
    return None


def _into_conv(
    graph: Graph, builder: Builder, match: Chain, scale: Float64, shift: Float64
) -> Replacement:
    """The Resize nodes and the convolution again, on the image as it is."""
    *resizes, conv = match.follow
    data = match.data
    for resize in resizes:
        data = builder.copy(resize, [data, *resize.inputs[1:]]).outputs[0]
    weights, *bias = [tensor for tensor in conv.inputs[1:] if tensor.name]
    kernel = _exact(graph, weights)
    over_channels = (-1, *[1] * (kernel.ndim - 2))
    offset = (kernel * shift.reshape(over_channels)).sum(axis=tuple(range(1, kernel.ndim)))
    for tensor in bias:
        offset = offset + _exact(graph, tensor)
    folded = {
        f"{weights.name} · scale": kernel * scale.reshape(over_channels),
        " + ".join([*(tensor.name for tensor in bias), "Σ weights · shift"]): offset,
    }
    constants = [builder.constant(values, weights.dtype, how) for how, values in folded.items()]
    twin = builder.copy(conv, [data, *constants])
    return Replacement(builder, [(conv.outputs[0], twin.outputs[0])])


def _exact(graph: Graph, constant: Tensor) -> Float64:
    values = graph.exact(constant)
    assert values is not None
    return values
