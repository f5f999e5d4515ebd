"""What `diff` calls the same, and what it must not: corners of ONNX, as files."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.diff import Diff, diff_files
from compiler.errors import UserError

Change = Callable[[onnx.ModelProto], None]

DENSE = """g (float[2,4] x) => (float[2,4] y) <float[4,4] w> { h = MatMul(x, w) y = Relu(h) }"""
FUNCTIONS = """g (float[4] x) => (float[4] y) { y = l.f(x) }
    <domain: "l", opset_import: ["" : 20, "l" : 1]> f (a) => (b) { b = l.h(a) }
    <domain: "l", opset_import: ["" : 20]> h (a) => (b) { m = INNER(a) b = Neg(m) }"""
BRANCHES = """g (bool c, float[4] x) => (float[4] y) {
    z = Neg(x)
    y = If (c) <then_branch = one () => (float[4] t) {
                    t = If (c) <then_branch = two () => (float[4] u) { THEN },
                                else_branch = three () => (float[4] v) { v = Abs(x) }>
                }, else_branch = four () => (float[4] e) { e = Exp(x) }>
}"""
LOOP = """g (int64 n, bool c, float[4] x) => (float[4] y, float[4] z) {
    y, z = Loop (n, c, x, x) <body = b (int64 i, bool go, INPUTS) => (bool on, OUTPUTS)
        { on = Identity(go) p = Neg(s) q = Abs(t) }>
}"""
OPTIONAL = """g (float[4] x) => (bool y)
    { o = Optional <type = float[4]> () y = OptionalHasElement(o) }"""
TWINS = """g (float[4] x) => (float[4] y)
    {{ a = Relu(x) b = Relu(x) c = Neg({}) d = Abs({}) y = Add(c, d) }}"""
SIZES = "g (float[N,N] x) => (float[N,N] y) { y = Relu(x) }"
NOISE = """g (float[4] x) => (float[4] y)
    { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, SECOND) }"""


@pytest.fixture
def compared(model_of, tmp_path):
    """The diff of two files, each of a text and of what is done to its model."""

    def compare(old: tuple[str, Change | None], new: tuple[str, Change | None]) -> Diff:
        paths = [tmp_path / f"{name}.onnx" for name in "ab"]
        for path, (text, change) in zip(paths, (old, new), strict=True):
            model = functions(text) if text.startswith(FUNCTIONS[:60]) else model_of(text)
            if change is not None:
                change(model)
            onnx.save(model, path)
        return diff_files(*paths)

    return compare


def functions(text: str) -> onnx.ModelProto:
    header = '<ir_version: 10, opset_import: ["" : 20, "l" : 1]>'
    return onnx.parser.parse_model(f"{header} {text}")


def sparse(value: float, position: int = 3, *, rows: bool = False) -> Change:
    """The weight as a sparse one with a single value."""

    def change(model: onnx.ModelProto) -> None:
        where = np.array([divmod(position, 4)] if rows else [position], np.int64)
        values = numpy_helper.from_array(np.array([value], np.float32), "w")
        del model.graph.initializer[:]
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(where, "at"), [4, 4])
        )

    return change


def sparse_constant(value: float) -> Change:
    """The weight as the sparse value of a Constant node."""

    def change(model: onnx.ModelProto) -> None:
        sparse(value)(model)
        (tensor,) = model.graph.sparse_initializer
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=tensor))
        del model.graph.sparse_initializer[:]

    return change


def typed(number: int, raw: bytes) -> Change:
    """Another weight of this type, in front of a Cast."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(helper.make_tensor("w", number, [4], raw, raw=True))

    return change


def replaceable(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))


def annotated(scale: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        one = model.graph.quantization_annotation.add(tensor_name="h")
        one.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)

    return change


def of_type(shape: list[int]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kind = model.graph.node[0].attribute[0].tp.tensor_type
        kind.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape).tensor_type)

    return change


def other_spelling(model: onnx.ModelProto) -> None:
    model.opset_import[0].domain = "ai.onnx"


CAST = "g (float[4] x) => (float[4] y) <float[4] w> { h = Cast <to = 1> (w) y = Add(x, h) }"
BYTES = b"\0\1\2\3"
IN_BODY = BRANCHES.replace("THEN", "r = RandomNormalLike(x) s = RandomNormalLike(x) u = Sub(r, R)")

DIFFERENT = {
    "a function that a function calls": (
        (FUNCTIONS.replace("INNER", "Relu"), None), (FUNCTIONS.replace("INNER", "Exp"), None)),
    "a value of a sparse weight": ((DENSE, sparse(1)), (DENSE, sparse(2))),
    "the place of a sparse value": ((DENSE, sparse(1)), (DENSE, sparse(1, 4, rows=True))),
    "a sparse Constant": ((DENSE, sparse_constant(1)), (DENSE, sparse_constant(2))),
    "the type in an attribute": ((OPTIONAL, None), (OPTIONAL, of_type([5]))),
    "a weight that may be given": ((DENSE, None), (DENSE, replaceable)),
    "a quantization annotation": ((DENSE, annotated("w")), (DENSE, annotated("x"))),
    "sizes that need not be equal": ((SIZES, None), (SIZES.replace("N,N", "N,M"), None)),
    "a float8 type": ((CAST, typed(TensorProto.FLOAT8E4M3FN, BYTES)),
                      (CAST, typed(TensorProto.FLOAT8E5M2, BYTES))),
    "a float8 weight": ((CAST, typed(TensorProto.FLOAT8E4M3FN, BYTES)),
                        (CAST, typed(TensorProto.FLOAT8E4M3FN, b"\0\1\2\4"))),
    "the sign of packed integers": ((CAST, typed(TensorProto.INT4, b"\1\2")),
                                    (CAST, typed(TensorProto.UINT4, b"\1\2"))),
    "a tensor captured two bodies deep": (
        (BRANCHES.replace("THEN", "u = Neg(x)"), None), (BRANCHES.replace("THEN", "u = Neg(z)"),
                                                         None)),
    "the order of a body's outputs": (
        (LOOP.replace("INPUTS", "float[4] s, float[4] t").replace("OUTPUTS",
                                                                  "float[4] p, float[4] q"), None),
        (LOOP.replace("INPUTS", "float[4] s, float[4] t").replace("OUTPUTS",
                                                                  "float[4] q, float[4] p"), None)),
    "the same noise twice": ((NOISE.replace("SECOND", "b"), None),
                             (NOISE.replace("SECOND", "a"), None)),
    "the same noise twice, in a body": ((IN_BODY.replace("R)", "s)"), None),
                                        (IN_BODY.replace("R)", "r)"), None)),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_difference_is(compared, old, new):
    assert compared(old, old).is_empty
    assert not compared(old, new).is_empty
    assert not compared(new, old).is_empty


SAME = {
    "names inside a function": (
        (FUNCTIONS.replace("INNER", "Relu"), None),
        (FUNCTIONS.replace("INNER", "Relu").replace("(b) { b = l.h", "(r) { r = l.h"), None)),
    "which twin is which": ((TWINS.format("a", "b"), None), (TWINS.format("b", "a"), None)),
    "a sparse weight, however it is indexed": ((DENSE, sparse(1)), (DENSE, sparse(1, rows=True))),
    "two names of one operator set": ((DENSE, None), (DENSE, other_spelling)),
    "names of sizes": ((SIZES, None), (SIZES.replace("N", "M"), None)),
    "a weight that is not a number": ((DENSE, sparse(np.nan)), (DENSE, sparse(np.nan))),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME)
def test_no_difference_is(compared, old, new):
    assert compared(old, new).is_empty


def test_twins_are_told_apart_beside_a_change(compared):
    new = TWINS.format("b", "a").replace("Add", "Sub")
    (kind,) = compared((TWINS.format("a", "b"), None), (new, None)).kinds
    assert (kind.old_ops, kind.new_ops) == (("Add",), ("Sub",))


def pack_tensors(graph: onnx.GraphProto) -> None:
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("t"):
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t)))
        pack_tensors(attribute.g)


@pytest.mark.parametrize("where", ["body", "Constant"])
def test_tensors_of_bodies_and_attributes_are_read_where_they_lie(model_of, tmp_path, where):
    """Two folders, the same name and place of the data in both."""
    constant = "k = Constant <value = float[4] {1, 2, 3, 4}> ()"
    texts = {
        "Constant": f"g (float[4] x) => (float[4] y) {{ {constant} y = Add(x, k) }}",
        "body": BRANCHES.replace("THEN", f"{constant} u = Add(x, k)"),
    }
    paths = [tmp_path / name / "model.onnx" for name in ("one", "two", "three")]
    for path, values in zip(paths, ("1, 2, 3, 4", "1, 2, 3, 4", "1, 2, 3, 5"), strict=True):
        path.parent.mkdir()
        model = model_of(texts[where].replace("1, 2, 3, 4", values))
        pack_tensors(model.graph)  # only packed ones are moved out
        onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0,
                  convert_attribute=True)  # fmt: skip
    assert diff_files(paths[0], paths[1]).is_empty
    assert not diff_files(paths[0], paths[2]).is_empty


def test_an_overload_is_a_user_error(compared):
    def overload(model: onnx.ModelProto) -> None:
        model.graph.node[0].overload = "other"

    with pytest.raises(UserError, match="overload"):
        compared((DENSE, None), (DENSE, overload))
