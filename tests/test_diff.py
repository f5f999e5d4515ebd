"""What `diff` says: of a build from its record, of any two files by structure."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

import compiler
from compiler.cli import main
from compiler.diff import Diff, diff_files, diff_graphs, diff_pass
from compiler.diff.layout import wrapped
from compiler.diff.model import Error, Place
from compiler.diff.page import page
from compiler.diff.text import print_diff, rows_of
from compiler.errors import UserError
from compiler.graph import Graph
from compiler.pipeline import parse_pipeline
from compiler.rewrite import apply_pass

GOLDEN = Path(__file__).parent / "diff"

BLOCK = """
    n{i} = LayerNormalization <axis = -1, epsilon = 0.001> (x{i}, gain, shift)
    p{i} = MatMul(n{i}, big)
    a{i} = Relu(p{i})
    x{j} = Add(a{i}, x{i})
"""
TEXT = """g (float[1,5,40] x0) => (float[1,5,40] x3)
<float[40] gain, float[40] shift, float[40,40] big> {
""" + "".join(BLOCK.format(i=i, j=i + 1) for i in range(3)) + "}"  # fmt: skip

LAYERS, HEADS, TOKENS, HEAD = 12, 6, 21, 16
CHANNELS = HEADS * HEAD
ATTENTION = """
    n{i} = LayerNormalization <axis = -1> (x{i}, gain, shift)
    packed{i} = MatMul(n{i}, qkv{i})
    biased{i} = Add(packed{i}, qkv_bias{i})
    parts{i} = Reshape(biased{i}, five)
    turned{i} = Transpose <perm = [2, 0, 3, 1, 4]> (parts{i})
    query{i} = Gather <axis = 0> (turned{i}, zero)
    key{i} = Gather <axis = 0> (turned{i}, one)
    value{i} = Gather <axis = 0> (turned{i}, two)
    columns{i} = Transpose <perm = [0, 1, 3, 2]> (key{i})
    products{i} = MatMul(query{i}, columns{i})
    scores{i} = Mul(products{i}, scale)
    probabilities{i} = Softmax <axis = -1> (scores{i})
    attended{i} = MatMul(probabilities{i}, value{i})
    together{i} = Transpose <perm = [0, 2, 1, 3]> (attended{i})
    merged{i} = Reshape(together{i}, three)
    mixed{i} = MatMul(merged{i}, proj{i})
    x{j} = Add(mixed{i}, x{i})
"""


def attentions() -> str:
    """Twelve layers with a packed QKV each, 96 channels wide."""
    weights = "".join(
        f", float[{CHANNELS},{3 * CHANNELS}] qkv{i}, float[{3 * CHANNELS}] qkv_bias{i}, "
        f"float[{CHANNELS},{CHANNELS}] proj{i}"
        for i in range(LAYERS)
    )
    body = "".join(ATTENTION.format(i=i, j=i + 1) for i in range(LAYERS))
    return f"""g (float[1,{TOKENS},{CHANNELS}] x0) => (float[1,{TOKENS},{CHANNELS}] x{LAYERS})
    <float[{CHANNELS}] gain, float[{CHANNELS}] shift, float scale = {{0.25}}, int64 zero = {{0}},
     int64 one = {{1}}, int64 two = {{2}}, int64[5] five = {{1, {TOKENS}, 3, {HEADS}, {HEAD}}},
     int64[3] three = {{1, {TOKENS}, {CHANNELS}}} {weights}> {{ {body} }}"""


@pytest.fixture(scope="module")
def attention_file(model_of, tmp_path_factory) -> Path:
    """Its file, with the nodes named as PyTorch's older exporter does; read only."""
    model = model_of(attentions())
    for node in model.graph.node:
        number = re.search(r"\d+$", node.output[0]).group()
        node.name = f"/blocks.{number}/attn/{node.op_type}_{node.output[0]}"
    path = tmp_path_factory.mktemp("attentions") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def attention_build(attention_file, tmp_path_factory) -> Path:
    """A build of it with split_heads; read only."""
    folder = tmp_path_factory.mktemp("build") / "attentions"
    compiler.build(str(attention_file), "split_heads", output=folder)
    return folder


@pytest.fixture(scope="module")
def depth_build(depth_model, tmp_path_factory) -> Path:
    """A build of the small depth model; read only."""
    folder = tmp_path_factory.mktemp("build") / "depth"
    passes = "insert_resize:height=64:width=72,fold_norm:into=conv,split_heads:merge=sum"
    passes += ",split_queries:tile=8,flip_average"
    compiler.build(str(depth_model), passes, output=folder, verify="none")
    return folder


def text_of(difference: Diff, width: int = 100) -> str:
    lines = [line for row in rows_of(difference, width) for line in wrapped(row, width)]
    return "".join(f"{line}\n" for line in lines)


def check_golden(name: str, text: str, tmp_path: Path) -> None:
    """Compares all but the measured errors, whose last digits depend on the machine."""
    text = re.sub(r"(/\S*/)(?=\w+\.onnx)", "", text)
    actual = re.sub(r"\d\.\de[-+]\d\d(?= [≤F])|(?<=≤ )\de[-+]\d\d", "#", text)
    written = tmp_path / name
    written.write_text(actual, "utf-8")
    assert actual == (GOLDEN / name).read_text("utf-8"), f"if it is better now, keep {written}"


# -- the record of a build -------------------------------------------------------------------------


def test_split_heads_of_twelve_layers_reads_like_the_golden_file(attention_build, tmp_path):
    text = text_of(diff_pass(attention_build, "split_heads"))
    check_golden("split_heads.txt", text, tmp_path)
    lines = text.splitlines()
    assert len(lines) <= 60
    for layer in range(LAYERS):
        assert re.search(rf"\bblocks\.{layer}\.attn\s+\(attended{layer}\)", text)


def test_the_text_says_which_columns_of_the_packed_qkv_became_a_key(attention_build):
    lines = text_of(diff_pass(attention_build, "split_heads")).splitlines()
    assert f"  w3  key   qkv0[{CHANNELS}×{3 * CHANNELS}]" in lines
    (header,) = [line for line in lines if line.startswith("  head ")]
    (row,) = [line for line in lines if line.startswith("  3  ")]
    start = CHANNELS + 3 * HEAD
    assert row[header.index("w3 key") :].startswith(f"[:, {start}:{start + HEAD}]")


PASSES = ["insert_resize", "fold_norm", "split_heads", "split_queries", "flip_average"]


@pytest.mark.parametrize("name", PASSES)
def test_every_kind_of_pass_reads_like_the_golden_file(depth_build, name, tmp_path):
    check_golden(f"depth_{name}.txt", text_of(diff_pass(depth_build, name)), tmp_path)


def test_a_kind_holds_places_errors_cut_and_weights(attention_build):
    difference = diff_files(
        attention_build / "01_canonicalize.onnx", attention_build / "model.onnx"
    )
    (kind,) = difference.kinds
    assert difference.from_record
    assert (kind.pass_name, len(kind.places)) == ("split_heads", LAYERS)
    assert kind.places[3].scope == "blocks.3.attn"
    errors = [place.float64 for place in kind.places]
    assert all(e.status == "pass" and e.error <= e.bound for e in errors)
    assert kind.float64.error == max(e.error for e in errors)
    assert kind.float32.status == "pass"
    assert list(kind.old.inputs) == list(kind.new.inputs) == ["n0"]
    assert list(kind.old.outputs) == list(kind.new.outputs) == ["merged0"]
    assert {w.how for w in kind.weights} >= {"qkv0[:, 144:160]", "qkv_bias0[144:160]"}
    (repeat,) = kind.new.expression.repeats
    assert (repeat.unit, repeat.count) == ("head", HEADS)
    assert [p.role for p in repeat.parameters] == ["query"] * 2 + ["key"] * 2 + ["value"] * 2


@pytest.mark.parametrize(
    ("errors", "worst"),
    [
        ([("pass", 1e-15), ("pass", 3e-15), ("pass", 2e-15)], 3e-15),
        ([("pass", 3e-15), ("UNVERIFIED", 0.0), ("pass", 2e-15)], 0.0),
        ([("fail", 1e-3), ("UNVERIFIED", 0.0), ("fail", 2e-3)], 2e-3),
    ],
    ids=["largest", "unverified", "failed"],
)
def test_the_error_of_a_kind_is_that_of_its_worst_place(attention_build, errors, worst):
    (kind,) = diff_pass(attention_build, "split_heads").kinds
    places = tuple(Place("t", "", Error(status, error, 1e-12)) for status, error in errors)
    assert replace(kind, places=places).float64.error == worst


def test_two_stages_have_the_rewrites_of_all_passes_between(depth_build):
    difference = diff_files(depth_build / "00_source.onnx", depth_build / "model.onnx")
    assert difference.from_record
    assert list(dict.fromkeys(kind.pass_name for kind in difference.kinds)) == PASSES
    assert difference.signature[0].startswith("input image: float[1×3×70×56] → float[1×3×64×72]")


def test_a_file_that_the_build_did_not_write_has_no_record(attention_build, tmp_path):
    stage = "02_split_heads.onnx"
    for path in attention_build.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert diff_pass(tmp_path, "split_heads").from_record
    model = onnx.load(tmp_path / stage, load_external_data=False)
    next(n for n in model.graph.node if n.op_type == "Softmax").attribute[0].i = 1
    onnx.save(model, tmp_path / stage)
    difference = diff_pass(tmp_path, "split_heads")
    assert not difference.from_record
    assert sum(len(kind.places) for kind in difference.kinds) == LAYERS
    assert len(difference.kinds) == 2, "the attention with another axis is a kind of its own"


def test_the_later_stage_may_come_first(attention_build):
    difference = diff_files(attention_build / "model.onnx", attention_build / "00_source.onnx")
    (kind,) = difference.kinds
    assert (len(kind.places), kind.old_ops.count("Softmax")) == (LAYERS, HEADS)


def test_alignment_finds_what_the_record_says(attention_build):
    recorded = diff_pass(attention_build, "split_heads")
    stages = [attention_build / f"{name}.onnx" for name in ("01_canonicalize", "02_split_heads")]
    aligned = diff_graphs(*(Graph.load(stage) for stage in stages))
    (one,), (two,) = recorded.kinds, aligned.kinds
    assert one.title == two.title
    assert one.old == two.old
    assert one.new == two.new, "how the weights were made, too, found by their values"


def test_alignment_knows_a_copy_of_the_network(depth_build):
    """By the record it is one line of 425 nodes; it is here, too."""
    stages = [depth_build / f"{name}.onnx" for name in ("05_split_queries", "06_flip_average")]
    (one,), (two,) = diff_pass(depth_build, "flip_average").kinds, diff_graphs(
        *(Graph.load(stage) for stage in stages)).kinds  # fmt: skip
    shown = [[(line.op, line.nodes) for line in k.new.expression.lines] for k in (one, two)]
    assert shown[0] == shown[1]
    assert any(op.startswith("copy of") for op, _ in shown[1])


CHAINED = "".join(f"t{{0}}{i + 1} = Exp(t{{0}}{i}) " for i in range(25))
ALONE = "g (float[4] ta0) => (float[4] ya) <float[4] w> {{ {} ya = Mul(ta25, w) }}"
COPIED = """g (float[4] ta0) => (float[4] y) <float[4] w>
    {{ {} ya = Mul(ta25, w) tb0 = Neg(ta0) {} yb = Mul(tb25, w) y = Add(ya, yb) }}"""


@pytest.mark.parametrize(
    ("change", "copied"),
    [
        (("", ""), [26]),
        (("tb3 = Exp(tb2)", "tb3 = Log(tb2)"), [23]),
        (("tb12 = Exp(tb11)", "tb12 = Log(tb11)"), []),
        (("tb12 = Exp(tb11)", "q = Exp(tb11) tb12 = Exp(q)"), [26]),
    ],
    ids=["the whole", "all behind another op", "too little behind another op", "one node more"],
)
def test_a_copy_is_what_does_the_same_to_its_own(graph_of, change, copied):
    original, copy = CHAINED.format("a"), CHAINED.format("b").replace(*change)
    after = graph_of(COPIED.format(original, copy))
    (kind,) = diff_graphs(graph_of(ALONE.format(original)), after).kinds
    lines = kind.new.expression.lines
    assert [line.nodes for line in lines if line.op.startswith("copy of")] == copied


@pytest.mark.parametrize(("read", "copied"), [("tb20", 27), ("ta20", 26)])
def test_what_reads_the_original_is_no_copy(graph_of, read, copied):
    original, copy = CHAINED.format("a"), CHAINED.format("b")
    ends = ["ma = Mul(ta25, w) ya = Sub(ma, ta20)", f"mb = Mul(tb25, w) yb = Sub(mb, {read})"]
    header = "<float[4] w> {"
    before = f"g (float[4] ta0) => (float[4] ya) {header} {original} {ends[0]} }}"
    after = f"""g (float[4] ta0) => (float[4] y) {header}
        {original} {ends[0]} tb0 = Neg(ta0) {copy} {ends[1]} y = Add(ya, yb) }}"""
    (kind,) = diff_graphs(graph_of(before), graph_of(after)).kinds
    lines = kind.new.expression.lines
    assert [line.nodes for line in lines if line.op.startswith("copy of")] == [copied]


def test_a_node_that_keeps_its_name_is_told_with_its_rewrite(model_of, tmp_path):
    """Only what it reads is new: the record names it neither as removed nor as added."""
    onnx.save(model_of("""g (float[n,6] x) => (float[n,2,3] y) <int64[1] rest = {6},
    int64[1] zero = {0}, int64[1] one = {1}, int64[2] cut = {2, 3}>
    { s = Shape(x) n = Slice(s, zero, one, zero) t = Concat <axis = 0> (n, cut) y = Reshape(x, t) }
    """), tmp_path / "model.onnx")  # fmt: skip
    compiler.build(str(tmp_path / "model.onnx"), "canonicalize", output=tmp_path / "built",
                   canonicalize=False)  # fmt: skip
    (kind,) = diff_pass(tmp_path / "built", "canonicalize").kinds
    assert kind.old_ops == ("Shape", "Slice", "Concat", "Reshape")
    assert kind.new_ops == ("Reshape",)


# -- no difference ---------------------------------------------------------------------------------


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


def rename_everything(model: onnx.ModelProto, names: Callable[[str], str]) -> None:
    """Nodes and tensors, inputs and outputs included."""
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names(value.name)
    for node in graph.node:
        node.name = names(node.name)
        node.input[:] = [names(name) if name else "" for name in node.input]
        node.output[:] = [names(name) if name else "" for name in node.output]


def shuffle_names(model: onnx.ModelProto) -> None:
    """Every tensor gets the name of another."""
    made = [name for node in model.graph.node for name in node.output if name]
    names = [*(v.name for v in [*model.graph.input, *model.graph.initializer]), *made]
    other = dict(zip(names, names[1:] + names[:1], strict=True))
    rename_everything(model, lambda name: other.get(name, f"node {name}"))


def provenance(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.metadata_props.add(key="compiler.pass", value="somebody")


def reverse_weights(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def spell_defaults_out(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.attribute.append(onnx.helper.make_attribute("stash_type", 1))


def everything(model: onnx.ModelProto) -> None:
    reverse_weights(model)
    rename_everything(model, lambda name: f"other {name}")
    provenance(model)


SAME = {
    "nothing": lambda model: None,
    "other names": lambda model: rename_everything(model, lambda name: f"t{hash(name)}"),
    "shuffled names": shuffle_names,
    "metadata": provenance,
    "order of weights": reverse_weights,
    "a default spelled out": spell_defaults_out,
    "all at once": everything,
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_no_difference_is(compared, change):
    difference = compared(change)
    assert difference.is_empty
    assert difference.kinds == difference.signature == ()
    assert text_of(difference).endswith("no difference\n")


@pytest.mark.parametrize("change", [everything, shuffle_names], ids=["renamed", "shuffled"])
def test_a_real_model_is_the_same_under_other_names(depth_model, tmp_path, change):
    model = onnx.load(depth_model)
    change(model)
    onnx.save(model, tmp_path / "renamed.onnx")
    difference = diff_files(depth_model, tmp_path / "renamed.onnx")
    assert difference.is_empty
    assert any("is called" in text for text in difference.renamed)


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


BODY = """g (bool c, float[4] x) => (float[4] y) {
    s = Sigmoid(x)
    y = If (c) <then_branch = one () => (float[4] t) { m = Relu(s) t = {op}(m, {operand}) },
                else_branch = two () => (float[4] e) { e = Neg(x) }>
}"""


def body(op: str = "Add", operand: str = "x") -> str:
    return BODY.replace("{op}", op).replace("{operand}", operand)


SUBTRACTION = "g (float[4] a, float[4] b) => (float[4] y) { y = Sub(a, b) }"


def test_inputs_of_exchanged_names_are_no_difference(graph_of):
    other = "g (float[4] b, float[4] a) => (float[4] y) { y = Sub(b, a) }"
    difference = diff_graphs(graph_of(SUBTRACTION), graph_of(other))
    assert difference.is_empty
    assert difference.renamed == ("the input a is called b", "the input b is called a")


def test_inputs_in_another_order_are_a_difference_of_the_signature(graph_of):
    other = "g (float[4] b, float[4] a) => (float[4] y) { y = Sub(a, b) }"
    difference = diff_graphs(graph_of(SUBTRACTION), graph_of(other))
    assert difference.signature == ("order of inputs: a, b → b, a",)
    assert difference.kinds == ()


def test_names_inside_bodies_are_no_difference(graph_of):
    other = body().replace("m =", "inner =").replace("(m,", "(inner,")
    assert diff_graphs(graph_of(body()), graph_of(other)).is_empty


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (body("Mul"), "attribute then_branch: in its body Add → Mul"),
        (body(operand="s"), "what its bodies, or the local function that it calls, compute"),
    ],
    ids=["op", "captured tensor"],
)
def test_a_change_inside_a_body_is_one_of_its_node(graph_of, text, said):
    (kind,) = diff_graphs(graph_of(body()), graph_of(text)).kinds
    assert kind.old_ops == kind.new_ops == ("If",)
    assert kind.details[0] == said


def test_a_value_in_an_attribute_is_told(graph_of):
    text = "g (int64[1] n) => (float[k] y) { y = ConstantOfShape <value = float[1] {1}> (n) }"
    (kind,) = diff_graphs(graph_of(text), graph_of(text.replace("{1}", "{2}"))).kinds
    assert kind.details == ("attribute value: 1 of 1 elements differs, [0]: 1 → 2",)


def test_another_version_of_an_operator_is_told(graph_of):
    text = "g (float[2,4] x) => (float[2,4] y) { y = Softmax (x) }"
    (kind,) = diff_graphs(graph_of(text, 12), graph_of(text, 13)).kinds
    assert kind.details == ("version of the operator: 11 → 13",)


# -- one change is shown as exactly that -----------------------------------------------------------


def test_an_attribute_is_named_with_both_values(compared):
    def change(model):
        for node in model.graph.node:
            if node.op_type == "LayerNormalization":
                (epsilon,) = [a for a in node.attribute if a.name == "epsilon"]
                epsilon.f = 0.25

    (kind,) = compared(change).kinds
    assert kind.old_ops == kind.new_ops == ("LayerNormalization",)
    assert [place.tensor for place in kind.places] == ["n0", "n1", "n2"]
    assert kind.details == ("attribute epsilon: 0.001 → 0.25",)


@pytest.mark.parametrize(
    ("name", "said"), [("gain", "gain[40]: 1 of 40"), ("big", "big[40×40]: 1 of 1,600")]
)
def test_a_changed_element_of_a_weight_is_told(compared, name, said):
    def seventh_element(values):
        values.reshape(-1)[7] = 0.5
        return values

    (kind,) = compared(lambda model: values_of(model, name, seventh_element)).kinds
    assert len(kind.places) == 3
    (told,) = kind.details
    assert told.startswith(f"weight {said} elements differs, [")
    assert told.endswith("→ 0.5")
    assert "7]: " in told


def test_a_weight_that_differs_only_as_a_negative_zero_differs(model_of):
    zeros, negative = model_of(TEXT), model_of(TEXT)
    values_of(zeros, "shift", lambda values: values * 0 + 0)
    values_of(negative, "shift", lambda values: values * 0 - 0.0)
    values_of(negative, "shift", lambda values: np.copysign(values, -1))
    (kind,) = diff_graphs(Graph(zeros, Path()), Graph(negative, Path())).kinds
    assert kind.details[0].startswith("weight shift[40]: ")


def test_another_op_is_a_kind_with_its_places(compared):
    def change(model):
        for node in model.graph.node:
            node.op_type = {"Relu": "Tanh"}.get(node.op_type, node.op_type)

    (kind,) = compared(change).kinds
    assert (kind.old_ops, kind.new_ops) == (("Relu",), ("Tanh",))
    assert [place.tensor for place in kind.places] == ["a0", "a1", "a2"]
    assert kind.title == "3 × : 1 node → 1 node"


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


def test_a_rewired_input_is_told_with_both_tensors(compared):
    def change(model):
        model.graph.node[-1].input[1] = "x0"

    (kind,) = compared(change).kinds
    assert [place.tensor for place in kind.places] == ["x3"]
    assert kind.details == ("input 1: x2 → x0",)


CHAIN = """g (float[2,8] x) => (float[2,8] y) <float[8,8] one, float[8,8] two> {
    a = FIRST(x) b = MatMul(a, one) c = Relu(b) d = MatMul(c, two) y = LAST(d)
}"""


@pytest.mark.parametrize("named", ["abcd", "efgh"], ids=["", "renamed"])
def test_what_lies_between_two_changes_is_no_change(graph_of, named):
    old = CHAIN.replace("FIRST", "Sigmoid").replace("LAST", "Neg")
    new = CHAIN.replace("FIRST", "Tanh").replace("LAST", "Abs")
    for name, other in zip("abcd", named, strict=True):
        new = re.sub(rf"\b{name}\b(?= =|[,)])", other, new)
    kinds = diff_graphs(graph_of(old), graph_of(new)).kinds
    assert [(k.old_ops, k.new_ops) for k in kinds] == [
        (("Sigmoid",), ("Tanh",)),
        (("Neg",), ("Abs",)),
    ]


def test_another_output_is_told(compared):
    def change(model):
        model.graph.output[0].name = "x2"

    difference = compared(change)
    assert not difference.is_empty
    assert difference.signature == ("output x3: x3 → x2",)


def test_a_changed_signature_is_said(compared):
    difference = compared(lambda model: None, TEXT.replace("[1,5,40] x", "[1,7,40] x"))
    assert difference.signature == (
        "input x0: float[1×5×40] → float[1×7×40]",
        "output x3: float[1×5×40] → float[1×7×40]",
    )
    assert difference.kinds == ()


def test_another_opset_is_said_even_if_every_node_means_the_same(graph_of):
    text = "g (float[4] x) => (float[4] y) { y = Relu(x) }"
    difference = diff_graphs(graph_of(text, 20), graph_of(text, 21))
    assert (difference.signature, difference.kinds) == (("opset: 20 → 21",), ())


def test_another_version_of_the_format_is_said(compared):
    def change(model):
        model.ir_version += 1

    assert compared(change).signature == ("IR version: 10 → 11",)


# Of the real model: what to do to a node, and what is to be said then.


def swap_inputs(model, node):
    node.input[0], node.input[1] = node.input[1], node.input[0]


def remove(model, node):
    """Its readers read its first input."""
    model.graph.node.remove(node)
    for other in model.graph.node:
        other.input[:] = [node.input[0] if n == node.output[0] else n for n in other.input]


def set_attribute(model, node):
    node.attribute.append(onnx.helper.make_attribute("axis", 1))
    for attribute in [a for a in node.attribute[:-1] if a.name == "axis"]:
        node.attribute.remove(attribute)


def set_element(model, node):
    values_of(model, node.input[1], _sixth_is_nine)


def _sixth_is_nine(values):
    values.reshape(-1)[5] = 9
    return values


SINGLE = {
    "swapped inputs of an Add": (swap_inputs, "Add", "are swapped"),
    "swapped inputs of a MatMul": (swap_inputs, "MatMul", "are swapped"),
    "a removed Relu": (remove, "Relu", None),
    "a removed Erf": (remove, "Erf", None),
    "a removed LayerNormalization": (remove, "LayerNormalization", None),
    "an attribute": (set_attribute, "Softmax", "attribute axis: "),
    "an element": (set_element, "LayerNormalization", "elements differs, [5]: "),
    "an element of a matrix": (set_element, "MatMul", "elements differs, [0, 5]: "),
}


@pytest.mark.parametrize("renamed", [False, True], ids=["", "renamed"])
@pytest.mark.parametrize("which", [0, 2, -1], ids=["first", "third", "last"])
@pytest.mark.parametrize(("change", "op", "said"), SINGLE.values(), ids=SINGLE)
def test_one_change_of_a_real_model_is_shown_as_exactly_that(
    depth_model, tmp_path, change, op, said, which, renamed
):
    model = onnx.load(depth_model)
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = [n for n in model.graph.node if n.op_type == op and n.output[0] != "depth"]
    if change is set_element:
        wanted = [n for n in wanted if n.input[1] in weights]
    elif change is swap_inputs:
        wanted = [n for n in wanted if not set(n.input) & weights]
    else:
        wanted = [n for n in wanted if n.input[0] not in weights]
    place, weight = wanted[which].output[0], [*wanted[which].input, ""][1]
    readers = sum(n.input[1] == weight for n in wanted) if change is set_element else 1
    change(model, wanted[which])
    if renamed:
        rename_everything(model, lambda name: f"t{hash(name)}")
    onnx.save(model, tmp_path / "changed.onnx")
    (kind,) = diff_files(depth_model, tmp_path / "changed.onnx").kinds
    assert len(kind.places) == readers
    assert place in [p.tensor for p in kind.places]
    assert kind.old_ops == (op,)
    assert kind.new_ops == (() if said is None else (op,))
    assert len(kind.details) == 1
    assert said is None or said in kind.details[0]


def test_what_a_pass_did_to_every_attention_is_one_kind(depth_model):
    before, after = Graph.load(depth_model), Graph.load(depth_model)
    (split_heads,) = parse_pipeline("split_heads")
    apply_pass(after, split_heads)
    (kind,) = diff_graphs(before, after).kinds
    assert len(kind.places) == 4
    assert kind.old_ops.count("Softmax") == 1
    assert kind.new_ops.count("Softmax") == 6
    assert any(re.fullmatch(r"val_\d+\[:, 48:64\]", weight.how) for weight in kind.weights)


# -- how weights were made -------------------------------------------------------------------------

MADE = """g (float[2,8] x) => (float[2,8] y) <float[8,8] fc, float[8] gamma> {
    p = MatMul(x, fc)
    y = Mul(p, gamma)
}"""


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda fc, gamma: fc * gamma, "fc · gamma"),
        (lambda fc, gamma: fc.T.copy(), "transposed fc"),
        (lambda fc, gamma: fc.reshape(2, 4, 8)[:, :, :], "fc reshaped to [2, 4, 8]"),
        (lambda fc, gamma: fc[:, 2:6], "fc[:, 2:6]"),
        (lambda fc, gamma: fc + 1, ""),
    ],
    ids=["product", "transposed", "reshaped", "slice", "unknown"],
)
def test_how_a_weight_was_made_is_found_by_its_values(graph_of, model_of, make, how):
    values = {t.name: numpy_helper.to_array(t) for t in model_of(MADE).graph.initializer}
    made = make(values["fc"], values["gamma"])
    dims = ",".join(map(str, made.shape))
    after = model_of(
        f"g (float[2,8] x) => (float[2,8] y) <float[{dims}] new> {{ y = Custom.Fused(x, new) }}"
        .replace("Custom.Fused", "Mul" if made.shape == (8,) else "MatMul")
    )  # fmt: skip
    values_of(after, "new", lambda _: made)
    try:
        graph = Graph(after, Path())
    except UserError:
        pytest.skip("shapes contradict each other")
    (kind,) = diff_graphs(graph_of(MADE), graph).kinds
    assert [weight.how for weight in kind.weights] == [how]


# -- formats ---------------------------------------------------------------------------------------


def test_json_has_what_the_documentation_lists(attention_build):
    record = json.loads(json.dumps(diff_pass(attention_build, "split_heads").record()))
    documented = re.findall(r"^ {4,10}(\w+(?:, \w+)*)(?: |$)", compiler.diff.__doc__, re.M)
    keys = {key for names in documented for key in names.split(", ")}
    (change,) = record["changes"]
    for part in (record, change, change["old"], change["new"], change["new"]["lines"][0]):
        assert set(part) <= keys
    assert (record["schema"], record["differ"], record["source"]) == (1, True, "record")
    assert change["count"] == len(change["places"]) == LAYERS
    assert len(change["new"]["nodes"]) == len(change["added"])


def test_a_page_has_every_row_of_the_text_and_nothing_from_elsewhere(attention_build):
    difference = diff_pass(attention_build, "split_heads")
    html = page(difference)
    shown = re.sub(r"<[^>]*>", "\n", html[html.index("<body>") :])
    for row in rows_of(difference, 140):
        assert row.text.replace("<", "&lt;") in shown
    assert not re.search(r"(src|href|url)\s*[=(]", html)


def test_names_are_escaped_in_a_page(compared):
    difference = compared(
        lambda model: rename_everything(model, lambda name: f"<script>{name}</script>")
    )
    assert "<script>" not in page(difference)


def test_a_pipe_gets_plain_text_of_100_columns(attention_build, capsys):
    print_diff(diff_pass(attention_build, "split_heads"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_nothing_is_lost_on_a_narrow_terminal(attention_build):
    difference = diff_pass(attention_build, "split_heads")
    for row in rows_of(difference, 60):
        lines = wrapped(row, 60)
        assert all(len(line) <= 60 for line in lines)
        assert "".join("".join(lines).split()) == "".join(row.text.split())


def test_colours_are_for_terminals(attention_build, monkeypatch, capsys):
    monkeypatch.setattr("compiler.diff.text.Console", lambda **_: Console(
        force_terminal=True, color_system="standard", width=80))  # fmt: skip
    print_diff(diff_pass(attention_build, "split_heads"))
    assert "\x1b[31m- " in capsys.readouterr().out


def test_without_a_record_the_way_to_an_error_is_told(model_of, tmp_path):
    names = [tmp_path / f"{name}.onnx" for name in ("one", "the other", "third")]
    texts = [TEXT, TEXT.replace("Relu", "Tanh"), TEXT.replace("Relu", "Tanh").replace("x3", "z")]
    for path, text in zip(names, texts, strict=True):
        onnx.save(model_of(text), path)
    last = rows_of(diff_files(*names[:2]), 100)[-1].text
    assert last.endswith(f"python -m compiler verify {names[0]} '{names[1]}'")
    assert (
        "can't be run against each other" in rows_of(diff_files(names[0], names[2]), 100)[-1].text
    )


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `diff`; returns its exit code and what it printed."""

    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["compiler", "diff", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    return run


def test_the_exit_code_says_whether_they_differ(command, attention_file, attention_build, tmp_path):
    final = attention_build / "model.onnx"
    assert command(attention_file, attention_file)[0] == 0
    assert command(attention_file, final)[0] == 1
    assert command(attention_build, "--pass", "split_heads")[0] == 1
    assert command(attention_build, "--pass", "canonicalize") == (0, text_of(
        diff_pass(attention_build, "canonicalize")))  # fmt: skip


def test_json_and_html_of_the_command(command, attention_build, tmp_path):
    path = tmp_path / "new" / "diff.html"
    code, out = command(attention_build, "--pass", "split_heads", "--html", path, "--json")
    assert code == 1
    record = diff_pass(attention_build, "split_heads").record()
    assert json.loads(out) == json.loads(json.dumps(record))
    assert path.read_text("utf-8") == page(diff_pass(attention_build, "split_heads"))
    path.unlink()
    assert command(attention_build, "--pass", "split_heads", "--html", path) == (1, "")
    assert path.exists()
