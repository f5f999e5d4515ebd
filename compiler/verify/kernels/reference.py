"""Operators that `onnx.reference` computes in the type of its inputs.

The list is what the tests check against NumPy in float64. Everything else there is refused: many
of its operators work in float32 inside, and nothing in the result would tell.
"""

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.verify.kernels.call import Array, UnsupportedInFloat64

# On integers these are the reference's too; on floats compiler.verify.kernels has its own.
INTEGER = frozenset(
    """
    Abs Add Clip Div Einsum Gemm MatMul Max Min Mod Mul Neg Pow Relu Sign Sub Where
    """.split()  # noqa: SIM905
)
# These move or compare values.
MOVEMENT = frozenset(
    """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Compress Concat
    DepthToSpace Equal Expand Flatten Gather GatherND Greater GreaterOrEqual Identity
    IsInf IsNaN Less LessOrEqual NonZero Not OneHot Or Pad Range Reshape ReverseSequence
    ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu
    Unsqueeze Xor
    """.split()  # noqa: SIM905
)
# These compute.
ARITHMETIC = frozenset(
    """
    CumSum Det ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare RotaryEmbedding
    """.split()  # noqa: SIM905
)

ANY = MOVEMENT | ARITHMETIC


def run_reference(
    node: onnx.NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int]
) -> Sequence[Array]:
    """The outputs of one node, by `onnx.reference`."""
    feeds = {name: x for name, x in zip(node.input, inputs, strict=True) if x is not None}
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in feeds],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    try:
        results = iter(ReferenceEvaluator(graph, opsets=dict(opsets)).run(None, feeds))
    except TypeError as error:  # valid nodes that onnx.reference can't run: OneHot of depth [5]
        raise UnsupportedInFloat64(node.op_type, "onnx.reference can't run it") from error
    return [next(results) if name else _UNUSED for name in node.output]


_UNUSED: Array = onnx.numpy_helper.to_array(helper.make_tensor("", onnx.TensorProto.INT64, [0], []))
