"""Quantizing: what becomes of a model, what it loses, and that a wrong number shows."""

import itertools
import json
import re
from functools import partial

import approximated
import onnx
import pytest
from approximated import build, ops
from PIL import Image
from typer.testing import CliRunner

import compiler
from compiler.cli import app
from compiler.errors import UserError, VerificationError
from compiler.graph import PASS_KEY, Graph
from compiler.quantize.images import Images
from compiler.quantize.judging import Judge
from compiler.verify.inputs import natural_image


@pytest.fixture(scope="module")
def source(model_of, tmp_path_factory):
    return approximated.write(model_of(approximated.TEXT, 17), tmp_path_factory.mktemp("quantize"))


@pytest.mark.parametrize(("activations", "loss"), [("16", 0.003), ("8", 0.004)])
def test_what_becomes_of_a_model(source, tmp_path, activations, loss):
    (*_, stage) = build(source, f"quantize:activations={activations}", tmp_path / "b")
    counts = ops(stage)
    # Relu is what the range of the convolution before it says: the recipe leaves it out.
    assert {name: counts[name] for name in ("Conv", "Sigmoid", "Mul")} == {
        "Conv": 3, "Sigmoid": 1, "Mul": 1,
    }  # fmt: skip
    assert counts["DequantizeLinear"] > counts["QuantizeLinear"] >= 6
    onnx.checker.check_model(str(stage.path), full_check=True)
    report = stage.report
    assert report.contract == "approximate"
    assert (report.float64, report.float32) == (None, None)
    assert 0 < report.loss["abs_rel"] == report.loss["value"] < loss
    assert report.loss["delta1"] > 0.99
    assert [image["image"] for image in report.loss["images"]][-1] == "grace_hopper.jpg"
    assert len(report.loss["images"]) == 4
    assert re.search(r"^quantize is approximate: AbsRel .* 4 images$", report.notes[0])


def test_nodes_say_where_they_come_from(source, tmp_path):
    (*_, stage) = build(source, "quantize", tmp_path / "b")
    new = [node for node in stage.graph.nodes if node.op == "QuantizeLinear"]
    assert {node.metadata[PASS_KEY] for node in new} == {"quantize"}
    assert stage.report.rewrites == len(stage.recorded) > 1


def test_fewer_bits_lose_more(source, tmp_path):
    losses = [
        build(source, f"quantize:activations={bits}", tmp_path / "b")[-1].report.loss["value"]
        for bits in ("16", "8")
    ]
    assert losses[0] < 0.8 * losses[1]


def test_the_same_inputs_give_the_same_bytes(source, tmp_path):
    files = []
    for name in ("a", "b"):
        (*_, stage) = build(source, "quantize:activations=mixed:max_loss=0.0023", tmp_path / name)
        files.append((stage.path.read_bytes(), (tmp_path / name / "weights.bin").read_bytes()))
    assert files[0] == files[1]


def test_the_layers_that_lose_most_are_spared(source, tmp_path):
    (*_, whole) = build(source, "quantize:activations=8:layers=measure", tmp_path / "a")
    table = whole.report.layers
    assert len(table) > 3
    assert {row["spared_bits"] for row in table} == {None}
    bound = whole.report.loss["value"] / 2
    (*_, stage) = build(source, f"quantize:activations=8:max_loss={bound}", tmp_path / "b")
    assert stage.report.loss["value"] <= bound
    spared = [row for row in stage.report.layers if row["spared_bits"]]
    kept = [row for row in stage.report.layers if not row["spared_bits"]]
    assert spared
    assert kept
    assert min(row["loss"] for row in spared) >= max(row["loss"] for row in kept)
    assert ops(stage)["QuantizeLinear"] < ops(whole)["QuantizeLinear"]


def test_mixed_gives_a_run_from_one_end_sixteen_bits(source, tmp_path):
    (*_, narrow) = build(source, "quantize:activations=8", tmp_path / "a")
    bound = 0.85 * narrow.report.loss["value"]
    (*_, stage) = build(source, f"quantize:activations=mixed:max_loss={bound}", tmp_path / "b")
    assert stage.report.loss["value"] <= bound
    kinds = {
        str(node.outputs[0].dtype) for node in stage.graph.nodes if node.op == "QuantizeLinear"
    }
    assert kinds == {"uint8", "uint16"}
    bits = [row["spared_bits"] for row in stage.report.layers]
    assert 16 in bits
    changes = [one for one, two in itertools.pairwise(bits) if one != two]
    assert len(changes) == 1, "in between the NPU would convert"


def test_a_loss_beyond_the_bound_fails(source, tmp_path):
    with pytest.raises(VerificationError, match=r"01_quantize loses AbsRel .* max_loss=1e-05"):
        build(source, "quantize:activations=mixed:max_loss=0.00001", tmp_path / "b")


def test_a_bound_that_no_layer_meets_is_no_silent_copy(source, tmp_path):
    with pytest.raises(UserError, match=r"every layer has to stay as it is .* max_loss=1e-12"):
        build(source, "quantize:max_loss=1e-12", tmp_path / "b")


def judged_again(source, tmp_path, corrupt):
    """The gate's word on a stage that was corrupted after the pass."""
    first, stage = build(source, "quantize:max_loss=0.003", tmp_path / "b")
    corrupt(stage.path)
    (pass_,) = approximated.parse_pipeline("quantize:max_loss=0.003")
    Judge(first, pass_, Images(), lambda *_: None).require(stage)


FAULTS = {
    "a scale that clips": partial(approximated.change, name="b_scale", factor=0.5),
    "a scale a fifth less": partial(approximated.change, name="d_scale", factor=0.8),
    "a zero point that clips": partial(approximated.change, name="depth_zero_point", shift=20000),
    "no zero point": partial(approximated.change, name="c_zero_point", factor=0),
    "the weights' zero point": partial(approximated.change, name="second_zero_point", shift=9),
    "the weights' scale": partial(approximated.change, name="last_scale", factor=1.1),
    "the biases' scale": partial(
        approximated.change, name="last_bias_quantized_scale", factor=1.01
    ),
    "scales swapped": partial(approximated.reread, tensor="c", position=1, other="d_scale"),
    "zero points swapped": partial(
        approximated.reread, tensor="d", position=2, other="c_zero_point"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_number_is_a_loss_that_fails(source, tmp_path, fault):
    with pytest.raises(VerificationError, match="loses AbsRel"):
        judged_again(source, tmp_path, fault)


def test_what_is_not_planted_passes(source, tmp_path):
    judged_again(source, tmp_path, partial(approximated.change, name="c_scale"))


REFUSED = {
    "quantize,quantize": "is quantized already: DequantizeLinear ",
    "float16,quantize": "only float32 models are quantized",
}


@pytest.mark.parametrize(("passes", "reason"), REFUSED.items(), ids=REFUSED.keys())
def test_what_is_refused(source, tmp_path, passes, reason):
    with pytest.raises(UserError, match=rf"pass 'quantize' rewrote nothing: model: .*{reason}"):
        build(source, passes, tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }", "takes no single RGB image"),
        ("g (float[1,3,H,W] x) => (float[1,3,H,W] y) { y = Relu(x) }", "of a known size"),
        ("g (float[2,3,8,8] x) => (float[2,3,8,8] y) { y = Relu(x) }", "one image, not of 2"),
    ],
)
def test_models_without_images_are_refused(model_of, tmp_path, text, problem):
    path = approximated.write(model_of(text), tmp_path)
    with pytest.raises(UserError, match=problem):
        build(path, "quantize", tmp_path / "b")


def test_opset_21_needs_no_other_domain(model_of, tmp_path):
    path = approximated.write(model_of(approximated.TEXT, 21), tmp_path)
    (*_, stage) = build(path, "quantize", tmp_path / "b")
    assert {node.domain for node in stage.graph.nodes} <= {"", None}
    assert stage.report.loss["value"] < 0.01


def test_a_folder_of_photos_calibrates_and_judges(source, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        pixels = natural_image((1, 3, 40, 40), seed)[0].transpose(1, 2, 0).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("no photo")
    (*_, stage) = build(source, "quantize", tmp_path / "b", images=folder)
    assert [one["image"] for one in stage.report.loss["images"]] == ["1.png", "3.png"]
    graph = Graph.load(source)
    assert list(Images(folder).calibration(graph)) == ["0.png", "2.png", "4.png"]


def write_photos(folder, brightness):
    """Photos 0.png, 1.png …: what is natural, darkened or not."""
    folder.mkdir()
    for seed, factor in enumerate(brightness):
        pixels = natural_image((1, 3, 40, 40), seed)[0].transpose(1, 2, 0)
        Image.fromarray((factor * pixels).astype("uint8")).save(folder / f"{seed}.png")
    return folder


def spared_with(source, tmp_path, judging, bound, count=6):
    """The stage of a build whose photos that judge are darkened by a factor."""
    folder = write_photos(tmp_path / f"photos {judging}", [1, judging] * (count // 2))
    passes = f"quantize:activations=8:max_loss={bound}"
    (*_, stage) = build(source, passes, tmp_path / "b", images=folder)
    assert stage.report.loss["value"] <= bound
    return stage


@pytest.mark.parametrize("count", [2, 6], ids=["one photo each", "three photos each"])
def test_photos_that_judge_do_not_choose_the_layers(source, tmp_path, count):
    tables = [
        spared_with(source, tmp_path, judging, 0.0021, count).report.layers for judging in (1, 0.7)
    ]
    assert tables[0] == tables[1]
    assert any(row["spared_bits"] for row in tables[0])


def test_photos_that_judge_only_ask_for_more_layers_in_the_same_order(source, tmp_path):
    few, more = (spared_with(source, tmp_path, judging, 0.002) for judging in (1, 0.5))
    alone = [row["loss"] for row in few.report.layers]
    assert [row["loss"] for row in more.report.layers] == alone
    counts = []
    for stage in (few, more):
        spared = {row["loss"] for row in stage.report.layers if row["spared_bits"]}
        assert spared == set(sorted(alone)[-len(spared) :])
        counts.append(len(spared))
    assert counts[0] < counts[1] < len(alone)
    assert len(few.report.notes) == 1
    assert re.search(r"lost AbsRel 0.0021 .* more than max_loss=0.002: more", more.report.notes[1])


@pytest.mark.parametrize(("count", "problem"), [(0, "no photos "), (1, "1 photo ")])
def test_a_folder_of_too_few_photos_is_refused(source, tmp_path, count, problem):
    for number in range(count):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=problem):
        build(source, "quantize", tmp_path / "b", images=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        build(source, "quantize", tmp_path / "b", images=tmp_path / "none")


@pytest.mark.parametrize("verify", ["each", "final", "full", "none"])
def test_what_comes_after_is_compared_with_it(source, tmp_path, verify):
    _, stage, noop = build(
        source, "quantize,canonicalize", tmp_path / "b", verify=verify, allow_noop=True
    )
    assert stage.report.loss is not None
    assert noop.report.loss is None


def test_the_stage_before_is_compared_in_the_final_mode(source, tmp_path):
    _, first, _ = build(source, "fold_norm:into=conv,quantize", tmp_path / "b", verify="final",
                        allow_noop=True)  # fmt: skip
    assert (first.report.float32 is not None) == bool(first.rewrites)


def test_the_graph_given_is_left_as_it_is(source, tmp_path):
    graph = Graph.load(source)
    (pass_,) = approximated.parse_pipeline("quantize")
    before = graph.to_model().SerializeToString(deterministic=True)
    stage = build(source, "", tmp_path / "b")[0]
    judge = Judge(stage, pass_, Images(), lambda *_: None)
    pass_.approximated(graph, judge.evidence())
    assert graph.to_model().SerializeToString(deterministic=True) == before


def test_weights_that_are_kept_are_not_written_again(source, tmp_path):
    """A convolution that is spared reads the weights that it read before."""
    (*_, whole) = build(source, "quantize", tmp_path / "a")
    bound = whole.report.loss["value"] / 2
    before, stage = build(source, f"quantize:max_loss={bound}", tmp_path / "b")
    kept = {t.name: t for t in stage.graph.constants() if t.name in ("first", "second", "last")}
    assert kept
    old = {t.name: t._values.source for t in before.graph.constants()}
    assert {name: t._values.source for name, t in kept.items()} == {n: old[n] for n in kept}


def test_the_command_prints_the_loss_by_image_and_by_layer(source, tmp_path):
    folder = tmp_path / "b"
    arguments = ["build", str(source), "--passes", "quantize:layers=measure", "-o", str(folder)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    printed = " ".join(done.output.split())
    assert "quantize is approximate: AbsRel" in printed
    assert "02_quantize: the loss against the model before it" in printed
    assert "grace_hopper.jpg" in printed
    assert "02_quantize: what each layer loses" in printed
    assert json.loads((folder / "build.json").read_text())["stages"][2]["loss"]["value"] > 0


def test_emulating_without_an_approximate_pass_is_refused(source, tmp_path):
    pytest.importorskip("onnxruntime_qnn")
    with pytest.raises(UserError, match="--emulate measures what approximate passes lose"):
        compiler.build(str(source), "", output=tmp_path / "b", emulate="iq-9075")


def test_the_npu_loses_about_as_much(source, tmp_path):
    pytest.importorskip("onnxruntime_qnn")
    record = compiler.build(str(source), "quantize", output=tmp_path / "b", emulate="iq-9075")
    loss = record["stages"][-1]["loss"]
    assert loss["npu"]["value"] == pytest.approx(loss["photo"]["value"], rel=0.5)
    assert record["stages"][-1]["notes"][1].startswith("emulated on iq-9075: AbsRel ")
