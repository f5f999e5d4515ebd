"""What `diff` says: pieces by kind with their count, attributes and weights included."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler.diff import Diff, counted, diff_graphs
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline
from compiler.rewrite import apply_pass

BLOCK = """
    n{i} = LayerNormalization <axis = -1, epsilon = 0.001> (x{i}, gain, shift)
    p{i} = MatMul(n{i}, big)
    a{i} = Relu(p{i})
    x{j} = Add(a{i}, x{i})
"""
TEXT = """g (float[1,5,40] x0) => (float[1,5,40] x3)
<float[40] gain, float[40] shift, float[40,40] big> {
""" + "".join(BLOCK.format(i=i, j=i + 1) for i in range(3)) + "}"  # fmt: skip


@pytest.fixture
def compared(model_of):
    """The diff of TEXT and a changed TEXT."""

    def compare(change: Callable[[onnx.ModelProto], None], text: str = TEXT) -> Diff:
        after = model_of(text)
        change(after)
        return diff_graphs(Graph(model_of(TEXT), Path()), Graph(after, Path()))

    return compare


def values_of(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]):
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def rename_weight(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "big").name = "large"
    for node in model.graph.node:
        node.input[:] = ["large" if name == "big" else name for name in node.input]


def provenance(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.metadata_props.add(key="compiler.pass", value="somebody")
        node.name = f"renamed {node.output[0]}"


def reverse_weights(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


@pytest.mark.parametrize(
    "change",
    [lambda model: None, rename_weight, provenance, reverse_weights],
    ids=["nothing", "a weight's name", "nodes' names and metadata", "order of weights"],
)
def test_no_difference_is(compared, change):
    difference = compared(change)
    assert difference.is_empty
    assert difference.record() == {"signature": [], "changes": []}


def test_weights_are_compared_by_value_wherever_they_lie(model_of, tmp_path):
    """Embedded in one file, external in two folders: 6400 bytes each time."""
    paths = [tmp_path / name / "model.onnx" for name in ("embedded", "one", "two")]
    for path in paths:
        path.parent.mkdir()
        external = path.parent.name != "embedded"
        onnx.save(model_of(TEXT), path, save_as_external_data=external, location="w",
                  size_threshold=0)  # fmt: skip
    for a in paths:
        for b in paths:
            assert diff_graphs(Graph.load(a), Graph.load(b)).is_empty


def test_an_attribute_is_named_with_both_values(compared):
    def change(model):
        for node in model.graph.node:
            if node.op_type == "LayerNormalization":
                (epsilon,) = [a for a in node.attribute if a.name == "epsilon"]
                epsilon.f = 0.25

    (kind,) = compared(change).kinds
    assert kind.old_ops == kind.new_ops == ("LayerNormalization",)
    assert len(kind.places) == 3
    assert [line[:2] for line in kind.attributes] == ["- ", "+ "]
    assert "epsilon = 0.001" in kind.attributes[0]
    assert "epsilon = 0.25" in kind.attributes[1]


@pytest.mark.parametrize("name", ["gain", "big"], ids=["small and embedded", "large"])
def test_a_weight_with_other_values_is_named(compared, name):
    def first_element(values):
        values.reshape(-1)[0] += 1
        return values

    (kind,) = compared(lambda model: values_of(model, name, first_element)).kinds
    assert len(kind.places) == 3
    shape = "[40]" if name == "gain" else "[40, 40]"
    assert kind.weights == (f"- {name} {shape}", f"+ {name} {shape}")


def test_a_weight_that_differs_only_as_a_negative_zero_differs(compared):
    def zero(values):
        values[:] = 0
        return values

    def negative(model):
        values_of(model, "shift", lambda values: -zero(values))

    assert not compared(negative).is_empty


def test_another_op_is_a_kind_with_its_places(compared):
    def change(model):
        for node in model.graph.node:
            node.op_type = {"Relu": "Tanh"}.get(node.op_type, node.op_type)

    difference = compared(change)
    (kind,) = difference.kinds
    assert (kind.old_ops, kind.new_ops, kind.places) == (("Relu",), ("Tanh",), ("a0", "a1", "a2"))
    assert kind.title == "3 × : 1 nodes → 1 nodes"
    assert difference.record()["changes"][0]["count"] == 3


def test_changes_of_different_kinds_are_apart_most_nodes_first(compared):
    def change(model):
        relus = [node for node in model.graph.node if node.op_type == "Relu"]
        relus[0].op_type = "Tanh"
        relus[1].op_type = relus[2].op_type = "Sigmoid"

    kinds = compared(change).kinds
    assert [(kind.new_ops, len(kind.places)) for kind in kinds] == [
        (("Sigmoid",), 2),
        (("Tanh",), 1),
    ]


def test_a_rewired_input_differs(compared):
    def change(model):
        model.graph.node[-1].input[1] = "x0"

    (kind,) = compared(change).kinds
    assert kind.places == ("x3",)


def test_a_changed_signature_is_said(compared):
    difference = compared(lambda model: None, TEXT.replace("[1,5,40] x", "[1,7,40] x"))
    assert difference.signature == (
        "input x0: float[1×5×40] → float[1×7×40]",
        "output x3: float[1×5×40] → float[1×7×40]",
    )
    assert difference.kinds == ()


def test_what_a_pass_did_to_every_attention_is_one_kind(depth_model):
    before, after = Graph.load(depth_model), Graph.load(depth_model)
    (split_heads,) = parse_pipeline("split_heads")
    apply_pass(after, split_heads)
    (kind,) = diff_graphs(before, after).kinds
    assert len(kind.places) == 4
    assert kind.old_ops.count("Softmax") == 1
    assert kind.new_ops.count("Softmax") == 6
    assert any(line.startswith("+ ") and "[96, 16]" in line for line in kind.weights)


def test_ops_are_counted_in_order_of_appearance():
    assert counted(["MatMul", "Softmax", "MatMul"]) == "2 × MatMul, Softmax"
    assert counted([]) == "nothing"
