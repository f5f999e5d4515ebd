"""The command line: bad input is one line and exit code 2; what differs is exit code 1."""

import json
import pickle
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mutants
import numpy as np
import onnx
import pytest
import small_depth
import torch
from onnx import TensorProto
from PIL import Image

from compiler.cli import main
from compiler.pipeline import pass_names
from models.variants import RELATIVE, VARIANTS, Variant
from tests.models.official import OfficialDepthAnything

ROOT = Path(__file__).parent.parent


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line of a bad input."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """Runs the command line in an empty folder, in this process."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["compiler", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        streams = capfd.readouterr()
        return Outcome(end.value.code or 0, streams.out, streams.err)

    return run


@pytest.fixture
def nothing_written(tmp_path):
    """At the end, the working folder is as empty as it was."""
    yield
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture(scope="module")
def built(depth_model, tmp_path_factory) -> Path:
    """The folder of a small build."""
    import compiler

    folder = tmp_path_factory.mktemp("cli") / "small"
    compiler.build(str(depth_model), "fold_norm,split_heads", output=folder, verify="none")
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# -- models that are none --------------------------------------------------------------------------


def truncated(source: Path, folder: Path) -> Path:
    data = source.read_bytes()
    (folder / "bad.onnx").write_bytes(data[: len(data) // 2])
    return folder / "bad.onnx"


def text(_: Path, folder: Path) -> Path:
    (folder / "bad.onnx").write_text("this is a poem\n")
    return folder / "bad.onnx"


def empty(_: Path, folder: Path) -> Path:
    (folder / "bad.onnx").touch()
    return folder / "bad.onnx"


def absent(_: Path, folder: Path) -> Path:
    return folder / "bad.onnx"


def a_folder(_: Path, folder: Path) -> Path:
    (folder / "bad.onnx").mkdir()
    return folder / "bad.onnx"


def changed(source: Path, folder: Path, change) -> Path:
    model = onnx.load(source, load_external_data=False)
    change(model)
    (folder / "bad.onnx").write_bytes(model.SerializeToString())
    return folder / "bad.onnx"


def external(tensor: TensorProto) -> dict[str, onnx.StringStringEntryProto]:
    return {entry.key: entry for entry in tensor.external_data}


def largest(model: onnx.ModelProto) -> TensorProto:
    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    return max(outside, key=lambda t: int(external(t)["length"].value))


def weights_outside(source: Path, folder: Path) -> Path:
    (folder.parent / "weights.data").write_bytes(b"\0" * (1 << 20))

    def leave(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                external(tensor)["location"].value = "../weights.data"

    return changed(source, folder, leave)


def weights_at_absolute_path(source: Path, folder: Path) -> Path:
    def leave(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                external(tensor)["location"].value = str(source) + ".data"

    return changed(source, folder, leave)


def weights_through_a_link(source: Path, folder: Path) -> Path:
    (folder / f"{source.name}.data").symlink_to(f"{source}.data")
    return changed(source, folder, lambda model: None)


def weights_absent(source: Path, folder: Path) -> Path:
    return changed(source, folder, lambda model: None)


def weights_truncated(source: Path, folder: Path) -> Path:
    data = Path(f"{source}.data").read_bytes()
    (folder / f"{source.name}.data").write_bytes(data[: len(data) // 2])
    return changed(source, folder, lambda model: None)


def with_weights(source: Path, folder: Path, change) -> Path:
    (folder / f"{source.name}.data").write_bytes(Path(f"{source}.data").read_bytes())
    return changed(source, folder, change)


def unknown_op(source: Path, folder: Path) -> Path:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "NoSuchOp"

    return with_weights(source, folder, rename)


def node_without_source(source: Path, folder: Path) -> Path:
    def cut(model: onnx.ModelProto) -> None:
        model.graph.node[5].input[0] = "nowhere"

    return with_weights(source, folder, cut)


def shapes_that_contradict(source: Path, folder: Path) -> Path:
    def reshape(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1

    return with_weights(source, folder, reshape)


BAD_MODELS = [
    truncated, text, empty, absent, a_folder, weights_outside, weights_at_absolute_path,
    weights_through_a_link, weights_absent, weights_truncated, unknown_op, node_without_source,
    shapes_that_contradict,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_MODELS, ids=lambda bad: bad.__name__)
@pytest.mark.usefixtures("nothing_written")
def test_build_refuses_a_model_that_is(bad, cli, depth_model, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    line = cli("build", bad(depth_model, home), "--passes", "split_heads", "-o", "out").refused()
    assert "bad.onnx" in line or "weight" in line or "shapes" in line


@pytest.mark.parametrize(
    ("bad", "command"),
    [
        pytest.param(bad, command, id=f"{command} {bad.__name__}")
        for bad in BAD_MODELS
        for command in ("verify", "diff", "run")
        # diff compares what can be read, and onnxruntime runs what says a wrong shape.
        if (bad, command) not in [(unknown_op, "diff"), (shapes_that_contradict, "diff"),
                                  (shapes_that_contradict, "run")]
    ],
)  # fmt: skip
@pytest.mark.usefixtures("nothing_written")
def test_other_commands_refuse_a_model_that_is(bad, command, cli, depth_model, tmp_path, photo):
    home = tmp_path / "home"
    home.mkdir()
    path = bad(depth_model, home)
    args = {"verify": [depth_model, path], "diff": [path, depth_model], "run": [path, photo]}
    cli(command, *args[command]).refused()


# -- checkpoints that are none ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def official_state() -> dict[str, torch.Tensor]:
    """The names and shapes of an official Small checkpoint; zeros that take no room."""
    with torch.device("meta"):
        state = OfficialDepthAnything("vits", None, None).state_dict()
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}


def missing_key(state):
    del state["pretrained.blocks.3.attn.qkv.bias"]


def extra_key(state):
    state["pretrained.blocks.3.attn.qkv.scale"] = torch.zeros(1)


def misshapen(state):
    state["depth_head.projects.1.weight"] = torch.zeros(1, 2, 3)


def unknown_width(state):
    state["pretrained.cls_token"] = torch.zeros(1, 1, 17)


def not_a_tensor(state):
    state["epoch"] = 3


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (missing_key, "pretrained.blocks.3.attn.qkv.bias"),
        (extra_key, "pretrained.blocks.3.attn.qkv.scale"),
        (misshapen, "depth_head.projects.1.weight"),
        (unknown_width, "pretrained.cls_token"),
        (not_a_tensor, "epoch"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("nothing_written")
def test_build_refuses_a_checkpoint_with_a(damage, named, cli, official_state, tmp_path):
    state = dict(official_state)
    damage(state)
    path = tmp_path / "depth_anything_v2_vits.pth"
    torch.save(state, path)
    assert named in cli("build", path, "--size", "14").refused()


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: torch.save([1, 2], path), id="list"),
        pytest.param(lambda path: torch.save({}, path), id="empty dict"),
        pytest.param(lambda path: torch.save({"model": {"a": torch.zeros(1)}}, path), id="nested"),
        pytest.param(lambda path: torch.save(torch.nn.Linear(1, 1), path), id="module"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps(Payload())), id="code"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps({"a": 1})), id="plain pickle"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04 cut off"), id="truncated"),
        pytest.param(lambda path: path.write_text("<html>404</html>"), id="web page"),
        pytest.param(lambda path: path.touch(), id="empty file"),
        pytest.param(lambda path: None, id="absent"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
    ],
)
@pytest.mark.parametrize("option", ["model", "--weights"])
@pytest.mark.usefixtures("nothing_written")
def test_build_refuses_a_pth_that_is(write, option, cli, tmp_path):
    path = tmp_path / "some.pth"
    write(path)
    args = [path] if option == "model" else ["dav2-small", "--weights", path]
    assert "some.pth" in cli("build", *args, "--size", "14", "-o", "out").refused()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["dav2-small", "--size", "350x351"], "multiple of 14"),
        (["dav2-small", "--size", "0"], "multiple of 14"),
        (["dav2-small", "--size", "large"], "cannot read the size 'large'"),
        (["dav2-smal"], "dav2-small"),
        (["dav2-small", "--weights", "twin:x"], "twin:0"),
        (["dav2-small", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["dav2-small", "--opset", "12"], "opset"),
        (["dav2-small", "--passes", "split_head"], "did you mean 'split_heads'?"),
        (["dav2-small", "--passes", "split_heads:grop=2"], "did you mean 'group'?"),
        (["dav2-small", "--passes", "split_heads:group=two"], "a whole number above 0"),
        (["dav2-small", "--passes", "split_heads:merge=mean"], "one of concat, sum"),
        (["dav2-small", "--passes", "insert_resize"], "needs height=… and width=…"),
        (["dav2-small", "--passes", "a,b:c=d,split_heads:e=f"], "no pass 'b'"),
        (["dav2-small", "--image", "nowhere.jpg"], "nowhere.jpg"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("nothing_written")
def test_build_refuses(args, said, cli):
    given = [] if "--weights" in args else ["--weights", "twin:0"]
    assert said in cli("build", *args, *given).refused()


def greyscale(path: Path) -> None:
    Image.new("L", (9, 9)).save(path)


def transparent(path: Path) -> None:
    Image.new("RGBA", (9, 9)).save(path)


def palette(path: Path) -> None:
    Image.new("P", (9, 9)).save(path)


def no_image(path: Path) -> None:
    path.write_text("no image")


def cut_off(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:1000])


BAD_IMAGES = [greyscale, transparent, palette, no_image, cut_off]


@pytest.mark.parametrize("write", BAD_IMAGES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("command", ["build", "run"])
@pytest.mark.usefixtures("nothing_written")
def test_refuses_an_image_that_is(write, command, cli, depth_model, tmp_path):
    path = tmp_path / "bad.png"
    write(path)
    image = ["--image", path] if command == "build" else [path]
    assert "bad.png" in cli(command, depth_model, *image).refused()


@pytest.mark.usefixtures("nothing_written")
def test_a_pass_that_finds_nothing_is_refused(cli, depth_model):
    line = cli("build", depth_model, "--passes", "split_heads:group=6").refused()
    assert "it already is one group of 6 heads" in line


# -- a full disk -----------------------------------------------------------------------------------


@contextmanager
def files_up_to(nbytes: int):
    """No file of this process can grow beyond `nbytes`: what a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of a given size; skips where it can't be mounted."""
    mounted = []

    def mount(nbytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Enough for nothing; for the graph and not the weights; for the source and not the stages.
SIZES = [4 << 10, 200 << 10, 3 << 20]


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_full_disk_is_one_line(nbytes, cli, depth_model, full_disk):
    disk = full_disk(nbytes)
    line = cli("build", depth_model, "--passes", "split_heads", "-o", disk / "out").refused()
    assert "out" in line
    assert "No space left on device" in line
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("nbytes", SIZES[:2])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_full_disk_during_export_is_one_line(nbytes, exporter, cli, full_disk, monkeypatch):
    monkeypatch.setitem(VARIANTS, "dav2-tiny", Variant(small_depth.TINY, RELATIVE))
    disk = full_disk(nbytes)
    outcome = cli("build", "dav2-tiny", "--weights", "twin:0", "--size", "70x56", "--exporter",
                  exporter, "--passes", "split_heads", "-o", disk / "out")  # fmt: skip
    notice, line = outcome.err.splitlines()
    assert outcome.code == 2
    assert "random twin" in notice
    assert "No space left on device" in line
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("nbytes", SIZES[:2])
@pytest.mark.usefixtures("nothing_written")
def test_a_quota_is_one_line(nbytes, cli, depth_model):
    with files_up_to(nbytes):
        outcome = cli("build", depth_model, "--passes", "split_heads", "-o", "out")
    assert "File too large" in outcome.refused()


def test_run_on_a_full_disk_is_one_line(cli, depth_model, photo, full_disk):
    disk = full_disk(4 << 10)
    assert "depth" in cli("run", depth_model, photo, "-o", disk / "depth.png").refused()
    assert list(disk.iterdir()) == []


# -- help, lists and JSON --------------------------------------------------------------------------

HEAVY = ("torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "transformers", "matplotlib")
HELP = f"""
import resource, sys
sys.argv = ["compiler", *sys.argv[1:]]
from compiler.cli import main
try:
    main()
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(end.code, [m for m in {HEAVY} if m in sys.modules], used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(
    "args",
    [["--help"], ["build", "--help"], ["verify", "--help"], ["diff", "--help"], ["run", "--help"],
     ["passes", "--help"], []],
    ids=" ".join,
)  # fmt: skip
def test_help_is_instant(args):
    command = [sys.executable, "-c", HELP, *args]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *help_text, last = ran.stdout.splitlines()
    code, rest = last.split(" ", 1)
    loaded, seconds = rest.rsplit(" ", 1)
    assert code == ("0" if args else "2")
    assert loaded == "[]"
    assert float(seconds) < 0.5, "CPU seconds; the wall clock depends on who else is at work"
    assert any("Usage:" in line for line in help_text + ran.stderr.splitlines())


def test_passes_lists_every_module(cli):
    outcome = cli("passes")
    assert outcome.code == 0
    assert all(name in outcome.out for name in pass_names())
    assert [entry["name"] for entry in json.loads(cli("passes", "--json").out)] == pass_names()


@pytest.mark.parametrize("name", pass_names())
def test_passes_shows_one_whole(cli, name):
    outcome = cli("passes", name)
    assert outcome.code == 0
    assert "Contract: " in outcome.out
    (entry,) = json.loads(cli("passes", name, "--json").out)
    assert entry["does"]
    contract = entry["contract"].split()[0].rstrip(",;.")
    assert contract in ("exact", "algebraic", "declared", "approximate")


def test_passes_refuses_an_unknown_name(cli):
    assert "did you mean 'fold_norm'?" in cli("passes", "fold_nrm").refused()


def test_build_prints_a_table_and_json(cli, depth_model):
    outcome = cli("build", depth_model, "--passes", "fold_norm", "-o", "one")
    assert outcome.code == 0
    row = next(line for line in outcome.out.splitlines() if line.startswith("fold_norm"))
    assert re.search(r"\d\.\de-\d\d \d\.\de-\d\d ≤ \de-\d\d", row), "errors, and their bound"
    assert "one/model.onnx" in outcome.out
    assert outcome.err == ""
    outcome = cli("build", depth_model, "--passes", "fold_norm", "-o", "two", "--json")
    assert json.loads(outcome.out) == json.loads(Path("two/build.json").read_text())


def test_diff_says_whether_two_models_differ(cli, built):
    source, final = built / "00_source.onnx", built / "model.onnx"
    same = cli("diff", source, source)
    assert (same.code, "no difference" in same.out) == (0, True)
    other = cli("diff", source, final)
    assert other.code == 1
    assert "BatchNormalization" in other.out
    found = json.loads(cli("diff", source, final, "--json").out)
    assert {change["count"] for change in found["changes"]} == {1, small_depth.LAYERS}
    same = json.loads(cli("diff", source, source, "--json").out)
    assert (same["differ"], same["signature"], same["changes"]) == (False, [], [])


def test_diff_shows_a_pass_of_a_build(cli, built):
    outcome = cli("diff", built, "--pass", "fold_norm", "--json")
    assert outcome.code == 1
    (change,) = json.loads(outcome.out)["changes"]
    assert (change["removed"], change["added"]) == (["Sub", "Div"], ["BatchNormalization"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["diff", "{built}"], "two models"),
        (["diff", "{built}", "{built}/model.onnx", "--pass", "fold_norm"], "two models"),
        (["diff", "{built}", "--pass", "fold"], "no stage of"),
        (["diff", "{built}/..", "--pass", "fold_norm"], "not the folder of a build"),
        (["verify", "{built}/model.onnx", "{built}"], "is a folder"),
        (["verify", "{built}/model.onnx", "{built}/model.onnx", "--inputs", "no.npz"], "no.npz"),
        (["run", "{built}", "nowhere.jpg"], "nowhere.jpg"),
    ],
)
@pytest.mark.usefixtures("nothing_written")
def test_refuses(args, said, cli, built):
    assert said in cli(*(arg.format(built=built) for arg in args)).refused()


def test_verify_says_whether_two_models_compute_the_same(cli, built, tmp_path):
    source, final = built / "00_source.onnx", built / "model.onnx"
    assert cli("verify", source, final).code == 0
    found = json.loads(cli("verify", source, final, "--json").out)
    assert {found[precision]["status"] for precision in ("float64", "float32")} == {"pass"}
    other = small_depth.write(tmp_path, small_depth.network(seed=1))
    outcome = cli("verify", source, other)
    assert (outcome.code, "differs" in outcome.out) == (1, True)
    assert json.loads(cli("verify", source, other, "--json").out)["float64"]["status"] == "fail"


@pytest.mark.parametrize("name", ["depth.png", "deep/er/depth.png", "plain"])
def test_run_writes_a_picture_and_the_values(cli, built, photo, name):
    outcome = cli("run", built, photo, "-o", name, "--json")
    record = json.loads(outcome.out)
    assert outcome.code == 0
    values = np.load(record["values"])
    assert values.dtype == np.float32
    assert values.shape == tuple(record["shape"]) == (70, 56)
    assert (values.min(), values.max()) == (np.float32(record["min"]), np.float32(record["max"]))
    with Image.open(record["picture"]) as picture:
        assert picture.size == (56, 70)
        assert picture.format == "PNG"


def test_run_names_its_files_after_the_photo(cli, built, photo):
    assert "photo_depth.png" in cli("run", built / "model.onnx", photo).out
    assert Path("photo_depth.png").is_file()
    assert Path("photo_depth.npy").is_file()


@pytest.mark.parametrize("name", ["depth.jpg", "depth.npy", "depth.gif"])
@pytest.mark.usefixtures("nothing_written")
def test_run_writes_nothing_but_png(cli, built, photo, name):
    assert name in cli("run", built, photo, "-o", name).refused()


# -- a wrong pass ----------------------------------------------------------------------------------


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_json_is_strict(cli, tmp_path, model_of):
    """An UNVERIFIED proof has no error: null, not NaN."""
    text = "g (float[2,3] x) => (float[2,3] y) { a = Abs(x) y = Bernoulli(a) }"
    onnx.save(model_of(text), tmp_path / "a.onnx")
    out = cli("verify", tmp_path / "a.onnx", tmp_path / "a.onnx", "--json").out
    found = json.loads(out, parse_constant=no_constants)
    assert found["float64"]["status"] == "UNVERIFIED"
    assert found["float64"]["error"] is None


def named(name: str) -> mutants.Mutant:
    (found,) = [mutant for mutant in mutants.WRONG if mutant.id == name]
    return found


@pytest.mark.parametrize("name", ["two heads of v swapped", "LayerNorm eps x10", "BGR order"])
def test_a_wrong_rewrite_leaves_a_reproducer(name, cli, depth_model, monkeypatch, tmp_path):
    mutant = named(name)
    with monkeypatch.context() as patch:
        mutant.plant(patch)
        outcome = cli("build", depth_model, "--no-canonicalize", "--passes", mutant.passes,
                      "-o", "out")  # fmt: skip
    assert outcome.code == 1
    assert outcome.err.startswith(f"verification failed: {mutant.passes}#")
    assert outcome.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["out.failure"]
    folder = Path(outcome.err.split("reproducer: ")[1].strip())
    assert {path.name for path in folder.iterdir()} == {
        "BUG_REPORT.md", "failure.json", "inputs.npz", "new.onnx", "old.onnx", "replay.sh",
    }  # fmt: skip
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["pass"] == mutant.passes
    assert failure["error"] > failure["bound"]
    ran = subprocess.run(
        [folder / "replay.sh"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (ran.returncode, "differs" in ran.stdout) == (1, True), ran.stderr
