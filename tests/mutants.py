"""Faults to plant into what the passes make, one function each; the verifier has to find them.

The set is that of verification.md. A fault is planted into the replacement that a pass proposes
(for one of the model's attentions, the second), into the graph that `canonicalize` returns, or
into the one decision that the fault is about. The model is any Depth Anything V2 of six heads and
two layers at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from compiler.graph import SOURCES_KEY, Graph, producer_of
from compiler.pipeline import pass_class
from compiler.rewrite import Builder, Copy, Replacement
from compiler.slicing import Slicer, Take
from compiler.weights import NewWeight
from passes import fold_norm, resize_as_matrix, split_heads, split_queries
from passes.canonicalize import Canonicalize

# The layer whose attention a fault is planted in; rewrites are counted from 0.
FAULTY = 1

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A pipeline of one pass, and how its fault gets in."""

    id: str
    passes: str
    plant: Plant
    rewrite: int = 0
    """The first rewrite that the fault is in."""


# -- how faults get in -----------------------------------------------------------------------------


def in_replacement(
    name: str, corrupt: Callable[[Graph, Replacement], Replacement | None], index: int = 0
) -> Plant:
    """Corrupts what the pass `name` proposes at its `index`-th match."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        honest, calls = pass_class(name).rewrite, []

        def rewrite(self: Any, graph: Graph, match: Any) -> Replacement:
            proposal = honest(self, graph, match)
            calls.append(match)
            wrong = corrupt(graph, proposal) if len(calls) == index + 1 else None
            return proposal if wrong is None else wrong

        monkeypatch.setattr(pass_class(name), "rewrite", rewrite)

    return plant


def in_simplified(corrupt: Callable[[Graph], None]) -> Plant:
    """Corrupts the graph that canonicalize returns (once: a second run must change nothing)."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        honest, runs = Canonicalize.simplified, []

        def simplified(self: Canonicalize, graph: Graph) -> Graph:
            result = honest(self, graph)
            if not runs:
                corrupt(result)
            runs.append(graph)
            return result

        monkeypatch.setattr(Canonicalize, "simplified", simplified)

    return plant


def in_affine(corrupt: Callable[[Any, Any], tuple[Any, Any]]) -> Plant:
    """Corrupts the scale and shift that fold_norm computes."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        honest = fold_norm._affine
        monkeypatch.setattr(fold_norm, "_affine", lambda *args: corrupt(*honest(*args)))

    return plant


def in_take(take: Callable[[split_heads.Attention, int, int], Take]) -> Plant:
    """Replaces the slice of the merged result that a head is taken to be."""
    return lambda monkeypatch: monkeypatch.setattr(split_heads.Attention, "take", take)


def in_pull(projection: str, shift: int) -> Plant:
    """Shifts the columns that every head but the first and last takes of a projection's weights."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        honest, faulty = Slicer._sliced_constant, []

        def sliced(self: Slicer, tensor: Any, take: Take) -> Any:
            if not faulty:
                bias = layer(f"attention.{projection}.bias")
                faulty.append(projection_of(self.graph, bias).inputs[1])
            if tensor is faulty[0] and take.start > 0 and take.stop < tensor.shape[-1]:
                take = replace(take, start=take.start + shift, stop=take.stop + shift)
            return honest(self, tensor, take)

        monkeypatch.setattr(Slicer, "_sliced_constant", sliced)

    return plant


# -- attention -------------------------------------------------------------------------------------


@dataclass
class Head:
    """The nodes of one head of a split attention, found by walking back from the merge."""

    builder: Builder
    product: Any

    @property
    def softmax(self) -> Any:
        return producer_of(self.product.inputs[0])

    @property
    def scaled(self) -> Any:
        return producer_of(self.softmax.inputs[0])

    @property
    def scores(self) -> Any:
        return producer_of(self.scaled.inputs[0])

    @property
    def query(self) -> Any:
        return self.scores.inputs[0]

    @property
    def transposed_key(self) -> Any:
        return self.scores.inputs[1]

    @property
    def key(self) -> Any:
        return producer_of(self.transposed_key).inputs[0]

    @property
    def value(self) -> Any:
        return self.product.inputs[1]

    def transposed(self, tensor: Any) -> Any:
        _, tokens, width = tensor.shape
        return self.builder.node("Transpose", [tensor], (1, width, tokens), perm=[0, 2, 1])

    def scale_by(self, factor: float) -> None:
        scale = self.builder._graph.exact(self.scaled.inputs[1])
        constant = self.builder.constant(scale * factor, self.scaled.inputs[1].dtype, "scale")
        self.scaled.inputs[1] = constant


def heads_of(proposal: Replacement) -> list[Head]:
    merge = producer_of(proposal.outputs[0][1])
    assert merge.op == "Concat"
    assert len(merge.inputs) > 2
    return [Head(proposal.builder, producer_of(part)) for part in merge.inputs]


def in_heads(corrupt: Callable[[list[Head]], None]) -> Plant:
    return in_replacement("split_heads", lambda _, new: corrupt(heads_of(new)), FAULTY)


def scale_missing(heads: list[Head]) -> None:
    heads[1].softmax.inputs[0] = heads[1].scores.outputs[0]


def scale_twice(heads: list[Head]) -> None:
    head = heads[1]
    scaled = head.scaled.outputs[0]
    again = head.builder.node("Mul", [scaled, head.scaled.inputs[1]], tuple(scaled.shape))
    head.softmax.inputs[0] = again


def scale_of_all_channels(heads: list[Head]) -> None:
    for head in heads:
        head.scale_by(len(heads) ** -0.5)


def scale_one_percent_off(heads: list[Head]) -> None:
    heads[1].scale_by(1.01)


def softmax_over_queries(heads: list[Head]) -> None:
    heads[1].softmax.attrs["axis"] = 1


def query_and_key_swapped(heads: list[Head]) -> None:
    head = heads[1]
    query, key = head.query, head.key
    scores = head.scores
    scores.inputs[0], scores.inputs[1] = key, head.transposed(query)


def key_and_value_swapped(heads: list[Head]) -> None:
    head = heads[1]
    key, value = head.key, head.value
    head.scores.inputs[1] = head.transposed(value)
    head.product.inputs[1] = key


def key_reshaped(heads: list[Head]) -> None:
    head = heads[1]
    _, tokens, width = head.key.shape
    target = head.builder.ints([1, width, tokens], "shape")
    head.scores.inputs[1] = head.builder.node("Reshape", [head.key, target], (1, width, tokens))


def two_values_swapped(heads: list[Head]) -> None:
    one, two = heads[1].value, heads[2].value
    heads[1].product.inputs[1], heads[2].product.inputs[1] = two, one


def key_of_head_0(heads: list[Head]) -> None:
    for head in heads[1:]:
        head.scores.inputs[1] = heads[0].transposed_key


def head_zeroed(heads: list[Head]) -> None:
    value = heads[1].value
    zero = heads[1].builder.constant(np.array(0.0), value.dtype, "zero")
    heads[1].product.inputs[1] = heads[1].builder.node("Mul", [value, zero], tuple(value.shape))


def two_outputs_swapped(_: Graph, proposal: Replacement) -> None:
    merge = producer_of(proposal.outputs[0][1])
    merge.inputs[1], merge.inputs[2] = merge.inputs[2], merge.inputs[1]


def head_left_out(_: Graph, proposal: Replacement) -> None:
    merge = producer_of(proposal.outputs[0][1])
    merge.inputs.pop(1)


def head_repeated(_: Graph, proposal: Replacement) -> None:
    merge = producer_of(proposal.outputs[0][1])
    merge.inputs[1] = merge.inputs[0]


def bias_dropped_in_head(tensor_of: Callable[[Head], Any]) -> Callable[[list[Head]], None]:
    """Readers of the projected tensor get it from before the bias was added."""

    def corrupt(heads: list[Head]) -> None:
        add = producer_of(tensor_of(heads[1]))
        assert add.op == "Add"
        output = add.outputs[0]
        for user in list(output.outputs):
            user.inputs[list(user.inputs).index(output)] = add.inputs[0]

    return corrupt


def interleaved(match: split_heads.Attention, first: int, count: int) -> Take:
    heads = match.heads
    return Take(heads.merged_axis, first, heads.count * heads.block, heads.count)


def relabelled(match: split_heads.Attention, first: int, count: int) -> Take:
    heads = match.heads
    other = (first + 2) % heads.count
    return Take(heads.merged_axis, other * heads.block, (other + count) * heads.block)


EVERY_ATTENTION = {"heads interleaved", "heads relabelled in one place"}
ATTENTION = [
    Mutant(name, "split_heads", plant, 0 if name in EVERY_ATTENTION else FAULTY)
    for name, plant in {
        "scale missing": in_heads(scale_missing),
        "scale twice": in_heads(scale_twice),
        "scale of C instead of D": in_heads(scale_of_all_channels),
        "scale x1.01": in_heads(scale_one_percent_off),
        "softmax over queries": in_heads(softmax_over_queries),
        "q and k swapped": in_heads(query_and_key_swapped),
        "k and v swapped": in_heads(key_and_value_swapped),
        "k reshaped, not transposed": in_heads(key_reshaped),
        "two heads of v swapped": in_heads(two_values_swapped),
        "two heads of the output swapped": in_replacement(
            "split_heads", two_outputs_swapped, FAULTY
        ),
        "heads interleaved": in_take(interleaved),
        "heads relabelled in one place": in_take(relabelled),
        "slice +1 of k": in_pull("k_proj", 1),
        "slice -1 of v": in_pull("v_proj", -1),
        "head zeroed": in_heads(head_zeroed),
        "head left out": in_replacement("split_heads", head_left_out, FAULTY),
        "head 0 twice": in_replacement("split_heads", head_repeated, FAULTY),
        "k of head 0 for all": in_heads(key_of_head_0),
        "q bias dropped": in_heads(bias_dropped_in_head(lambda head: head.query)),
        "v bias dropped": in_heads(bias_dropped_in_head(lambda head: head.value)),
    }.items()
]

EQUIVALENT = [
    Mutant("heads relabelled consistently", "split_heads:merge=sum", in_take(relabelled)),
    Mutant(
        "k bias dropped",
        "split_heads",
        in_heads(bias_dropped_in_head(lambda head: head.key)),
    ),
]

# -- tiles of queries ------------------------------------------------------------------------------


def in_tiles(corrupt: Callable[[list[Take]], list[Take]]) -> Plant:
    """Replaces the slices of the result that the tiles are taken to be, of the same sizes."""
    honest = split_queries.Queries.takes

    def takes(match: split_queries.Queries, tile: int) -> list[Take]:
        return corrupt(honest(match, tile))

    return lambda monkeypatch: monkeypatch.setattr(split_queries.Queries, "takes", takes)


def moved(take: Take, by: int) -> Take:
    return replace(take, start=take.start + by, stop=take.stop + by)


def scores_of_tile_0(_: Graph, proposal: Replacement) -> None:
    """The second tile attends with the scores of the first."""
    merge = producer_of(proposal.outputs[0][1])
    one, two = (producer_of(producer_of(part).inputs[0]) for part in merge.inputs[:2])
    two.inputs[0] = one.inputs[0]


QUERIES = [
    Mutant(name, "split_queries:tile=4", plant, FAULTY if "scores" in name else 0)
    for name, plant in {
        "tiles overlap": in_tiles(lambda takes: [takes[0], moved(takes[1], -1), *takes[2:]]),
        "tiles one off": in_tiles(lambda takes: [*(moved(t, 1) for t in takes[:-1]), takes[-1]]),
        "tiles swapped": in_tiles(lambda takes: [takes[1], takes[0], *takes[2:]]),
        "scores of tile 0 for tile 1": in_replacement("split_queries", scores_of_tile_0, FAULTY),
    }.items()
]

# -- the rest of the network, through canonicalize -------------------------------------------------


def reader_of(graph: Graph, name: str) -> tuple[Any, int]:
    """The node that reads the weight whose name ends in `name` (in layer FAULTY), and where."""
    for node in graph.nodes:
        for position, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and tensor.name.endswith(name):
                return node, position
    raise AssertionError(f"no node reads {name}")


def layer(name: str) -> str:
    return f"encoder.layer.{FAULTY}.{name}"


def changed_weight(name: str, change: Callable[[Any], Any], graph: Graph) -> None:
    node, position = reader_of(graph, name)
    old = node.inputs[position]
    values = change(np.array(graph.exact(old)))
    fresh = graph.fresh_name(f"{old.name}/changed")
    node.inputs[position] = gs.Constant(fresh, NewWeight(values, old.dtype, "changed"))


def one_element(values: Any) -> Any:
    values.reshape(-1)[values.size // 3] *= 1.01
    return values


def bias_dropped(name: str, graph: Graph) -> None:
    node, position = reader_of(graph, name)
    if node.op == "Conv":
        node.inputs.pop(position)
        return
    bypass(graph, node, node.inputs[1 - position])


def bypass(graph: Graph, node: Any, source: Any) -> None:
    output = node.outputs[0]
    for user in list(output.outputs):
        user.inputs[list(user.inputs).index(output)] = source
    graph.ir.nodes.remove(node)


def projection_of(graph: Graph, bias: str) -> Any:
    """The MatMul in front of a bias."""
    node, position = reader_of(graph, bias)
    return producer_of(node.inputs[1 - position])


def one_weight_element(graph: Graph) -> None:
    matmul = projection_of(graph, layer("mlp.fc1.bias"))
    changed_weight(matmul.inputs[1].name, one_element, graph)


def eps_ten_times(graph: Graph) -> None:
    node, _ = reader_of(graph, layer("norm1.weight"))
    node.attrs["epsilon"] *= 10


def residual_after_norm(graph: Graph) -> None:
    """The residual of the attention comes from behind the LayerNorm."""
    scale, _ = reader_of(graph, layer("layer_scale1.lambda1"))
    (add,) = scale.outputs[0].outputs
    norm, _ = reader_of(graph, layer("norm1.weight"))
    add.inputs[1 - list(add.inputs).index(scale.outputs[0])] = norm.outputs[0]


def residual_of_the_layer_before(graph: Graph) -> None:
    """The residual of the MLP skips the attention's."""
    scale, _ = reader_of(graph, layer("layer_scale2.lambda1"))
    (add,) = scale.outputs[0].outputs
    norm, _ = reader_of(graph, layer("norm1.weight"))
    add.inputs[1 - list(add.inputs).index(scale.outputs[0])] = norm.inputs[0]


def gelu_by_tanh(graph: Graph) -> None:
    """gelu(x) ≈ x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), for x/2 · (1 + erf(x/√2))."""
    bias, _ = reader_of(graph, layer("mlp.fc1.bias"))
    (erf,) = [
        node
        for node in graph.nodes
        if node.op == "Erf" and producer_of(node.inputs[0]).inputs[0] is bias.outputs[0]
    ]
    x, shape, builder = bias.outputs[0], tuple(bias.outputs[0].shape), Builder(graph, "tanh")
    number = partial(builder.constant, dtype=x.dtype, how="number")
    square = builder.node("Mul", [x, x], shape)
    cubic = builder.node("Mul", [builder.node("Mul", [square, x], shape),
                                 number(np.array(0.044715))], shape)  # fmt: skip
    inner = builder.node("Add", [x, cubic], shape)
    inner = builder.node("Mul", [inner, number(np.array(np.sqrt(2 / np.pi)))], shape)
    bypass(graph, erf, builder.node("Tanh", [inner], shape))
    graph.nodes.extend(builder.nodes)
    graph.sort()


NETWORK = [
    Mutant(name, "canonicalize", in_simplified(corrupt))
    for name, corrupt in {
        "LayerNorm gain": partial(changed_weight, layer("norm1.weight"), np.ones_like),
        "LayerNorm gain x1.01": partial(changed_weight, layer("norm2.weight"), lambda w: w * 1.01),
        "LayerNorm bias": partial(changed_weight, layer("norm1.bias"), np.zeros_like),
        "LayerNorm eps x10": eps_ten_times,
        "LayerScale missing": partial(changed_weight, layer("layer_scale1.lambda1"), np.ones_like),
        "LayerScale reversed": partial(
            changed_weight, layer("layer_scale2.lambda1"), lambda w: w[::-1]
        ),
        "residual from behind the norm": residual_after_norm,
        "residual skips the attention": residual_of_the_layer_before,
        "gelu by tanh": gelu_by_tanh,
        "one weight element x1.01": one_weight_element,
        "output projection bias dropped": partial(bias_dropped, layer("attention.o_proj.bias")),
        "fc1 bias dropped": partial(bias_dropped, layer("mlp.fc1.bias")),
        "fc2 bias dropped": partial(bias_dropped, layer("mlp.fc2.bias")),
        "patch embedding bias dropped": partial(bias_dropped, "patch_embeddings.projection.bias"),
    }.items()
]

# -- normalization ---------------------------------------------------------------------------------

FOLD = [
    Mutant(f"{name}{into.replace(':', ', ')}", f"fold_norm{into}", in_affine(corrupt))
    for into in ("", ":into=conv")
    for name, corrupt in {
        "variance for std": lambda scale, shift: (scale**2, shift * scale),
        "sign of the mean": lambda scale, shift: (scale, -shift),
        "BGR order": lambda scale, shift: (scale[::-1], shift[::-1]),
        "divided by 255": lambda scale, shift: (scale / 255, shift),
        "shift of channel 0 for all": lambda scale, shift: (scale, shift[:1] + 0 * shift),
    }.items()
]

# -- resizing, flipping, scaling -------------------------------------------------------------------


def resize(position: int, attribute: str, value: str) -> Plant:
    def corrupt(_: Graph, proposal: Replacement) -> None:
        resizes = [node for node in proposal.builder.nodes if node.op == "Resize"]
        resizes[position].attrs[attribute] = value

    return in_replacement("insert_resize", corrupt)


RESIZE = [
    Mutant(f"{value} in the {where} Resize", "insert_resize:height=64:width=72",
           resize(position, attribute, value))
    for position, where in enumerate(("first", "last"))
    for attribute, value in (
        ("mode", "nearest"),
        ("mode", "cubic"),
        ("coordinate_transformation_mode", "half_pixel"),
        ("coordinate_transformation_mode", "asymmetric"),
    )
]  # fmt: skip


def flips(proposal: Replacement) -> list[Any]:
    """The Gather nodes that mirror the image and the map, in this order."""
    return [node for node in proposal.builder.nodes if node.name.startswith("flip_average/Gather")]


def flip_of_rows(_: Graph, proposal: Replacement) -> None:
    node = flips(proposal)[0]
    height = node.inputs[0].shape[2]
    node.attrs["axis"] = 2
    node.inputs[1] = proposal.builder.ints(range(height - 1, -1, -1), "rows reversed")


def flip_missing(position: int, _: Graph, proposal: Replacement) -> None:
    node = flips(proposal)[position]
    for user in list(node.outputs[0].outputs):
        user.inputs[list(user.inputs).index(node.outputs[0])] = node.inputs[0]


def sum_for_average(_: Graph, proposal: Replacement) -> Replacement:
    ((result, average),) = proposal.outputs
    total = producer_of(average).inputs[0]
    return Replacement(proposal.builder, [(result, total)], copies=proposal.copies)


def one_weight_of_the_copy(graph: Graph, proposal: Replacement) -> None:
    (copy,) = proposal.copies
    assert isinstance(copy, Copy)
    _, twin = next(pair for pair in copy.nodes if pair[0].op == "Conv")
    values = one_element(np.array(graph.exact(twin.inputs[1])))
    twin.inputs[1] = proposal.builder.constant(values, twin.inputs[1].dtype, "changed")


def last_residual_of_the_copy(_: Graph, proposal: Replacement) -> None:
    """The copy reads one tensor of the original network."""
    (copy,) = proposal.copies
    original, twin = [pair for pair in copy.nodes if pair[0].op == "Add"][-1]
    twin.inputs[0] = original.inputs[0]


FLIP = [
    Mutant(f"{name}, {mode}", f"flip_average:mode={mode}", in_replacement("flip_average", corrupt))
    for mode in ("copy", "batch")
    for name, corrupt in {
        "rows flipped": flip_of_rows,
        "input flip missing": partial(flip_missing, 0),
        "output flip missing": partial(flip_missing, -1),
        "half missing": sum_for_average,
    }.items()
] + [
    Mutant(name, "flip_average", in_replacement("flip_average", corrupt))
    for name, corrupt in {
        "copy differs in one weight": one_weight_of_the_copy,
        "copy reads the original": last_residual_of_the_copy,
    }.items()
]


def no_minimum(_: Graph, proposal: Replacement) -> None:
    divide = producer_of(proposal.outputs[0][1])
    divide.inputs[0] = producer_of(divide.inputs[0]).inputs[0]


def maximum_for_range(_: Graph, proposal: Replacement) -> None:
    divide = producer_of(proposal.outputs[0][1])
    span = producer_of(divide.inputs[1])
    span.inputs[0] = producer_of(span.inputs[0]).inputs[0]


RANGE = [
    Mutant(name, "range_output", in_replacement("range_output", corrupt))
    for name, corrupt in {
        "minimum not subtracted": no_minimum,
        "maximum for range": maximum_for_range,
    }.items()
]


# -- scales folded, convolutions moved -------------------------------------------------------------


def scaled_constant(op: str, change: Callable[[Any, Any], Any]) -> Callable[..., None]:
    """Changes the scaled constant of an op, given its values and those of the scale."""

    def corrupt(graph: Graph, proposal: Replacement) -> None:
        product = producer_of(proposal.outputs[0][0])
        (scale,) = [graph.exact(t) for t in product.inputs if graph.is_constant(t)]
        node = of_op(proposal, op)
        position = [graph.is_constant(t) for t in node.inputs].index(True)
        old = node.inputs[position]
        values = change(np.array(graph.exact(old)), scale)
        node.inputs[position] = proposal.builder.constant(values, old.dtype, "changed")

    return corrupt


# Two LayerScales a layer: this one is behind an attention, whose projection is square.
LAYER_SCALE = 2 * FAULTY
SCALE = [
    Mutant(name, "fold_scale", in_replacement("fold_scale", corrupt, LAYER_SCALE), LAYER_SCALE)
    for name, corrupt in {
        "gamma missing in the bias": scaled_constant("Add", lambda b, gamma: b / gamma),
        "gamma missing in the weights": scaled_constant("MatMul", lambda w, gamma: w / gamma),
        "gamma on the rows": scaled_constant("MatMul", lambda w, gamma: w / gamma * gamma[:, None]),
        "gamma twice": scaled_constant("MatMul", lambda w, gamma: w * gamma),
        "gamma reversed": scaled_constant("MatMul", lambda w, gamma: w / gamma * gamma[::-1]),
        "gamma x1.01 in the bias": scaled_constant("Add", lambda b, _: b * 1.01),
    }.items()
]


def of_op(proposal: Replacement, op: str) -> Any:
    (node,) = [node for node in proposal.builder.nodes if node.op == op]
    return node


def attribute_of_resize(name: str, value: str, _: Graph, proposal: Replacement) -> None:
    of_op(proposal, "Resize").attrs[name] = value


def bias_lost(_: Graph, proposal: Replacement) -> None:
    of_op(proposal, "Conv").inputs.pop(2)


def kernel_transposed(graph: Graph, proposal: Replacement) -> None:
    conv = of_op(proposal, "Conv")
    values = np.swapaxes(graph.exact(conv.inputs[1]), 0, 1)
    conv.inputs[1] = proposal.builder.constant(values, conv.inputs[1].dtype, "changed")


def convolved_twice(_: Graph, proposal: Replacement) -> Replacement:
    """It stays behind the Resize as well."""
    ((old, new),) = proposal.outputs
    conv = of_op(proposal, "Conv")
    again = proposal.builder.copy(conv, [new, *conv.inputs[1:]]).outputs[0]
    again.shape = new.shape
    return Replacement(proposal.builder, [(old, again)])


HOIST = [
    Mutant(name, "hoist_conv", in_replacement("hoist_conv", corrupt, FAULTY), FAULTY)
    for name, corrupt in {
        "bias lost on the way": bias_lost,
        "kernel transposed": kernel_transposed,
        "convolved before and after": convolved_twice,
        "nearest on the way": partial(attribute_of_resize, "mode", "nearest"),
        "half_pixel on the way": partial(
            attribute_of_resize, "coordinate_transformation_mode", "half_pixel"
        ),
    }.items()
]


# -- resizes as matrices, flips in weights ---------------------------------------------------------


def in_matrices(corrupt: Callable[[Any], Any]) -> Plant:
    """Corrupts the first of the matrices that each Resize is taken to be."""
    honest = resize_as_matrix.matrices_of

    def matrices_of(graph: Graph, node: Any) -> dict[int, Any]:
        (first, *others) = honest(graph, node).items()
        return {first[0]: corrupt(first[1]), **dict(others)}

    return lambda monkeypatch: monkeypatch.setattr(resize_as_matrix, "matrices_of", matrices_of)


MATRICES = [
    Mutant(f"{name}, {form}", f"resize_as_matrix:form={form}:channels=96", in_matrices(corrupt))
    for form in ("matmul", "conv")
    for name, corrupt in {
        "upside down": lambda matrix: matrix[::-1],
        "one weight off by 1e-6": lambda matrix: matrix + 1e-6 * np.eye(*matrix.shape),
        "nearest for linear": lambda matrix: (matrix == matrix.max(1, keepdims=True)) * 1.0,
        "rows that sum to 0.99": lambda matrix: 0.99 * matrix,
    }.items()
]


def in_mirrored(op: str, index: int, corrupt: Callable[[Any, Any], None]) -> Plant:
    """Corrupts the mirrored twin of an op with a constant, given the op that it was made of."""

    def plant(graph: Graph, proposal: Replacement) -> None:
        named = {node.name: node for node in graph.nodes}
        pairs = [(named[node.metadata[SOURCES_KEY]], node) for node in proposal.builder.nodes]
        changed = [(old, new) for old, new in pairs if old.op == op and len(old.inputs) > 1
                   and any(a is not b for a, b in zip(old.inputs, new.inputs, strict=True)
                           if graph.is_constant(a))]  # fmt: skip
        corrupt(*changed[index])

    return in_replacement("fold_flip", plant)


def constant_as_it_was(old: Any, new: Any) -> None:
    for position, tensor in enumerate(old.inputs):
        if isinstance(tensor, gs.Constant):
            new.inputs[position] = tensor


def padding_as_it_was(old: Any, new: Any) -> None:
    assert new.attrs["pads"] != old.attrs["pads"]
    new.attrs["pads"] = old.attrs["pads"]


def mirrored_in_rows(old: Any, new: Any) -> None:
    values = np.array(old.inputs[1]._values.load())[..., ::-1, :]
    new.inputs[1] = gs.Constant(new.inputs[1].name, NewWeight(values, values.dtype, "rows"))


def class_token_mirrored_with_patches(old: Any, new: Any) -> None:
    position = 0 if isinstance(old.inputs[0], gs.Constant) else 1
    values = np.array(old.inputs[position]._values.load())[:, ::-1]
    fresh = gs.Constant(new.inputs[position].name, NewWeight(values, values.dtype, "all reversed"))
    new.inputs[position] = fresh


def map_flipped(graph: Graph, proposal: Replacement) -> Replacement:
    ((old, new),) = proposal.outputs
    columns = proposal.builder.ints(range(new.shape[-1] - 1, -1, -1), "columns")
    flipped = proposal.builder.node("Gather", [new, columns], tuple(new.shape), axis=2)
    return replace(proposal, outputs=[(old, flipped)])


# Their pipeline has two passes, and it is the second that is at fault.
FLIP_FOLDED = [
    Mutant(name, "flip_average,fold_flip", plant)
    for name, plant in {
        "patch kernel not mirrored": in_mirrored("Conv", 0, constant_as_it_was),
        "kernel of the head not mirrored": in_mirrored("Conv", -1, constant_as_it_was),
        "kernel mirrored in rows": in_mirrored("Conv", 3, mirrored_in_rows),
        "transposed kernel not mirrored": in_mirrored("ConvTranspose", 0, constant_as_it_was),
        "padding not swapped": in_mirrored("Conv", 1, padding_as_it_was),
        "positions not mirrored": in_mirrored("Add", 0, constant_as_it_was),
        "positions mirrored in rows, too": in_mirrored("Add", 0, class_token_mirrored_with_patches),
        "map flipped once more": in_replacement("fold_flip", map_flipped),
    }.items()
]


# -- linear layers as Gemm -------------------------------------------------------------------------


def gemm_attribute(name: str, value: float, _: Graph, proposal: Replacement) -> None:
    of_op(proposal, "Gemm").attrs[name] = value


def gemm_without_bias(_: Graph, proposal: Replacement) -> None:
    of_op(proposal, "Gemm").inputs.pop(2)


def gemm_bias_reversed(graph: Graph, proposal: Replacement) -> None:
    gemm = of_op(proposal, "Gemm")
    values = graph.exact(gemm.inputs[2])[::-1]
    gemm.inputs[2] = proposal.builder.constant(values, gemm.inputs[2].dtype, "changed")


GEMM = [
    Mutant(name, "linear_as_gemm", in_replacement("linear_as_gemm", corrupt, FAULTY), FAULTY)
    for name, corrupt in {
        "Gemm's product x1.01": partial(gemm_attribute, "alpha", 1.01),
        "Gemm's bias twice": partial(gemm_attribute, "beta", 2.0),
        "Gemm without its bias": gemm_without_bias,
        "Gemm's bias reversed": gemm_bias_reversed,
    }.items()
]


# -- rows that run along ---------------------------------------------------------------------------


def slices_read_by(proposal: Replacement, op: str) -> list[Any]:
    """The Slices that cut padding off what a node of that kind reads, in order."""
    made = {id(node) for node in proposal.builder.nodes}
    readers = [node for node in proposal.builder.nodes if node.op == op]
    cut = [producer_of(tensor) for node in readers for tensor in node.inputs]
    return [node for node in cut if id(node) in made and node.op == "Slice"]


def moved_by_one_row(node: Any) -> None:
    for position in (1, 2):
        limit = node.inputs[position]
        values = limit._values.load() + 1
        name = f"{limit.name}/{node.name}"
        node.inputs[position] = gs.Constant(name, NewWeight(values, values.dtype, "moved"))


def keys_moved(_: Graph, proposal: Replacement) -> None:
    moved_by_one_row(slices_read_by(proposal, "Transpose")[FAULTY])


def values_moved(_: Graph, proposal: Replacement) -> None:
    moved_by_one_row(slices_read_by(proposal, "MatMul")[FAULTY])


def result_moved(_: Graph, proposal: Replacement) -> None:
    moved_by_one_row(producer_of(proposal.outputs[-1][1]))


def padded_in_front(_: Graph, proposal: Replacement) -> None:
    padding = next(node for node in proposal.builder.nodes if node.op == "Concat")
    tokens, zeros = padding.inputs
    padding.inputs.clear()
    padding.inputs.extend([zeros, tokens])


def keys_of_another_head(_: Graph, proposal: Replacement) -> None:
    one, two = slices_read_by(proposal, "Transpose")[FAULTY : FAULTY + 2]
    two.inputs[0] = one.inputs[0]


def padded_with_ones(_: Graph, proposal: Replacement) -> None:
    padding = next(node for node in proposal.builder.nodes if node.op == "Concat")
    zeros = padding.inputs[1]
    ones = zeros._values.load() + 1
    padding.inputs[1] = gs.Constant(zeros.name, NewWeight(ones, ones.dtype, "ones"))


# Their pipeline has two passes, and it is the second that is at fault.
PADDED = [
    Mutant(name, "split_heads,pad_tokens", in_replacement("pad_tokens", corrupt))
    for name, corrupt in {
        "keys cut one row late": keys_moved,
        "values cut one row late": values_moved,
        "result cut one row late": result_moved,
        "rows padded in front": padded_in_front,
        "keys of another head": keys_of_another_head,
    }.items()
]
PADDED_EQUALLY = Mutant(
    "rows of ones", "split_heads,pad_tokens", in_replacement("pad_tokens", padded_with_ones)
)


def edit_elsewhere(graph: Graph, _: Replacement) -> None:
    """A pass that edits the graph itself, by too little for a whole float32 model to show."""
    node, _ = reader_of(graph, "backbone.layernorm.weight")
    node.attrs["epsilon"] *= 1 + 2**-20


EDITS = [
    Mutant(f"edit outside of the rewrite, {name}", passes, in_replacement(name, edit_elsewhere))
    for name, passes in {
        "split_heads": "split_heads",
        "fold_norm": "fold_norm",
        "insert_resize": "insert_resize:height=64:width=72",
        "range_output": "range_output",
        "fold_scale": "fold_scale",
        "hoist_conv": "hoist_conv",
    }.items()
]

WRONG = [
    *ATTENTION, *QUERIES, *NETWORK, *FOLD, *RESIZE, *MATRICES, *FLIP, *RANGE, *SCALE, *HOIST,
    *GEMM, *EDITS,
]  # fmt: skip


def pipelines() -> Iterator[str]:
    """Every pipeline that a mutant uses, once: unplanted, they must pass."""
    yield from dict.fromkeys(mutant.passes for mutant in [*WRONG, *EQUIVALENT])
