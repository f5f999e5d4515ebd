"""What a user may type, what comes of it, and what is refused in one line."""

import subprocess
import sys

import pytest
import torch

from models import ModelError, hugging_face, resolve
from models.sources import TWIN_NOTICE, _parse_size
from models.variants import VARIANTS
from tests.models.official import official_model

LICENCE = "CC-BY-NC-4.0"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hugging_face, "is_available", lambda hub_id: False)


def refusal(*arguments, **options) -> str:
    with pytest.raises(ModelError) as error:
        resolve(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_resolving_needs_neither_torch_nor_transformers():
    code = (
        "import sys, models; models.resolve('dav2-small', weights='twin:3'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_name_resolves(name):
    source = resolve(name)
    assert (source.name, source.weights) == (name, "twin:0")
    assert TWIN_NOTICE in source.notices
    assert any(LICENCE in notice for notice in source.notices) == ("small" not in name)


def test_auto_takes_trained_weights_where_it_can(monkeypatch):
    monkeypatch.setattr(hugging_face, "is_available", lambda hub_id: True)
    source = resolve("dav2-small")
    assert source.weights == "depth-anything/Depth-Anything-V2-Small-hf"
    assert source.notices == ()
    assert resolve("dav2-giant").weights == "twin:0", "Giant was never published"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("dav2-smal", "dav2-small"), ("dav2-base-indoor", "dav2-base-metric-indoor"), ("x", "dav2-")],
)
def test_unknown_names_list_the_nearest(name, nearest):
    message = refusal(name)
    assert f"unknown model '{name}'" in message
    assert nearest in message


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, (518, 518)), ("350", (350, 350)), ("392x518", (392, 518)), ("14×28", (14, 28))],
)
def test_sizes_are_height_by_width(text, size):
    assert _parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "part"),
    [
        ("351", "351 is not a positive multiple of 14; the nearest are 350 and 364"),
        ("392x500", "500 is not a positive multiple of 14"),
        ("0", "the nearest are 14 and 28"),
        ("-14", "cannot read the size"),
        ("14x14x14", "cannot read the size"),
        ("", "cannot read the size"),
        ("350.0", "cannot read the size"),
        ("٣٥٠", "cannot read the size"),
    ],
)
def test_bad_sizes(size, part):
    assert part in refusal("dav2-small", size=size)


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ("twin:", "write twin:0"),
        ("twin:-1", "write twin:0"),
        ("twin:x", "write twin:0"),
        ("nonsense", "unknown weights 'nonsense'"),
        ("none/at/all", "unknown weights"),
        ("missing.pth", "no file at missing.pth"),
        ("", "unknown weights ''"),
        (".", "no Hugging Face folder"),
    ],
)
def test_bad_weights(weights, part):
    assert part in refusal("dav2-small", weights=weights)


@pytest.mark.parametrize(
    ("exporter", "opset", "part"),
    [
        ("dynamo", 16, "writes opsets 17 to 25, not 16"),
        ("torchscript", 23, "writes opsets 17 to 20, not 23"),
        ("dynamo", 0, "not 0"),
        ("onnx", None, "unknown exporter 'onnx'"),
    ],
)
def test_bad_opsets(exporter, opset, part):
    assert part in refusal("dav2-small", exporter=exporter, opset=opset)


def test_an_onnx_file_is_its_own_model(tmp_path):
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"untouched")
    source = resolve(str(path))
    assert (source.name, source.weights, source.notices) == ("mine", str(path), ())
    assert source.write(tmp_path / "elsewhere") == path
    assert [*tmp_path.iterdir()] == [path]


def test_options_that_do_not_apply_to_an_onnx_file(tmp_path):
    path = tmp_path / "mine.onnx"
    path.touch()
    assert "--size does not apply" in refusal(str(path), size="350")
    assert "--weights does not apply" in refusal(str(path), weights="twin:0")
    assert "--opset does not apply" in refusal(str(path), opset=18)
    assert "no file at none.onnx" in refusal("none.onnx")


# -- folders --------------------------------------------------------------------------------------


def test_a_folder_with_one_onnx_file_is_that_model(tmp_path):
    folder = tmp_path / "swin"
    folder.mkdir()
    for name in ("model.onnx", "model.onnx.data", "config.json"):
        (folder / name).touch()
    source = resolve(str(folder))
    path = folder / "model.onnx"
    assert (source.name, source.weights, source.is_onnx) == ("swin", str(path), True)
    assert source.write(tmp_path) == path


def test_the_working_directory_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve(".").name == tmp_path.name


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "holds no .onnx file"),
        (["a.txt"], "holds no .onnx file"),
        (["b.onnx", "a.ONNX"], "holds 2 .onnx files, give one of them: a.ONNX, b.onnx"),
        ([f"{k}.onnx" for k in range(7)], "0.onnx, 1.onnx, 2.onnx, 3.onnx, 4.onnx and 2 more"),
        (["model.onnx", "build.json"], "is a build's folder: to go on from it build "),
    ],
)
def test_folders_that_are_no_model(files, words, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    assert words in refusal(str(tmp_path))


def test_options_that_do_not_apply_to_a_folder(tmp_path):
    (tmp_path / "a.onnx").touch()
    assert "--size does not apply" in refusal(str(tmp_path), size="350")
    assert "--weights does not apply" in refusal(str(tmp_path), weights="twin:0")


def test_a_name_is_a_name_even_beside_a_folder_that_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dav2-small").mkdir()
    assert resolve("dav2-small").weights == "twin:0"


@pytest.fixture(scope="module")
def small_state():
    return official_model("vits", seed=3).state_dict()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("depth_anything_v2_vits.pth", "dav2-small"),
        ("depth_anything_v2_metric_hypersim_vits.pth", "dav2-small-metric-indoor"),
        ("depth_anything_v2_metric_vkitti_vits.pth", "dav2-small-metric-outdoor"),
        ("mine.pth", None),
    ],
)
def test_a_checkpoint_is_a_model(tmp_path, small_state, file, name):
    path = tmp_path / file
    torch.save(small_state, path)
    source = resolve(str(path), size="70")
    assert (source.name, source.weights) == (path.stem, str(path))
    if name is None:
        assert "taken as relative depth (shapes cannot tell)" in source.notices[0]
    else:
        assert source.notices == ()
        assert source._write.keywords["variant"] == VARIANTS[name]


def test_a_named_model_takes_a_checkpoint(tmp_path, small_state):
    path = tmp_path / "finetuned.pth"
    torch.save(small_state, path)
    source = resolve("dav2-small-metric-indoor", weights=str(path))
    assert (source.name, source.weights, source.notices) == (
        "dav2-small-metric-indoor",
        str(path),
        (),
    )
    with pytest.raises(ModelError, match=r"holds the small encoder \(vits\), not base: ask for"):
        resolve("dav2-base-metric-indoor", weights=str(path)).write(tmp_path)


def test_a_checkpoint_named_as_another_model_is_refused(tmp_path):
    path = tmp_path / "depth_anything_v2_metric_vkitti_vits.pth"
    path.touch()
    assert "is named as weights of dav2-small-metric-outdoor" in refusal(
        "dav2-small", weights=str(path)
    )
    first = tmp_path / "depth_anything_vits14.pth"
    first.touch()
    assert "Depth Anything V1" in refusal("dav2-small", weights=str(first))
    assert "Depth Anything V1" in refusal(str(first))


def test_a_checkpoint_with_weights_beside_it_is_refused(tmp_path):
    path = tmp_path / "mine.pth"
    path.touch()
    assert "drop --weights twin:0" in refusal(str(path), weights="twin:0")
    assert "no file at none.pth" in refusal("none.pth")
