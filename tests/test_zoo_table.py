"""`python -m tools.zoo`: every family is split where it has heads, proven, and nothing is left."""

import json
import re

import onnx
import pytest
import typer
from rich.console import Console

from models.zoo import FAMILIES, Family
from tools import zoo
from tools.zoo import Row, count_attentions, measure

# A second or two each with its export; test_zoo.py runs every network.
QUICK = {
    ("vit", "torchscript"), ("clip-text", "torchscript"), ("swin", "torchscript"),
    ("segformer", "torchscript"), ("sam", "torchscript"), ("bert", "torchscript"),
    ("t5", "dynamo"), ("llama", "torchscript"), ("llama-cache", "torchscript"),
    ("unet", "torchscript"), ("random-forest", "skl2onnx"), ("gradient-boosting", "skl2onnx"),
}  # fmt: skip
# Slices of graph inputs, which nothing can take apart: keys and values of two heads and layers.
SLICES_LEFT = {"llama-cache": 8}


def member(family: Family, exporter: str) -> object:
    """The family and exporter as a test's parameters, with its marks and a readable id."""
    marks = [] if (family.name, exporter) in QUICK else [pytest.mark.slow]
    if not family.is_installed:
        marks.append(pytest.mark.skip(reason="needs the extra zoo"))
    return pytest.param(family, exporter, marks=marks, id=f"{family.name}-{exporter}")


MEMBERS = [
    member(family, exporter)
    for family in FAMILIES
    for exporter in family.exporters
    if exporter not in family.unsupported
]


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize(("family", "exporter"), MEMBERS)
def test_every_attention_of_several_heads_is_split_and_proven(family, exporter, tmp_path):
    row = measure(family, exporter, tmp_path)
    assert row.failure is None
    assert row.attentions >= family.attentions + family.one_head
    assert (row.unexplained, row.refusals) == (0, [])
    assert row.slices_left == SLICES_LEFT.get(family.name, 0)
    assert row.status == "pass", (row.float64, row.float32)
    assert row.is_unchanged == (family.attentions == 0)
    nothing = "nothing to split: no Softmax weighs values, and there is no Attention op"
    assert row.note == ("" if family.attentions else nothing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "swin", "beit", "segformer", "bert", "t5", "llama"])
def test_attention_as_transformers_writes_it_out(name, tmp_path):
    row = measure(family_named(name), "torchscript", tmp_path, attention="eager")
    assert (row.status, row.slices_left) == ("pass", 0)


# Every family either way: `python -m tools.zoo --dynamic`.
@pytest.mark.parametrize(
    ("name", "exporter"),
    [("vit", "dynamo"), ("vit", "torchscript"), ("bert", "dynamo"), ("bert", "torchscript")],
)
def test_batches_of_any_size_and_texts_of_any_length(name, exporter, tmp_path):
    row = measure(family_named(name), exporter, tmp_path, is_dynamic=True)
    assert (row.failure, row.split, row.unexplained, row.refusals) == (None, 2, 0, [])
    assert (row.status, row.slices_left) == ("pass", 0), (row.float64, row.float32)
    graph = onnx.load(tmp_path / f"{name}_{exporter}.onnx", load_external_data=False).graph
    open_axes = [[bool(d.dim_param) for d in i.type.tensor_type.shape.dim] for i in graph.input]
    assert open_axes == ([[True, False, False, False]] if name == "vit" else [[True, True]] * 2)


def test_what_is_fixed_on_purpose_is_told(tmp_path):
    row = measure(family_named("depth-anything-v2"), "torchscript", tmp_path, is_dynamic=True)
    assert row.unsupported == "its graph is for one image of one size, on purpose"


def test_one_attention_op_a_layer(tmp_path):
    row = measure(family_named("vit"), "dynamo", tmp_path, opset=23)
    assert row.attentions == 2
    assert row.status == "pass"


COUNTED = {
    "a classifier": (0, "y = Softmax <axis = -1> (q)"),
    "values on the left": (1, "p = Softmax <axis = -1> (q) y = MatMul (k, p)"),
    "attention": (1, "p = Softmax <axis = -1> (q) y = MatMul (p, k)"),
    "behind a guard": (
        1,
        "p = Softmax <axis = -1> (q) nan = IsNaN (p) c = Where (nan, q, p)"
        " r = Identity (c) y = MatMul (r, k)",
    ),
    "used up before the product": (
        0,
        "p = Softmax <axis = -1> (q) s = ReduceSum <keepdims = 1> (p) y = MatMul (s, k)",
    ),
    "one op": (1, "y = Attention (b, b, b)"),
}


@pytest.mark.parametrize("case", COUNTED)
def test_attentions_are_counted_without_asking_the_pass(case, model_of):
    count, nodes = COUNTED[case]
    text = "g (float[4,4] q, float[4,4] k, float[1,2,4,4] b) => (y)"
    assert count_attentions(model_of(f"{text} {{ {nodes} }}", opset=23).graph) == count


PROVEN = {"status": "pass", "error": 1e-16, "bound": 1e-12, "detail": ""}
GUESSED = {"status": "UNVERIFIED", "error": None, "bound": 1e-12, "detail": "a reason"}
STATUS = {
    "proven": ("pass", Row("a", "dynamo", 18, 2, 0, 2, 2, float64=PROVEN, float32=PROVEN)),
    "one head alone": ("pass", Row("a", "dynamo", 18, 0, 1, 1)),
    "refused with a reason": ("pass", Row("a", "dynamo", 18, 1, 0, 1, 0, [{"reason": "…"}])),
    "left without a reason": ("fail", Row("a", "dynamo", 18, 2, 0, 2, 1, float64=PROVEN)),
    "more in the graph than known of": ("fail", Row("a", "dynamo", 18, 2, 1, 4, 2)),
    "lost on the way": ("fail", Row("a", "dynamo", 18, 2, 0, 1, 1)),
    "unverified": ("UNVERIFIED", Row("a", "dynamo", 18, 2, 0, 2, 2, float64=GUESSED)),
    "failed": ("fail", Row("a", "dynamo", failure="UserError: no")),
    "nothing to split": ("pass", Row("a", "dynamo", 18, note="nothing", is_unchanged=True)),
    "changed all the same": ("fail", Row("a", "dynamo", 18, note="nothing")),
    "no export": ("pass", Row("a", "dynamo", None, 2, unsupported="no such op")),
}


@pytest.mark.parametrize("case", STATUS)
def test_status_of_a_row(case):
    status, row = STATUS[case]
    assert row.status == status


def test_what_is_not_installed_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(Family, "is_installed", False)
    row = measure(family_named("random-forest"), "skl2onnx", tmp_path)
    assert row.unsupported == "not installed: pip install -e '.[zoo]' -c constraints.txt"
    assert row.status == "pass"


def test_a_failure_is_a_line_of_the_table(tmp_path):
    def fail():
        raise ArithmeticError("something\n  broke")

    row = measure(Family("broken", "a bug of ours", fail, 1), "dynamo", tmp_path)
    assert row.failure == "ArithmeticError: something broke"


def printed(rows: list[Row]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        zoo.print_rows(rows, console)
    return captured.get()


def test_the_table_shows_everything_that_is_not_as_it_should_be():
    text = printed([
        STATUS["proven"][1],
        STATUS["left without a reason"][1],
        Row("b", "dynamo", 18, 1, 0, 1, 0, [{"place": "y", "reason": "it [is] a batch"}]),
        STATUS["unverified"][1],
        STATUS["failed"][1],
        STATUS["no export"][1],
        STATUS["nothing to split"][1],
        STATUS["changed all the same"][1],
    ])  # fmt: skip
    for wanted in (
        r"1 of 2", r"a dynamo: 1 attention neither split nor refused",
        r"b dynamo: left y alone: it \[is\] a batch", r"a dynamo: float64: UNVERIFIED: a reason",
        r"a dynamo: UserError: no", r"a dynamo: no such op",
        r"a dynamo: unchanged, byte for byte: nothing",
        r"a dynamo: changed, though there is nothing",
        r"2 families, 6 models built, 1 failed; 5 of 7 attentions split, 1 refused,",
    ):  # fmt: skip
        assert re.search(wanted, text), f"{wanted!r} is not in\n{text}"


def test_the_command_prints_a_table_or_json(capsys):
    with pytest.raises(typer.Exit) as table:
        zoo.main(["unet"], ["torchscript"])
    assert "1 families, 1 models built, 0 failed" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as as_json:
        zoo.main(["dinov2-registers"], ["torchscript"], as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["unsupported"] == family_named("dinov2-registers").unsupported["torchscript"]
    assert (table.value.exit_code, as_json.value.exit_code) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": ["vitt"]}, "no family 'vitt': depth-anything-v1, "),
        ({"exporter": ["dynamite"]}, "no exporter 'dynamite': dynamo, torchscript, skl2onnx"),
        ({"attention": "flash"}, "eager or sdpa, not 'flash'"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(typer.BadParameter, match=message):
        zoo.main(**options)
