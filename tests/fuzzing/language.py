"""The language of attention: every way in which a part of it is written, part by part.

A `Form` is one word of it. Tensors of heads carry the order of their axes as letters: (b)atch,
(h)eads, to(n)kens, (d) features of a head; `bnhd` is what a projection gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from fuzzing.net import Net, Value, is_dynamic, product
from onnx import TensorProto


@dataclass(frozen=True)
class Form:
    """One way to write an attention. The first word of each part's table is the plain one."""

    packing: str = "separate"
    unpack: str = "gather"
    linear: str = "MatMul"
    bias: str = "none"
    source: str = "self"
    tokens: str = "bnc"
    layout: str = "bhnd"
    norm: str = "none"
    rotary: str = "none"
    norm_late: bool = False
    cache: bool = False
    repeat: str = "Expand"
    scale: str = "none"
    cap: bool = False
    position: str = "none"
    mask: str = "none"
    scores: str = "MatMul"
    softmax: str = "Softmax"
    behind: str = "none"
    values: str = "MatMul"
    merge: str = "Reshape"
    windows: str = "none"


@dataclass(frozen=True)
class Sizes:
    """batch, tokens, keys, heads, heads of the key, features of a head, channels of the input."""

    batch: int = 1
    tokens: int = 5
    keys: int = 5
    heads: int = 4
    few: int = 4
    width: int = 3
    channels: int = 12

    @property
    def is_dynamic(self) -> bool:
        return any(is_dynamic(getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True)
class Heads:
    """A tensor of heads and the order of its axes."""

    value: Value
    order: str

    def arranged(self, net: Net, order: str) -> Value:
        return net.transpose(self.value, [self.order.index(letter) for letter in order])

    def like(self, value: Value) -> "Heads":
        return Heads(value, self.order)


# -- projections -----------------------------------------------------------------------------------


def matmul(net: Net, x: Value, key: object, width: int) -> Value:
    return net.matmul(x, net.weight(key, x.shape[-1], width))


def gemm(net: Net, x: Value, key: object, width: int, turned: int = 0) -> Value:
    rows = net.reshape(x, product(x.shape[:-1]), x.shape[-1]) if x.rank > 2 else x
    shape = (width, x.shape[-1]) if turned else (x.shape[-1], width)
    weights = net.weight((key, turned), *shape)
    bias = [net.weight((key, "c"), width)] if net.rng.random() < 0.5 else []
    y = net.op("Gemm", [rows, weights, *bias], (rows.shape[0], width), transB=turned)
    return net.reshape(y, *x.shape[:-1], width) if x.rank > 2 else y


def conv(net: Net, x: Value, key: object, width: int) -> Value:
    if x.rank == 2:
        return matmul(net, x, key, width)
    weights = net.weight(key, width, x.shape[-1], 1, spread=0.4)
    columns = net.transpose(x, [0, 2, 1])
    y = net.op("Conv", [columns, weights], (x.shape[0], width, x.shape[1]), kernel_shape=[1])
    return net.transpose(y, [0, 2, 1])


LINEARS: dict[str, Callable[[Net, Value, object, int], Value]] = {
    "MatMul": matmul,
    "Gemm": gemm,
    "Gemm transB": lambda net, x, key, width: gemm(net, x, key, width, 1),
    "Conv": conv,
}
BIASES = {
    "none": lambda net, y, key: y,
    "behind": lambda net, y, key: net.binary("Add", y, net.weight((key, "b"), y.shape[-1])),
    "before": lambda net, y, key: net.binary("Add", net.weight((key, "b"), y.shape[-1]), y),
}


def linear(net: Net, form: Form, x: Value, key: object, width: int) -> Value:
    return BIASES[form.bias](net, LINEARS[form.linear](net, x, key, width), key)


# -- query, key and value, packed or not -----------------------------------------------------------

QKV = tuple[Heads, Heads, Heads]
Packing = Callable[[Net, Form, Sizes, Value, Value, object], QKV]


def own_heads(net: Net, form: Form, sizes: Sizes, x: Value, key: object, heads: int) -> Heads:
    """One projection of its own."""
    y = linear(net, form, x, key, heads * sizes.width)
    return Heads(net.reshape(y, *x.shape[:-1], heads, sizes.width), form.tokens[:-1] + "hd")


def separate(net, form, sizes, x, memory, key):
    return tuple(
        own_heads(net, form, sizes, source, (key, name), heads)
        for name, source, heads in (("q", x, sizes.heads), ("k", memory, sizes.few),
                                    ("v", memory, sizes.few))
    )  # fmt: skip


def query_apart(net, form, sizes, x, memory, key):
    """A projection for the query, one for key and value."""
    query = own_heads(net, form, sizes, x, (key, "q"), sizes.heads)
    return (query, *packed(net, form, sizes, memory, (key, "kv"), "3hd", 2, sizes.few))


def packed(net, form, sizes, x, key, order, count=3, heads=None):
    """One projection whose columns are `order`, where 3 are query, key and value."""
    heads = heads or sizes.heads
    length = {"3": count, "h": heads, "d": sizes.width}
    y = linear(net, form, x, key, count * heads * sizes.width)
    lead = form.tokens[:-1]
    together = Heads(net.reshape(y, *x.shape[:-1], *(length[o] for o in order)), lead + order)
    return UNPACKINGS[form.unpack](net, together, count)


def first(net: Net, heads: Heads, count: int) -> Heads:
    """The usual: the three in front, then batch, heads and tokens."""
    order = "3" + "".join(sorted(heads.order.replace("3", ""), key="bhnd".index))
    return Heads(heads.arranged(net, order), order)


def unpack_gather(net, heads, count):
    heads = first(net, heads, count)
    return [Heads(net.gather(heads.value, k, 0), heads.order[1:]) for k in range(count)]


def unpack_gather_in_place(net, heads, count):
    axis, order = heads.order.index("3"), heads.order.replace("3", "")
    return [Heads(net.gather(heads.value, k, axis), order) for k in range(count)]


def unpack_split(net, heads, count):
    heads = first(net, heads, count)
    parts = net.split(heads.value, [1] * count, 0)
    return [Heads(net.squeeze(part, 0), heads.order[1:]) for part in parts]


def unpack_split_in_place(net, heads, count):
    axis, order = heads.order.index("3"), heads.order.replace("3", "")
    parts = net.split(heads.value, [1] * count, axis)
    return [Heads(net.squeeze(part, axis), order) for part in parts]


def unpack_slice(net, heads, count):
    axis, order = heads.order.index("3"), heads.order.replace("3", "")
    parts = [net.slice(heads.value, k, k + 1, axis) for k in range(count)]
    return [Heads(net.squeeze(part, axis), order) for part in parts]


def unpack_gather_vector(net, heads, count):
    axis, order = heads.order.index("3"), heads.order.replace("3", "")
    parts = [net.gather(heads.value, [k], axis) for k in range(count)]
    return [Heads(net.squeeze(part, axis), order) for part in parts]


UNPACKINGS = {
    "gather": unpack_gather,
    "gather in place": unpack_gather_in_place,
    "gather vector": unpack_gather_vector,
    "split": unpack_split,
    "split in place": unpack_split_in_place,
    "slice": unpack_slice,
}


def columns(cut: str) -> Packing:
    """The columns of one projection are cut apart before anything knows of heads."""

    def packing(net, form, sizes, x, memory, key):
        counts = [sizes.heads, sizes.few, sizes.few]
        widths = [count * sizes.width for count in counts]
        y = linear(net, form, x, (key, "qkv"), sum(widths))
        if cut == "Split":
            parts = net.split(y, widths, -1)
        else:
            edges = [0, *np.cumsum(widths).tolist()]
            parts = [net.slice(y, a, b, -1) for a, b in pairwise(edges)]
        order = form.tokens[:-1] + "hd"
        return tuple(
            Heads(net.reshape(part, *x.shape[:-1], count, sizes.width), order)
            for part, count in zip(parts, counts, strict=True)
        )

    return packing


def per_head_3d(net, form, sizes, x, memory, key):
    """Query, key and value of a head are 3·D columns, which a Split takes apart (GPT-NeoX)."""
    y = linear(net, form, x, (key, "qkv"), 3 * sizes.heads * sizes.width)
    together = net.reshape(y, *x.shape[:-1], sizes.heads, 3 * sizes.width)
    parts = net.split(together, [sizes.width] * 3, -1)
    return tuple(Heads(part, form.tokens[:-1] + "hd") for part in parts)


def stacked_weights(net, form, sizes, x, memory, key):
    """Weights [3, 1, C, H·D] in one batched product."""
    weights = net.weight((key, "stack"), 3, *(1,) * (x.rank - 2), x.shape[-1],
                         sizes.heads * sizes.width)  # fmt: skip
    y = net.matmul(net.unsqueeze(x, 0), weights)
    order = form.tokens[:-1] + "hd"
    return tuple(
        Heads(net.reshape(net.gather(y, k, 0), *x.shape[:-1], sizes.heads, sizes.width), order)
        for k in range(3)
    )


def per_head_weights(net, form, sizes, x, memory, key):
    """Weights [H, C, D]: a product for every head in one batched MatMul."""
    found = []
    for name, source, heads in (("q", x, sizes.heads), ("k", memory, sizes.few),
                                ("v", memory, sizes.few)):  # fmt: skip
        weights = net.weight((key, name), heads, source.shape[-1], sizes.width)
        y = net.matmul(net.unsqueeze(source, source.rank - 2), weights)
        found.append(Heads(y, form.tokens[:-2] + "h" + form.tokens[-2] + "d"))
    return tuple(found)


def einsum_weights(net, form, sizes, x, memory, key):
    """Weights [C, H, D] by Einsum."""
    found, order = [], form.tokens[:-1]
    for name, source, heads in (("q", x, sizes.heads), ("k", memory, sizes.few),
                                ("v", memory, sizes.few)):  # fmt: skip
        weights = net.weight((key, name), source.shape[-1], heads, sizes.width, spread=0.4)
        y = net.einsum(f"{order}c,chd->{order}hd", source, weights)
        found.append(Heads(y, order + "hd"))
    return tuple(found)


def packed_as(order: str) -> Packing:
    return lambda net, form, sizes, x, memory, key: tuple(
        packed(net, form, sizes, x, (key, "qkv"), order)
    )


PACKINGS: dict[str, Packing] = {
    "separate": separate,
    "3hd": packed_as("3hd"),
    "h3d": packed_as("h3d"),
    "hd3": packed_as("hd3"),
    "d3h": packed_as("d3h"),
    "dh3": packed_as("dh3"),
    "3dh": packed_as("3dh"),
    "q, kv": query_apart,
    "columns Split": columns("Split"),
    "columns Slice": columns("Slice"),
    "h·3d Split": per_head_3d,
    "stacked weights": stacked_weights,
    "per head weights": per_head_weights,
    "Einsum weights": einsum_weights,
}
# Those that take key and value from elsewhere, and those that have fewer heads of the key.
WITH_MEMORY = {"separate", "q, kv", "per head weights", "Einsum weights"}
WITH_FEW = WITH_MEMORY | {"columns Split", "columns Slice"}

# -- where keys and values come from ---------------------------------------------------------------


def pooled(net: Net, x: Value, sizes: Sizes, form: Form, key: object) -> Value:
    """Spatial reduction: 4×2 tokens become 2×1 by a Conv of stride 2, then a norm (SegFormer)."""
    batch, channels = x.shape[0], x.shape[2]
    image = net.reshape(net.transpose(x, [0, 2, 1]), batch, channels, 4, 2)
    weights = net.weight((key, "sr"), channels, channels, 2, 2, spread=0.3)
    small = net.op("Conv", [image, weights], (batch, channels, 2, 1), strides=[2, 2])
    tokens = net.transpose(net.reshape(small, batch, channels, 2), [0, 2, 1])
    return net.layer_norm(tokens, (key, "sr norm"))


def remembered(net: Net, x: Value, sizes: Sizes, form: Form, key: object) -> Value:
    """Cross attention to a second input."""
    length = {"b": sizes.batch, "n": sizes.keys, "c": sizes.channels + 1}
    return net.input("memory", [length[letter] for letter in form.tokens])


SOURCES = {
    "self": lambda net, x, sizes, form, key: x,
    "memory": remembered,
    "pooled": pooled,
}

# -- norms and rotations of query and key ----------------------------------------------------------


def rms(net: Net, x: Value, key: object) -> Value:
    mean = net.reduce("ReduceMean", net.binary("Mul", x, x), -1)
    root = net.unary("Sqrt", net.binary("Add", mean, 1e-5))
    gain = net.weight((key, "gain"), x.shape[-1])
    return net.binary("Mul", net.binary("Div", x, root), gain)


def unit(net: Net, x: Value, key: object) -> Value:
    """Divided by its length; a cosine attention (Swin V2)."""
    length = net.reduce("ReduceL2", x, -1)
    return net.binary("Div", x, net.binary("Max", length, 1e-6))


def rms_op(net: Net, x: Value, key: object) -> Value:
    gain = net.weight((key, "gain"), x.shape[-1])
    return net.op("RMSNormalization", [x, gain], x.shape, axis=-1)


NORMS = {
    "none": lambda net, x, key: x,
    "LayerNormalization": lambda net, x, key: net.layer_norm(x, key),
    "RMS": rms,
    "RMSNormalization": rms_op,
    "unit": unit,
}


def tables(net: Net, heads: Heads, width: int) -> tuple[Value, Value]:
    """cos and sin for every token, shaped for the order of the axes; inputs if that is dynamic."""
    axis = heads.order.index("n")
    tokens, between = heads.value.shape[axis], heads.value.rank - axis - 2
    if is_dynamic(tokens):
        found = [net.input(f"{f}_{tokens.name}_{width}", [tokens, width]) for f in ("cos", "sin")]
    else:
        angles = np.arange(tokens)[:, None] * 0.7 ** np.arange(width) + 0.1
        found = [net.constant(np.cos(angles)), net.constant(np.sin(angles))]
    return tuple(net.unsqueeze(t, *range(1, 1 + between)) if between else t for t in found)


def half(net: Net, x: Value, cut: str) -> Value:
    """(−x₂, x₁): LLaMA's rotate_half."""
    width = x.shape[-1] // 2
    if cut == "Split":
        left, right = net.split(x, [width, width], -1)
    else:
        left, right = net.slice(x, 0, width, -1), net.slice(x, width, 2 * width, -1)
    return net.concat([net.unary("Neg", right), left], -1)


def pairs(net: Net, x: Value, _cut: str) -> Value:
    """(−x₁, x₀, −x₃, x₂ …): neighbours are rotated (GPT-J, RoFormer)."""
    apart = net.reshape(x, *x.shape[:-1], x.shape[-1] // 2, 2)
    even, odd = (net.gather(apart, k, -1) for k in range(2))
    turned = [net.unsqueeze(t, t.rank) for t in (net.unary("Neg", odd), even)]
    return net.reshape(net.concat(turned, -1), *x.shape)


def rotated(turn: Callable[[Net, Value, str], Value], cut: str = "", part: bool = False):
    def rotary(net: Net, heads: Heads) -> Value:
        x = rest = heads.value
        if part:  # only the first half of the features
            x, rest = net.split(x, [x.shape[-1] // 2] * 2, -1)
        cos, sin = tables(net, heads.like(x), x.shape[-1])
        turned = net.binary("Mul", turn(net, x, cut), sin)
        result = net.binary("Add", net.binary("Mul", x, cos), turned)
        return net.concat([result, rest], -1) if part else result

    return rotary


ROTARIES: dict[str, Callable[[Net, Heads], Value]] = {
    "none": lambda net, heads: heads.value,
    "half by Split": rotated(half, "Split"),
    "half by Slice": rotated(half, "Slice"),
    "pairs": rotated(pairs),
    "partial": rotated(half, "Split", part=True),
}

# -- heads of the key that several heads of the query read -----------------------------------------


def repeated_by(net: Net, heads: Heads, times: int, how: str) -> Heads:
    """Each head of the key `times` times."""
    x, axis = heads.value, heads.order.index("h")
    few = x.shape[axis]
    if how == "Gather":
        return heads.like(net.gather(x, [k // times for k in range(few * times)], axis))
    if how == "Tile":  # another order of the heads, which is as good
        counts = [times if k == axis else 1 for k in range(x.rank)]
        shape = [s * c if c > 1 else s for s, c in zip(x.shape, counts, strict=True)]
        return heads.like(net.op("Tile", [x, net.ints(*counts)], shape))
    apart = net.unsqueeze(x, axis + 1)
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    merged = (*x.shape[:axis], few * times, *x.shape[axis + 1 :])
    if how == "Concat":
        wide = net.concat([apart] * times, axis + 1)
    else:
        wide = net.op("Expand", [apart, net.shape(*shape)], shape)
    return heads.like(net.reshape(wide, *merged))


REPEATS = ("Expand", "Tile", "Gather", "Concat", "broadcast", "five axes")

# -- what is done to scores ------------------------------------------------------------------------

Term = Callable[["Scores"], Value]


@dataclass(frozen=True)
class Scores:
    """What a mask or a bias may look at."""

    net: Net
    sizes: Sizes
    query: Heads
    key: object

    def constant_or_input(self, name: str, shape: tuple[int, ...]) -> Value:
        if any(map(is_dynamic, shape)):
            return self.net.input(name, shape)
        return self.net.weight((self.key, name), *shape, spread=1.0)


def given(*letters: str, boolean: bool = False) -> Term:
    """A graph input over some of the axes b, h, n, m."""

    def term(s: Scores) -> Value:
        length = {"b": s.sizes.batch, "h": s.sizes.heads, "n": s.sizes.tokens, "m": s.sizes.keys}
        shape = [length.get(letter, 1) for letter in letters]
        sizes = "x".join(getattr(size, "name", str(size)) for size in shape)
        name = f"mask_{''.join(letters)}_{sizes}" + ("_bool" if boolean else "")
        kind = TensorProto.BOOL if boolean else TensorProto.FLOAT
        return s.net.input(name, shape, kind)

    return term


def constant_mask(s: Scores) -> Value:
    return s.constant_or_input("mask", (s.sizes.tokens, s.sizes.keys))


def causal(s: Scores) -> Value:
    """Booleans from counting, as exporters compute them: key ≤ query + (keys − queries)."""
    net = s.net
    numbers = []
    for size in (s.sizes.tokens, s.sizes.keys):
        length = net.op("Squeeze", [net.shape(size)], [], type_=TensorProto.INT64)
        bounds = [net.constant(0, np.int64), length, net.constant(1, np.int64)]
        numbers.append(net.op("Range", bounds, [size], type_=TensorProto.INT64))
    rows, keys = net.unsqueeze(numbers[0], 1), net.unsqueeze(numbers[1], 0)
    return net.binary("GreaterOrEqual", rows, keys, TensorProto.BOOL)


MASKS: dict[str, Term | None] = {
    "none": None,
    "constant": constant_mask,
    "input nm": given("n", "m"),
    "input 11nm": given("1", "1", "n", "m"),
    "input b1nm": given("b", "1", "n", "m"),
    "input b11m": given("b", "1", "1", "m"),
    "input bhnm": given("b", "h", "n", "m"),
    "bool nm": given("n", "m", boolean=True),
    "bool b11m": given("b", "1", "1", "m", boolean=True),
    "causal": causal,
}
# Their slices are of inputs: nothing computes them that could be sliced instead.
SLICED_MASKS = {"input bhnm"}


def per_head(s: Scores) -> Value:
    return s.constant_or_input("bias", (1, s.sizes.heads, s.sizes.tokens, s.sizes.keys))


def indices(s: Scores, shape: tuple[int, ...], rows: int) -> Value:
    """Which row of a table each pair of tokens reads."""
    if any(map(is_dynamic, shape)):
        return s.net.input("buckets", shape, TensorProto.INT64)
    return s.net.constant(s.net.rng.integers(0, rows, shape), np.int64)


def buckets(s: Scores) -> Value:
    """T5: a table [rows, H] at [N, M], turned to [1, H, N, M]."""
    net = s.net
    table = net.weight((s.key, "table"), 7, s.sizes.heads, spread=1.0)
    found = net.gather(table, indices(s, (s.sizes.tokens, s.sizes.keys), 7), 0)
    return net.unsqueeze(net.transpose(found, [2, 0, 1]), 0)


def flat_buckets(s: Scores) -> Value:
    """Swin, BEiT: a table [rows, H] at N·M places, reshaped and turned."""
    net, pairs_ = s.net, product((s.sizes.tokens, s.sizes.keys))
    table = net.weight((s.key, "table"), 9, s.sizes.heads, spread=1.0)
    shape = (s.sizes.tokens, s.sizes.keys)
    places = indices(s, shape if is_dynamic(pairs_) else (pairs_,), 9)
    places = net.reshape(places, pairs_) if is_dynamic(pairs_) else places
    found = net.gather(table, places, 0)
    apart = net.reshape(found, s.sizes.tokens, s.sizes.keys, s.sizes.heads)
    return net.unsqueeze(net.transpose(apart, [2, 0, 1]), 0)


def slopes(s: Scores) -> Value:
    """ALiBi: a slope a head times the distance."""
    net = s.net
    slope = net.weight((s.key, "slope"), s.sizes.heads, 1, 1, spread=0.5)
    return net.binary("Mul", slope, s.constant_or_input("distance", (1, s.sizes.keys)))


def decomposed(s: Scores) -> Value:
    """SAM: the query times a table of rows and one of columns, added over a grid of keys."""
    net, (tall, wide) = s.net, grid(s.sizes.tokens)
    b, h, n, d = s.sizes.batch, s.sizes.heads, s.sizes.tokens, s.sizes.width
    query = net.reshape(s.query.arranged(net, "bhnd"), product((b, h)), tall, wide, d)
    rows, columns_ = (net.weight((s.key, "rel", axis), length, length, d, spread=0.5)
                      for axis, length in enumerate((tall, wide)))  # fmt: skip
    down = net.matmul(query, net.transpose(rows, [0, 2, 1]))  # [BH, tall, wide, tall']
    turned = net.transpose(query, [0, 2, 1, 3])
    across = net.matmul(turned, net.transpose(columns_, [0, 2, 1]))
    across = net.transpose(across, [0, 2, 1, 3])  # [BH, tall, wide, wide']
    both = net.binary("Add", net.unsqueeze(down, 4), net.unsqueeze(across, 3))
    return net.reshape(both, b, h, n, n)


def grid(tokens: int) -> tuple[int, int]:
    """The tokens as rows and columns."""
    tall = max(k for k in range(1, int(math.sqrt(tokens)) + 1) if tokens % k == 0)
    return tall, tokens // tall


POSITIONS: dict[str, Term | None] = {
    "none": None,
    "per head": per_head,
    "buckets": buckets,
    "flat buckets": flat_buckets,
    "slopes": slopes,
    "decomposed": decomposed,
}

SCALES = ("none", "query", "key", "both", "scores", "divided", "vector")
CAP = 5.0

# -- from scores to probabilities ------------------------------------------------------------------


def taken_apart(guarded: bool) -> Callable[[Net, Value], Value]:
    """Exp, ReduceSum, Div; with or without the maximum taken off."""

    def softmax(net: Net, s: Value) -> Value:
        if guarded:
            s = net.binary("Sub", s, net.reduce("ReduceMax", s, -1))
        e = net.unary("Exp", s)
        return net.binary("Div", e, net.reduce("ReduceSum", e, -1))

    return softmax


def positive_axis(net: Net, s: Value) -> Value:
    return net.unary("Softmax", s, axis=s.rank - 1)


SOFTMAXES: dict[str, Callable[[Net, Value], Value]] = {
    "Softmax": lambda net, s: net.softmax(s),
    "positive axis": positive_axis,
    "apart": taken_apart(guarded=False),
    "apart, guarded": taken_apart(guarded=True),
}


def nan_guard(net: Net, p: Value) -> Value:
    bad = net.op("IsNaN", [p], p.shape, type_=TensorProto.BOOL)
    return net.where(bad, net.constant(0), p)


BEHIND: dict[str, Callable[[Net, Value], Value]] = {
    "none": lambda net, p: p,
    "guard": nan_guard,
    "dropout": lambda net, p: net.binary("Mul", p, 1.25),
    "Identity": lambda net, p: net.unary("Identity", p),
}

# -- how heads are laid out while they attend ------------------------------------------------------


class Layout:
    """[B, H, N, D], the usual; others change what is different."""

    axes = "bh"
    """The axes before (tokens, features)."""

    def __init__(self, net: Net, form: Form, sizes: Sizes) -> None:
        self.net, self.form, self.sizes = net, form, sizes

    def enter(self, heads: Heads) -> Value:
        return heads.arranged(self.net, self.axes + "nd")

    def turned(self, heads: Heads) -> Value:
        """The key, features before tokens."""
        if self.net.rng.random() < 0.5:
            return heads.arranged(self.net, self.axes + "dn")
        value = self.enter(heads)
        return self.net.transpose(value, [*range(value.rank - 2), value.rank - 1, value.rank - 2])

    def on_scores(self, scores: Value, act: Callable[[Value], Value]) -> Value:
        """Scores as they are when masks are applied, and back."""
        return act(scores)

    def term(self, term: Value) -> Value:
        """What broadcasts to [B, H, N, M] as it broadcasts to the scores."""
        return term

    def leave(self, result: Value) -> Heads:
        return Heads(result, self.axes + "nd")


class HeadsFirst(Layout):
    """[H, B, N, D]."""

    axes = "hb"

    def term(self, term: Value) -> Value:
        if term.rank == 3:
            return self.net.unsqueeze(term, 1)
        return self.net.transpose(term, [1, 0, 2, 3]) if term.rank == 4 else term


class NoBatch(Layout):
    """[H, N, D]."""

    axes = "h"

    def term(self, term: Value) -> Value:
        return self.net.squeeze(term, 0) if term.rank == 4 else term


class Folded(Layout):
    """[B·H, N, D], as fairseq, BART and torch's MultiheadAttention write it."""

    def enter(self, heads: Heads) -> Value:
        n, d = (heads.value.shape[heads.order.index(letter)] for letter in "nd")
        if heads.order.startswith("nb"):  # tokens first: [N, B·H, D]
            rows = self.net.reshape(heads.arranged(self.net, "nbhd"), n, self._both(heads), d)
            return self.net.transpose(rows, [1, 0, 2])
        return self.net.reshape(heads.arranged(self.net, "bhnd"), self._both(heads), n, d)

    def _both(self, heads: Heads) -> int:
        b, h = (heads.value.shape[heads.order.index(letter)] for letter in "bh")
        return product((b, h))

    def turned(self, heads: Heads) -> Value:
        return self.net.transpose(self.enter(heads), [0, 2, 1])

    def on_scores(self, scores: Value, act: Callable[[Value], Value]) -> Value:
        apart = self.net.reshape(scores, self.sizes.batch, self.sizes.heads, *scores.shape[-2:])
        acted = act(apart)
        return acted if acted is apart else self.net.reshape(acted, *scores.shape)

    def leave(self, result: Value) -> Heads:
        b, h = self.sizes.batch, self.sizes.heads
        return Heads(self.net.reshape(result, b, h, *result.shape[-2:]), "bhnd")


class FiveAxes(Layout):
    """[B, K, G, N, D]: the heads of the query in groups, a head of the key each."""

    def enter(self, heads: Heads) -> Value:
        value = heads.arranged(self.net, "bhnd")
        b, h, n, d = value.shape
        if h == self.sizes.heads:
            return self.net.reshape(value, b, self.sizes.few, h // self.sizes.few, n, d)
        return self.net.unsqueeze(value, 2)

    def turned(self, heads: Heads) -> Value:
        return self.net.transpose(self.enter(heads), [0, 1, 2, 4, 3])

    def term(self, term: Value) -> Value:
        if term.rank < 3 or term.shape[-3] == 1:
            return self.net.unsqueeze(term, term.rank - 2) if term.rank > 2 else term
        few = self.sizes.few
        return self.net.reshape(term, *term.shape[:-3], few, self.sizes.heads // few,
                                *term.shape[-2:])  # fmt: skip

    def leave(self, result: Value) -> Heads:
        b, k, g, n, d = result.shape
        return Heads(self.net.reshape(result, b, k * g, n, d), "bhnd")


LAYOUTS = {
    "bhnd": Layout,
    "hbnd": HeadsFirst,
    "hnd": NoBatch,
    "folded": Folded,
}

# -- from heads to features ------------------------------------------------------------------------


def merged(order: str):
    def merge(net: Net, form: Form, heads: Heads, key: object, width: int) -> Value:
        lead = form.tokens[:-1]
        value = heads.arranged(net, lead + order)
        features = product(value.shape[len(lead) :])
        result = net.reshape(value, *value.shape[: len(lead)], features)
        return linear(net, form, result, (key, "out"), width)

    return merge


def einsum_out(net: Net, form: Form, heads: Heads, key: object, width: int) -> Value:
    """The projection takes heads and features as they are."""
    h, d = (heads.value.shape[heads.order.index(letter)] for letter in "hd")
    weights = net.weight((key, "out"), h, d, width, spread=0.4)
    return net.einsum(f"{heads.order},hdc->{form.tokens}", heads.value, weights)


def summed_out(net: Net, form: Form, heads: Heads, key: object, width: int) -> Value:
    """A product with the rows of each head, then the sum over heads."""
    lead = form.tokens[:-2]
    value = heads.arranged(net, lead + "h" + form.tokens[-2] + "d")
    h, d = value.shape[len(lead)], value.shape[-1]
    weights = net.weight((key, "out"), h, d, width)
    return net.reduce("ReduceSum", net.matmul(value, weights), len(lead), keepdims=0)


def concat_out(net: Net, form: Form, heads: Heads, key: object, width: int) -> Value:
    """Heads split apart and joined along the features."""
    axis = heads.order.index("h")
    parts = net.split(heads.value, [1] * heads.value.shape[axis], axis)
    order = heads.order.replace("h", "")
    alone = [Heads(net.squeeze(part, axis), order) for part in parts]
    found = [one.arranged(net, form.tokens[:-1] + "d") for one in alone]
    return linear(net, form, net.concat(found, -1), (key, "out"), width)


MERGES = {
    "Reshape": merged("hd"),
    "d·h": merged("dh"),
    "Einsum": einsum_out,
    "sum": summed_out,
    "Concat": concat_out,
}
# Heads that never become features stay an axis of their own.
NOT_MERGED = {"Einsum", "sum", "Concat"}

LANGUAGE: dict[str, tuple[object, ...]] = {
    "packing": tuple(PACKINGS),
    "unpack": tuple(UNPACKINGS),
    "linear": tuple(LINEARS),
    "bias": tuple(BIASES),
    "source": tuple(SOURCES),
    "tokens": ("bnc", "nbc", "nc"),
    "layout": tuple(LAYOUTS),
    "norm": tuple(NORMS),
    "norm_late": (False, True),
    "rotary": tuple(ROTARIES),
    "cache": (False, True),
    "repeat": REPEATS,
    "scale": SCALES,
    "cap": (False, True),
    "position": tuple(POSITIONS),
    "mask": tuple(MASKS),
    "scores": ("MatMul", "Einsum", "turned"),
    "softmax": (*SOFTMAXES, "Attention"),
    "behind": tuple(BEHIND),
    "values": ("MatMul", "Einsum"),
    "merge": tuple(MERGES),
    "windows": ("none", "windows", "shifted"),
}
# What the words need of the operator set.
NEEDS = {
    "LayerNormalization": 17, "pooled": 17, "RMSNormalization": 23, "Attention": 23,
}  # fmt: skip
