"""What a Snapdragon NPU takes of an ONNX node, and what to write instead of the rest.

Everything here was measured with the provider of `PROVIDER`, by giving it one tiny model a case and
reading which nodes it left to the CPU. `tests/targets/test_preflight.py` holds each rule against
the provider where its wheel is installed: a node that is said to be left is left, and the nearest
one that is said to be taken is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from compiler.graph import Graph, Node, Tensor, producer_of, static_shape
from compiler.weights import onnx_type_of

PROVIDER = "onnxruntime-qnn 2.7.0"
MAX_RANK = 5


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators of the default domain of which the provider took at least one form. It leaves all others
# of opset 26 and older: Acos, Acosh, AffineGrid, Asin, Asinh, Atanh, BitShift, Bitwise*, Celu,
# Col2Im, Compress, ConvInteger, Cosh, DeformConv, Det, DFT, DynamicQuantizeLinear, EyeLike,
# GlobalLpPool, Hardmax, IsInf, Loop, MatMulInteger, MaxUnpool, MeanVarianceNormalization,
# Multinomial, RandomNormal, ReduceL1, ReduceLogSum, ReduceProd, ReduceSumSquare, ReverseSequence,
# RNN, Scan, Shrink, Sinh, Softsign, TensorScatter, Trilu, Unique and what works on sequences,
# strings and trees. Constant nodes and Dropout vanish before the provider sees the graph.
TAKEN = _names("""
    Abs Add And ArgMax ArgMin Atan Attention AveragePool BatchNormalization Bernoulli Cast CastLike
    Ceil Clip Concat Constant Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND Gelu
    Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
    HardSigmoid HardSwish Identity If InstanceNormalization IsNaN LRN LSTM LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool MaxRoiPool
    Mean Min Mish Mod Mul Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Or
    PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RandomNormalLike
    RandomUniformLike Range Reciprocal ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceSum Relu Reshape Resize RoiAlign RotaryEmbedding Round STFT ScatterElements ScatterND Selu
    Shape Sigmoid Sign Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan
    Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where Xor
    """)

# Taken up to rank 4; the others up to rank 5. At rank 5 the last four stop the whole compilation.
UP_TO_RANK_4 = _names("""
    And ArgMax ArgMin Atan BatchNormalization Ceil Cos CumSum Elu Floor GatherElements GatherND
    GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LRN LayerNormalization Log LogSoftmax
    LpNormalization LpPool Max MaxPool Min Mod Neg Not OneHot Or RMSNormalization ReduceL2
    ReduceLogSumExp Round ScatterElements Selu Sin Softplus Sqrt Tanh TopK Xor
    GridSample GroupNormalization Sign Tan
    """)
STOPS_AT_RANK_5 = frozenset(["GridSample", "GroupNormalization", "Sign", "Tan"])

# Inputs, by position, that have to be constant: what computes them is folded, or not taken.
CONSTANT_INPUTS = {
    "BatchNormalization": (1, 2, 3, 4), "Clip": (1, 2), "CumSum": (1,), "Expand": (1,),
    "MaxRoiPool": (1,), "NonMaxSuppression": (2, 3, 4), "OneHot": (1, 2), "Pad": (1, 2),
    "ReduceL2": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,),
    "ReduceMin": (1,), "ReduceSum": (1,), "STFT": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,),
    "Tile": (1,), "TopK": (1,), "Upsample": (1,),
}  # fmt: skip

# Element types (of the values, not of indices) that single operators are left with.
_ANY = frozenset(["any"])
_INT32 = "Pow Pad Neg Sign Relu ReduceMean MatMul"
_UINT8 = """Abs Add ArgMax Clip Concat Div Equal Expand Gather GatherElements GatherND Greater
    GreaterOrEqual Identity Less LessOrEqual Max Min Mul Pad ReduceMax ReduceMin ReduceSum ScatterND
    Sign Split Sub Tile TopK Transpose Where"""
_UINT32 = """Abs Add Clip Div Equal GatherElements GatherND Greater GreaterOrEqual Less LessOrEqual
    MatMul Pad ReduceSum Sign Slice Split Sub Tile Where"""
LEFT_TYPES: dict[int, frozenset[str]] = {
    TensorProto.DOUBLE: _ANY, TensorProto.UINT64: _ANY, TensorProto.INT8: _ANY,
    TensorProto.INT16: _ANY, TensorProto.UINT16: _ANY, TensorProto.STRING: _ANY,
    TensorProto.INT32: _names(_INT32),
    TensorProto.INT64: _names(_INT32 + " Gather GatherND Transpose"),
    TensorProto.BOOL: frozenset(["Equal", "GatherND", "Pad", "ReduceMax", "ReduceMin"]),
    TensorProto.UINT8: _names(_UINT8),
    TensorProto.UINT32: _names(_UINT32),
}  # fmt: skip
_CASTS = {
    "FLOAT": "UINT8 INT32 BOOL FLOAT16 UINT32", "FLOAT16": "FLOAT INT32", "INT16": "INT32",
    "UINT8": "FLOAT INT32 BOOL FLOAT16 UINT32", "BOOL": "FLOAT UINT8 INT32 FLOAT16 UINT32",
    "INT32": "FLOAT UINT8 INT64 BOOL FLOAT16 UINT32",
    "INT64": "FLOAT UINT8 INT32 BOOL FLOAT16 UINT32",
    "UINT32": "FLOAT UINT8 INT32 INT64 BOOL",
}  # fmt: skip
# Quantized types of (values, weights) between QuantizeLinear and DequantizeLinear.
_LEFT_QUANTIZED = {
    "MatMul": {("UINT8", "UINT16"), ("UINT8", "INT16"), ("INT16", "UINT8"), ("INT16", "UINT16"),
               ("INT16", "INT16")},
    "LayerNormalization": {("UINT8", "INT8"), ("UINT8", "UINT16"), ("UINT8", "INT16"),
                           ("INT8", "UINT8"), ("INT8", "UINT16"), ("INT8", "INT16"),
                           ("UINT16", "INT8"), ("INT16", "UINT8"), ("INT16", "INT8"),
                           ("INT16", "UINT16"), ("INT16", "INT16")},
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Why a node is not taken, and what to do; `stops` where the whole model fails to compile."""

    rule: str
    problem: str
    cure: str
    stops: bool = False


def fault_of(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    """Why the provider leaves a node to the CPU, as far as that was measured; None if it takes it.

    Args:
        graph: the node's graph.
        node: a node of the default domain with static shapes.
        known: ids of the tensors whose values are known before the model runs.
    """
    if node.op not in TAKEN:
        return Fault("operator", f"the NPU has no {node.op} ({PROVIDER})", _instead_of(node.op))
    for rule in (_empty, _rank, _types, _constants, _quantized, _outputs):
        fault = rule(graph, node, known)
        if fault is not None:
            return fault
    special = _SPECIAL.get(node.op)
    return None if special is None else special(graph, node)


def known_tensors(graph: Graph) -> set[int]:
    """Ids of the tensors that onnxruntime folds before the provider sees the graph."""
    known = {id(t) for node in graph.nodes for t in node.inputs if graph.is_constant(t)}
    for node in graph.nodes:
        from_shape = node.op in ("Shape", "Size") and static_shape(node.inputs[0]) is not None
        inputs = [t for t in node.inputs if t.name]
        folds = bool(inputs) and not node.op.startswith("Random") and node.op != "If"
        if node.op == "Constant" or from_shape or (folds and all(id(t) in known for t in inputs)):
            known |= {id(tensor) for tensor in node.outputs}
    return known


def _instead_of(op: str) -> str:
    known = {
        "Trilu": "multiply by a constant mask of 0 and 1",
        "ReduceL1": "write it as Abs and ReduceSum",
        "ReduceSumSquare": "write it as Mul and ReduceSum",
        "ReduceLogSum": "write it as ReduceSum and Log",
        "Softsign": "write it as x / (1 + Abs(x))",
        "Loop": "unroll it in the export", "Scan": "unroll it in the export",
        "RNN": "export a GRU or an LSTM, or unroll it",
    }  # fmt: skip
    return known.get(op, "replace it in the model, or accept that it runs on the CPU")


def _ranks(tensors: Iterable[Tensor]) -> list[int]:
    return [len(tensor.shape) for tensor in tensors if tensor.name and tensor.shape is not None]


def _empty(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    read = [tensor for tensor in node.inputs[:1] if id(tensor) not in known]
    if any(0 in (static_shape(tensor) or ()) for tensor in [*read, *node.outputs]):
        return Fault("empty tensor", "a tensor without elements: the NPU's compiler crashes on it",
                     "remove it from the model", stops=True)  # fmt: skip
    return None


def _rank(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    rank = max(_ranks([*node.inputs, *node.outputs]), default=0)
    limit = 4 if node.op in UP_TO_RANK_4 else MAX_RANK
    if rank <= limit:
        return None
    stops = rank == MAX_RANK and node.op in STOPS_AT_RANK_5
    return Fault("rank", f"rank {rank}; the NPU takes {node.op} up to rank {limit}",
                 "merge axes with a Reshape before it and split them after it", stops)  # fmt: skip


def _types(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    if node.op in ("QuantizeLinear", "DequantizeLinear", "QLinearMatMul", "QLinearConv"):
        return None
    if node.op == "Cast":
        return _cast(node)
    tensor = node.inputs[1 if node.op == "Where" else 0] if node.inputs else node.outputs[0]
    kind = 0 if tensor.dtype is None else onnx_type_of(tensor.dtype)
    left = LEFT_TYPES.get(kind, frozenset())
    if node.op not in left and left is not _ANY:
        return None
    name = TensorProto.DataType.Name(kind).lower()
    return Fault(
        "type", f"{node.op} of {name} values", "compute in float or int32 (Cast before it)"
    )


def _cast(node: Node) -> Fault | None:
    read, made = node.inputs[0].dtype, node.outputs[0].dtype
    if read is None or made is None or read == made:
        return None
    source, target = (TensorProto.DataType.Name(onnx_type_of(kind)) for kind in (read, made))
    if target in _CASTS.get(source, "").split():
        return None
    return Fault("type", f"Cast from {source.lower()} to {target.lower()}",
                 "go through int32, or let the model's input have another type")  # fmt: skip


def _constants(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    places = [p for p in CONSTANT_INPUTS.get(node.op, ()) if p < len(node.inputs)]
    computed = [t.name for p in places if (t := node.inputs[p]).name and id(t) not in known]
    if not computed:
        return None
    return Fault("constant", f"its input {computed[0]!r} is computed; the NPU takes {node.op} with "
                 "a constant there", "export with fixed sizes, then --passes canonicalize",
                 stops=node.op in ("STFT", "Upsample"))  # fmt: skip


def _quantized(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    pairs = _LEFT_QUANTIZED.get(node.op)
    if pairs is None or len(node.inputs) < 2:
        return None
    kinds = tuple(_quantized_type(tensor) for tensor in node.inputs[:2])
    if kinds not in pairs:
        return None
    values, weights = (kind.lower() for kind in kinds)
    return Fault("quantized", f"{values} values with {weights} weights",
                 "quantize the weights of an unsigned activation to uint8 (QUInt8)")  # fmt: skip


def _quantized_type(tensor: Tensor) -> str:
    """The type in front of the DequantizeLinear that computes a tensor, or nothing."""
    producer = producer_of(tensor)
    if producer is None or producer.op != "DequantizeLinear" or producer.inputs[0].dtype is None:
        return ""
    return str(TensorProto.DataType.Name(onnx_type_of(producer.inputs[0].dtype)))


def _outputs(graph: Graph, node: Node, known: set[int]) -> Fault | None:
    used = [t.name for t in node.outputs if t.name]
    if node.op in ("BatchNormalization", "LayerNormalization", "MaxPool") and len(used) > 1:
        return Fault(
            "outputs", f"its second output {used[1]!r}", "the NPU takes it with one output"
        )
    return None


# -- single operators ------------------------------------------------------------------------------


def _attributes(wanted: dict[str, object], cure: str) -> Callable[[Graph, Node], Fault | None]:
    """A rule: attributes that have to have one value (which is their default)."""

    def rule(graph: Graph, node: Node) -> Fault | None:
        wrong = {k: node.attrs[k] for k, v in wanted.items() if node.attrs.get(k, v) != v}
        named = ", ".join(f"{key}={value}" for key, value in wrong.items())
        return Fault("attribute", f"{node.op} with {named}", cure) if wrong else None

    return rule


def _last_axis(graph: Graph, node: Node) -> Fault | None:
    rank = len(node.inputs[0].shape)
    axis = node.attrs.get("axis", -1) % rank
    if axis == rank - 1:
        return None
    return Fault("attribute", f"it normalizes axes {axis} to {rank - 1}, and not just the last one",
                 "merge the axes with a Reshape before it")  # fmt: skip


def _dilations(graph: Graph, node: Node) -> Fault | None:
    if all(dilation == 1 for dilation in node.attrs.get("dilations", [])):
        return None
    return Fault("attribute", f"{node.op} with dilations {node.attrs['dilations']}",
                 "use dilations of 1")  # fmt: skip


def _lp_pool(graph: Graph, node: Node) -> Fault | None:
    norm = {"p": node.attrs.get("p", 2) if node.attrs.get("p", 2) in (1, 2) else 2}
    wanted = _attributes({"ceil_mode": 0, **norm}, "use pads, and a norm of 1 or 2")
    return _dilations(graph, node) or wanted(graph, node)


def _pow(graph: Graph, node: Node) -> Fault | None:
    base, exponent = (tensor.dtype for tensor in node.inputs)
    if base is None or exponent is None or base == exponent:
        return None
    return Fault("type", f"Pow of {np.dtype(base)} values with an exponent of {np.dtype(exponent)}",
                 "give the exponent the type of the base")  # fmt: skip


def _several(graph: Graph, node: Node) -> Fault | None:
    if len(node.inputs) > 1:
        return None
    return Fault("operator", f"{node.op} of one tensor", "remove it: it changes nothing")


def _attention(graph: Graph, node: Node) -> Fault | None:
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype is not None and np.dtype(mask.dtype) == np.bool_:
        return Fault("type", "Attention with a mask of bool", "add a mask of 0 and -1e4 instead")
    if "softmax_precision" in node.attrs:
        return Fault("attribute", "Attention with softmax_precision", "leave it out")
    return None


def _gemm(graph: Graph, node: Node) -> Fault | None:
    if node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) in (0.0, 1.0):
        return None
    return Fault("attribute", "Gemm with an alpha or beta other than 1",
                 "multiply the factor into the weights")  # fmt: skip


def _mish(graph: Graph, node: Node) -> Fault | None:
    if len(graph.nodes) == 1:
        return None
    return Fault("operator", "Mish among other nodes stops the NPU's compiler",
                 "write it as x · Tanh(Softplus(x))", stops=True)  # fmt: skip


def _erf(graph: Graph, node: Node) -> Fault | None:
    """Erf is taken where it is fused: x · ½ · (1 + Erf(x / √2)), multiplied in any order."""
    source = producer_of(node.inputs[0])
    sums = [user for user in node.outputs[0].outputs if user.op == "Add"]
    products = [user for add in sums for user in add.outputs[0].outputs if user.op == "Mul"]
    if source is not None and source.op in ("Div", "Mul") and products:
        return None
    return Fault("operator", "Erf outside of an exact GELU", "use Gelu, or approximate it by Tanh")


def _group_norm(graph: Graph, node: Node) -> Fault | None:
    if graph.opset >= 21:
        return None
    return Fault("operator", "GroupNormalization of opset 18 is taken apart on the CPU",
                 "write it as Reshape, InstanceNormalization, Reshape, Mul, Add")  # fmt: skip


def _reduce(graph: Graph, node: Node) -> Fault | None:
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = graph.ints(node.inputs[1])
    if not axes and node.attrs.get("noop_with_empty_axes"):
        return Fault("attribute", f"{node.op} that reduces nothing", "--passes canonicalize")
    rank = len(node.inputs[0].shape)
    several = len(axes or range(rank)) > 1
    if node.op in ("ReduceMax", "ReduceMin") and rank == MAX_RANK and several:
        return Fault("rank", f"{node.op} over several axes of rank 5", "reduce one axis at a time")
    return None


def _pad(graph: Graph, node: Node) -> Fault | None:
    if node.attrs.get("mode") == "wrap":
        return Fault("attribute", "Pad with mode wrap", "Concat the slices instead")
    if len(node.inputs) > 3 and node.inputs[3].name:
        return Fault("attribute", "Pad with axes", "give pads for all axes")
    return None


def _scatter(graph: Graph, node: Node) -> Fault | None:
    taken = ("none", "add", "mul") if node.op == "ScatterND" else ("none",)
    reduction = node.attrs.get("reduction", "none")
    if reduction in taken:
        return None
    return Fault("attribute", f"{node.op} with reduction {reduction}",
                 f"the NPU takes {', '.join(taken)}")  # fmt: skip


def _grid_sample(graph: Graph, node: Node) -> Fault | None:
    if node.attrs.get("mode", "linear") not in ("cubic", "bicubic"):
        return None
    return Fault("attribute", f"GridSample with mode {node.attrs['mode']}", "use linear or nearest")


def _if(graph: Graph, node: Node) -> Fault | None:
    inner = [n.op for body in node.subgraphs() for n in body.nodes if n.op not in TAKEN]
    if not inner:
        return None
    return Fault("operator", f"If with {inner[0]} in a branch, which the NPU has not",
                 _instead_of(inner[0]))  # fmt: skip


def _einsum(graph: Graph, node: Node) -> Fault | None:
    equation = str(node.attrs["equation"]).replace(" ", "")
    rank = max(_ranks([*node.inputs, *node.outputs]), default=0)
    if rank <= MAX_RANK and (_is_matmul(equation) or _canonical(equation) in _EINSUMS):
        return None
    return Fault("attribute", f"Einsum {equation!r}",
                 "write it as Transpose and MatMul; bij,bjk->bik is taken")  # fmt: skip


# bhwc,hkc->bhwk, bhwc,wkc->bhwk (relative positions) and bchq,bkhc->bkhq.
_EINSUMS = {"abcd,bed->abce", "abcd,ced->abce", "abcd,aecb->aecd"}


def _is_matmul(equation: str) -> bool:
    """A matrix product over equal batch axes, with the second operand plain or transposed."""
    plain = r"(\w*)(\w)(\w),\1(?:\3(\w)),\1\2\4"
    turned = r"(\w*)(\w)(\w),\1(?:(\w)\3),\1\2\4"
    terms = equation.replace("->", ",")
    letters = set(terms) - {","}
    distinct = all(len(set(term)) == len(term) for term in terms.split(","))
    if not distinct or "." in equation:
        return False
    return len(letters) > 2 and any(re.fullmatch(form, terms) for form in (plain, turned))


def _canonical(equation: str) -> str:
    """The equation with letters in order of appearance."""
    letters: dict[str, str] = {}
    return "".join(
        letters.setdefault(c, chr(ord("a") + len(letters))) if c.isalpha() else c for c in equation
    )


def _resize(graph: Graph, node: Node) -> Fault | None:
    problem = _resize_problem(graph, node)
    cure = "use linear or cubic with sizes, on the last axes, with align_corners or half_pixel"
    return None if problem is None else Fault("attribute", problem, cure)


def _resize_problem(graph: Graph, node: Node) -> str | None:
    before, after = (static_shape(t) or () for t in (node.inputs[0], node.outputs[0]))
    mode = node.attrs.get("mode", "nearest")
    transform = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if not 3 <= len(before) <= MAX_RANK:
        return f"Resize of rank {len(before)}; the NPU takes 3 to 5"
    if before[:2] != after[:2]:
        return "Resize of the first two axes; the NPU resizes the others"
    if node.attrs.get("antialias"):
        return "Resize with antialias"
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        return f"Resize with {transform}"
    if mode == "nearest":
        nearest = node.attrs.get("nearest_mode", "round_prefer_floor")
        if (transform, nearest) not in _nearest_modes(len(before)):
            return f"Resize to the nearest with {transform} and {nearest} at rank {len(before)}"
    if mode == "cubic" and len(node.inputs) > 2 and node.inputs[2].name:
        scales = graph.values(node.inputs[2])
        if scales is None or not np.array_equal(np.multiply(before, scales), after):
            return "cubic Resize whose scales are computed, or are not the ratio of the sizes"
    return None


def _nearest_modes(rank: int) -> set[tuple[str, str]]:
    every = {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"}
    if rank != 4:
        return {("half_pixel", "floor"), ("asymmetric", "floor"),
                ("align_corners", "round_prefer_ceil")}  # fmt: skip
    some = {("asymmetric", "floor"), ("asymmetric", "round_prefer_ceil")}
    return some | {
        (transform, nearest)
        for transform in ("half_pixel", "pytorch_half_pixel", "align_corners")
        for nearest in every
    }


_SPECIAL: dict[str, Callable[[Graph, Node], Fault | None]] = {
    "ArgMax": _attributes({"select_last_index": 0}, "take the first index"),
    "ArgMin": _attributes({"select_last_index": 0}, "take the first index"),
    "Attention": _attention,
    "AveragePool": _dilations,
    "ConvTranspose": _dilations,
    "CumSum": _attributes({"exclusive": 0, "reverse": 0}, "multiply by a matrix of 0 and 1"),
    "Einsum": _einsum,
    "Erf": _erf,
    "GatherND": _attributes({"batch_dims": 0}, "merge the batch into the indices"),
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_norm,
    "If": _if,
    "LayerNormalization": _last_axis,
    "LpNormalization": _attributes({"p": 2}, "write it as Abs, ReduceSum and Div"),
    "LpPool": _lp_pool,
    "MaxPool": _dilations,
    "Mish": _mish,
    "Mod": _attributes({"fmod": 0}, "write it as x - y · Floor(x / y)"),
    "NonMaxSuppression": _attributes({"center_point_box": 0}, "give corners, not centers"),
    "Pad": _pad,
    "Pow": _pow,
    "RMSNormalization": _last_axis,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    **dict.fromkeys(("Max", "Mean", "Min", "Sum"), _several),
    **dict.fromkeys((op for op in TAKEN if op.startswith("Reduce")), _reduce),
}  # fmt: skip
