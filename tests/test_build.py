"""Building into a folder: what is in it, that it is reproducible, and whole or absent."""

import errno
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from small_depth import LAYERS, PIPELINE

import compiler
from compiler.building import build_stages, sha256
from compiler.errors import UserError
from compiler.graph import PASS_KEY, REWRITE_KEY, SOURCES_KEY
from compiler.pipeline import parse_pipeline, pipeline_text
from compiler.rewrites import read_rewrites
from compiler.verify.whole import Float32Model

PASSES = PIPELINE.removeprefix("canonicalize,")
STAGES = ["00_source", "01_canonicalize", "02_insert_resize", "03_fold_norm", "04_split_heads",
          "05_flip_average"]  # fmt: skip
# A build's seconds and memory differ from run to run; nothing else may.
MEASURED = ("seconds", "verify_seconds", "peak_memory_nbytes")


TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,8,12] image) => (float[1,2,3] depth)
<float[1,3,1,1] mean, float[3,1,1] std, float[8,3,4,4] patch, float[8] patch_bias,
 float[8,24] qkv, float[24] qkv_bias, float[8,8] out, float[8] gain, float[8] shift,
 float[1,8,1,1] head, float scale = {0.5},
 int64[3] flat = {1, 8, 6}, int64[5] packed = {1, 6, 3, 2, 4}, int64[3] merged = {1, 6, 8},
 int64[4] grid = {1, 8, 2, 3}, int64 zero = {0}, int64 one = {1}, int64 two = {2},
 int64[1] channel = {1}>
{
    centred = Sub(image, mean)
    normal = Div(centred, std)
    patches = Conv <strides = [4, 4]> (normal, patch, patch_bias)
    columns = Reshape(patches, flat)
    tokens = Transpose <perm = [0, 2, 1]> (columns)
    normed = LayerNormalization <axis = -1> (tokens, gain, shift)
    projected = MatMul(normed, qkv)
    biased = Add(projected, qkv_bias)
    split = Reshape(biased, packed)
    heads = Transpose <perm = [2, 0, 3, 1, 4]> (split)
    query = Gather <axis = 0> (heads, zero)
    key = Gather <axis = 0> (heads, one)
    value = Gather <axis = 0> (heads, two)
    turned = Transpose <perm = [0, 1, 3, 2]> (key)
    products = MatMul(query, turned)
    scores = Mul(products, scale)
    probabilities = Softmax <axis = -1> (scores)
    attended = MatMul(probabilities, value)
    together = Transpose <perm = [0, 2, 1, 3]> (attended)
    joined = Reshape(together, merged)
    mixed = MatMul(joined, out)
    residual = Add(tokens, mixed)
    rows = Transpose <perm = [0, 2, 1]> (residual)
    map = Reshape(rows, grid)
    one_channel = Conv(map, head)
    depth = Squeeze(one_channel, channel)
}"""


def text_model(folder: Path) -> Path:
    """TEXT with weights that are exact binary fractions, equal on every machine."""
    model = parser.parse_model(TEXT)
    made = {name for node in model.graph.node for name in node.output}
    for info in [value for value in model.graph.value_info if value.name not in made]:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        values = (1 + np.arange(np.prod(shape)) * 5 % 13).reshape(shape) / 8
        sign = 1 if info.name == "std" else np.where(values > 0.75, 1, -1)
        model.graph.initializer.append(
            numpy_helper.from_array((values * sign).astype(np.float32), info.name)
        )
        model.graph.value_info.remove(info)
    onnx.save(model, folder / "text.onnx")
    return folder / "text.onnx"


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    """The file of TEXT; read only."""
    return text_model(tmp_path_factory.mktemp("text"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    """What lies beside (or in) a folder that should be empty."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def build(tmp_path_factory, depth_model):
    """One build of the small model through the default passes: (folder, record)."""
    folder = tmp_path_factory.mktemp("build") / "small"
    before = contents(depth_model.parent)
    record = compiler.build(str(depth_model), PASSES, output=folder)
    assert contents(depth_model.parent) == before, "the source is not touched"
    return folder, record


# -- what a build holds ----------------------------------------------------------------------------


def test_the_folder_holds_every_stage(build):
    folder, _ = build
    files = {"model.onnx", "weights.bin", "build.json", "rewrites.json", "report.html"}
    files |= {"depth.png", "depth_error.png"}
    assert set(contents(folder)) == files | {f"{stage}.onnx" for stage in STAGES}
    assert leftovers(folder.parent) == [folder.name]


def test_the_model_is_the_last_stage(build):
    folder, _ = build
    assert (folder / "model.onnx").read_bytes() == (folder / f"{STAGES[-1]}.onnx").read_bytes()


@pytest.mark.parametrize("stage", [*STAGES, "model"])
def test_every_stage_is_a_valid_model_with_the_one_weights_file(build, stage):
    folder, _ = build
    path = folder / f"{stage}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    locations = {e.value for t in external for e in t.external_data if e.key == "location"}
    assert locations == {"weights.bin"}
    embedded = {t.name for t in model.graph.initializer} - {t.name for t in external}
    assert all(t.ByteSize() < 2048 for t in model.graph.initializer if t.name in embedded)


def test_each_stage_adds_only_what_its_pass_made(build):
    folder, record = build
    added = {stage["stage"]: stage["new_weights_nbytes"] for stage in record["stages"]}
    source, heads = added.pop("00_source"), added.pop("04_split_heads")
    assert set(added.values()) == {0}, "resizing, folding and flipping make no large tensor"
    assert 0 < heads < source
    assert (folder / "weights.bin").stat().st_size == source + heads


def test_build_json_is_what_the_function_returns(build):
    folder, record = build
    assert json.loads((folder / "build.json").read_text()) == record


def test_build_json_says_what_was_built(build):
    folder, record = build
    assert record["pipeline"] == PIPELINE
    assert record["verify"] == "each"
    assert record["model"]["name"] == "source"
    assert record["inputs"] == {"image": "float[1×3×64×72]"}
    assert record["outputs"] == {"depth": "float[1×1×64×72]"}
    assert record["files"] == {
        path.name: sha256(path)
        for path in folder.iterdir()
        if path.suffix in (".onnx", ".bin") or path.name == "rewrites.json"
    }
    assert record["versions"]["onnx"] == onnx.__version__
    assert [stage["stage"] for stage in record["stages"]] == STAGES


def test_build_json_says_what_each_pass_did(build):
    _, record = build
    stages = {stage["stage"][3:]: stage for stage in record["stages"]}
    rewrites = {name: stage["rewrites"] for name, stage in stages.items()}
    assert rewrites == {"source": 0, "canonicalize": 0, "insert_resize": 1, "fold_norm": 1,
                        "split_heads": LAYERS, "flip_average": 1}  # fmt: skip
    contracts = {name: stage["contract"] for name, stage in stages.items()}
    assert contracts == {"source": "", "canonicalize": "algebraic", "insert_resize": "declared",
                         "fold_norm": "algebraic", "split_heads": "exact",
                         "flip_average": "declared"}  # fmt: skip
    for before, stage in zip(record["stages"], record["stages"][1:], strict=False):
        assert stage["nodes_before"] == before["nodes_after"]
        assert stage["refusals"] == []
        assert stage["slices_left"] == 0
        assert stage["seconds"] > 0
        assert stage["peak_memory_nbytes"] > 1 << 20


@pytest.mark.parametrize("name", ["insert_resize", "fold_norm", "split_heads", "flip_average"])
def test_build_json_says_how_each_pass_was_checked(build, name):
    _, record = build
    (stage,) = [stage for stage in record["stages"] if stage["stage"].endswith(name)]
    for rung in ("float64", "float32"):
        proof = stage[rung]
        assert proof["status"] == "pass"
        assert proof["error"] <= proof["bound"]
    assert stage["float64"]["bound"] == (1e-12 if name == "split_heads" else 1e-10)


def test_the_rewrites_of_each_stage_are_recorded(build):
    """Together they are what changed between two stages; each with its cut and its proof."""
    folder, record = build
    recorded = read_rewrites(folder)
    reports = {stage["stage"]: stage for stage in record["stages"]}
    assert list(recorded) == list(reports)[1:]
    for (before, after), rewrites in zip(pairwise(reports), recorded.values(), strict=True):
        old, new = (nodes_of(folder / f"{stage}.onnx") for stage in (before, after))
        assert len(rewrites) == reports[after]["rewrites"]
        removed = [name for rewrite in rewrites for name in rewrite.removed]
        added = [name for rewrite in rewrites for name in rewrite.added]
        assert sorted(removed) == sorted(old - new)
        assert sorted(added) == sorted(new - old)
        assert all(rewrite.float64["status"] == "pass" for rewrite in rewrites)
        assert sum(rewrite.slices_left for rewrite in rewrites) == reports[after]["slices_left"]


def test_a_recorded_rewrite_says_how_each_weight_was_made(build):
    folder, _ = build
    first, *_ = read_rewrites(folder)["04_split_heads"]
    assert first.title == f"split_heads#0 at {first.place}"
    assert list(first.inputs.values()) == ["float[1×21×96]"]
    assert list(first.outputs.values()) == ["float[1×21×96]"]
    slices = [how for how in first.weights.values() if how.endswith("[:, 16:32]")]
    assert len(slices) == 3  # of the query's, the key's and the value's weights
    held = {t.name for t in onnx.load(folder / "04_split_heads.onnx").graph.initializer}
    assert set(first.weights) <= held


DAMAGED = ["", "{}", "[]", '{"schema": 0, "stages": {}}',
           '{"schema": 1, "stages": {"a": [{"title": "b"}]}}']  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "rewrites.json").write_text(content)
    with pytest.raises(UserError, match=r"rewrites\.json: .*build it again"):
        read_rewrites(tmp_path)


def nodes_of(path: Path) -> set[str]:
    return {node.name for node in onnx.load(path, load_external_data=False).graph.node}


def test_every_new_node_says_where_it_comes_from(build):
    folder, _ = build
    seen: set[str] = set()
    sources: set[str] = set()
    for stage in STAGES:
        model = onnx.load(folder / f"{stage}.onnx", load_external_data=False)
        for node in model.graph.node:
            metadata = {entry.key: entry.value for entry in node.metadata_props}
            if node.name in seen or stage == "00_source":
                continue
            name = stage[3:]
            assert metadata[PASS_KEY] == name, node.name
            assert re.fullmatch(rf"{name}#\d+", metadata[REWRITE_KEY])
            assert set(metadata[SOURCES_KEY].split()) <= sources, "names of older nodes"
            if name == "split_heads":
                assert metadata[SOURCES_KEY]
        seen |= {node.name for node in model.graph.node}
        sources |= seen


def test_the_python_function_takes_a_progress_and_a_notice(text_file, tmp_path):
    told, noticed = [], []
    compiler.build(
        str(text_file), "fold_norm", output=tmp_path / "b", canonicalize=False, verify="none",
        progress=lambda *args: told.append(args), notice=noticed.append,
    )  # fmt: skip
    assert {what for what, _, _ in told} >= {"source", "fold_norm", "depth picture"}
    assert all(0 <= done <= total for _, done, total in told)
    assert noticed == []


# -- the same again --------------------------------------------------------------------------------


def unmeasured(record: dict) -> dict:
    stages = [{k: v for k, v in s.items() if k not in MEASURED} for s in record["stages"]]
    return {**record, "stages": stages}


def test_the_same_inputs_give_the_same_bytes(build, depth_model, tmp_path):
    folder, record = build
    again = compiler.build(str(depth_model), PASSES, output=tmp_path / "small")
    ours, theirs = contents(folder), contents(tmp_path / "small")
    for measured in ("build.json", "report.html"):
        del ours[measured], theirs[measured]
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert json.dumps(unmeasured(again)) == json.dumps(unmeasured(record))


# SHA-256 of what the passes make of TEXT. A refactor leaves every byte as it is; a change on
# purpose changes the stages from its pass on: then copy the new values from the failing test.
HASHES: dict[str, dict[str, str]] = {
    "defaults": {
        "00_source": "8560d766d5b1e232",
        "01_insert_resize": "63292650778523db",
        "02_fold_norm": "531311b458f62afc",
        "03_split_heads": "11055a5ab5b61a42",
        "04_flip_average": "2dd05a0d8f2a0fa5",
        "05_range_output": "2720b6f847b2d21d",
        "weights": "30b6e141450a4cf9",
    },
    "options": {
        "00_source": "8560d766d5b1e232",
        "01_fold_norm": "ae7336fddb9515ec",
        "02_split_heads": "4506a6901c73747e",
        "03_flip_average": "b12c2f20ad20a025",
        "weights": "ea96046528afc23d",
    },
}


PIPELINES = {
    "defaults": "insert_resize:height=10:width=9,fold_norm,split_heads,flip_average,range_output",
    "options": "fold_norm:into=conv,split_heads:merge=sum,flip_average:mode=batch",
}


@pytest.mark.parametrize("passes", PIPELINES)
def test_a_refactor_leaves_every_byte_as_it_is(text_file, tmp_path, passes):
    folder = tmp_path / "build"
    folder.mkdir()
    stages = build_stages(
        text_file, parse_pipeline(PIPELINES[passes]), folder, failures=tmp_path / "f"
    )
    found = {stage.path.stem: sha256(stage.path)[:16] for stage in stages}
    found["weights"] = sha256(folder / "weights.bin")[:16]
    assert found == HASHES[passes]


# -- whole or not at all ---------------------------------------------------------------------------


class Interrupted(BaseException):
    """Like KeyboardInterrupt."""


@pytest.mark.parametrize("step", ["source", "split_heads", "proving split_heads", "depth picture"])
def test_an_interrupted_build_leaves_nothing(text_file, tmp_path, step):
    def stop(what: str, _done: int, _total: int) -> None:
        if what == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        compiler.build(str(text_file), "split_heads", output=tmp_path / "b", progress=stop)
    assert leftovers(tmp_path) == []


def test_a_failed_build_leaves_the_old_one_as_it_was(build, text_file, monkeypatch):
    folder, _ = build
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("compiler.building.write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        compiler.build(str(text_file), "fold_norm", output=folder, verify="none")
    assert contents(folder) == before
    assert leftovers(folder.parent) == [folder.name]


def test_a_new_build_replaces_the_old_one(text_file, tmp_path):
    folder = tmp_path / "b"
    for passes in ("split_heads", "fold_norm"):
        compiler.build(str(text_file), passes, output=folder, verify="none", canonicalize=False)
    assert "01_fold_norm.onnx" in contents(folder)
    assert "01_split_heads.onnx" not in contents(folder)
    assert leftovers(tmp_path) == ["b"]


def test_a_build_can_be_built_on_and_replaced_by_itself(text_file, tmp_path):
    folder = tmp_path / "b"
    kwargs = {"output": folder, "verify": "none", "canonicalize": False}
    compiler.build(str(text_file), "split_heads", **kwargs)
    compiler.build(str(folder / "model.onnx"), "fold_norm", **kwargs)
    assert "01_fold_norm.onnx" in contents(folder)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


@pytest.mark.parametrize("there", ["folder", "file"])
def test_what_is_no_build_is_not_replaced(text_file, tmp_path, there):
    output = tmp_path / "precious"
    if there == "folder":
        output.mkdir()
        (output / "photo.jpg").write_bytes(b"irreplaceable")
    else:
        output.write_bytes(b"irreplaceable")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="precious"):
        compiler.build(str(text_file), "fold_norm", output=output, verify="none")
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken(text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    compiler.build(str(text_file), "fold_norm", output=Path("b"), verify="none")
    assert (tmp_path / "b" / "model.onnx").is_file()


def test_the_folder_may_be_deep_and_new(text_file, tmp_path):
    output = tmp_path / "a" / "b" / "c"
    compiler.build(str(text_file), "fold_norm", output=output, verify="none")
    assert (output / "model.onnx").is_file()


# -- pipelines -------------------------------------------------------------------------------------


def test_every_fault_of_a_pipeline_is_named_at_once():
    text = "split_head:group=2,fold_norm:in=conv,insert_resize:height=0,flip_average:mode=both,zzz"
    with pytest.raises(UserError) as error:
        parse_pipeline(text)
    for part in ("'split_head', did you mean 'split_heads'?", "'in', did you mean 'into'?",
                 "height=0: must be a whole number above 0",
                 "mode=both: must be one of copy, batch", "no pass 'zzz'"):  # fmt: skip
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pass_without_its_options_says_which():
    with pytest.raises(UserError, match="insert_resize: needs height=… and width=…"):
        parse_pipeline("insert_resize")


@pytest.mark.parametrize(
    "text",
    [
        "insert_resize:height=480:width=640,fold_norm,split_heads,flip_average",
        "fold_norm:into=conv",
        "split_heads:merge=sum:group=2,range_output",
        "",
    ],
)
def test_a_pipeline_is_its_text(text):
    assert pipeline_text(parse_pipeline(text)) == text


def test_a_pass_that_rewrites_nothing_is_an_error_with_its_refusals(text_file, tmp_path):
    with pytest.raises(UserError) as error:
        compiler.build(str(text_file), "split_heads:group=2", output=tmp_path / "b", verify="none")
    assert "it already is one group of 2 heads" in str(error.value)
    assert "--allow-noop" in str(error.value)
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == []


def test_a_pass_that_rewrites_nothing_can_be_allowed(text_file, tmp_path):
    record = compiler.build(
        str(text_file), "split_heads:group=2", output=tmp_path / "b", allow_noop=True
    )
    stage = record["stages"][-1]
    assert stage["rewrites"] == 0
    assert len(stage["refusals"]) == 1
    assert "rewrote nothing" in stage["notes"][0]


def test_no_passes_at_all_is_a_copy(text_file, tmp_path):
    compiler.build(str(text_file), "", output=tmp_path / "b", canonicalize=False)
    image = {"image": np.random.default_rng(0).random((1, 3, 8, 12))}
    built, source = (
        Float32Model(p)(image)["depth"] for p in (tmp_path / "b/model.onnx", text_file)
    )
    assert hashlib.sha256(built.tobytes()).digest() == hashlib.sha256(source.tobytes()).digest()


@pytest.mark.parametrize("mode", ["each", "final", "full", "none"])
def test_how_much_is_verified(text_file, tmp_path, mode):
    record = compiler.build(
        str(text_file), "fold_norm,flip_average", output=tmp_path / "b", verify=mode
    )
    ran = {rung: [bool(stage[rung]) for stage in record["stages"][2:]]
           for rung in ("float64", "float32", "whole_float64")}  # fmt: skip
    assert ran == {
        "float64": [mode != "none"] * 2,
        "float32": {"final": [False, True], "none": [False, False]}.get(mode, [True, True]),
        "whole_float64": [mode == "full"] * 2,
    }
    for stage in record["stages"]:
        assert all(stage[rung] is None or stage[rung]["status"] == "pass" for rung in ran)
