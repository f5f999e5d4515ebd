"""Official checkpoints: every key accounted for, and every bad file told in one line."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from models import ModelError
from models.checkpoint import UNUSED, convert, key_map, read_state_dict, recognize_encoder
from models.depth_anything import empty_network
from models.variants import ENCODERS, RELATIVE, Variant
from tests.models.official import OfficialDepthAnything, official_model
from tests.models.tiny import tiny_variant


def shapes_of(variant: Variant) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in empty_network(variant).named_parameters()}


def assert_one_line(error: pytest.ExceptionInfo[ModelError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def state():
    return official_model("tiny").state_dict()


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.size)
def test_every_official_key_has_its_place(encoder):
    with torch.device("meta"):
        official = OfficialDepthAnything(encoder.code, None, None).state_dict()
    shapes = shapes_of(Variant(encoder, RELATIVE))
    names = key_map(shapes)
    assert names.keys() | UNUSED == official.keys()
    ours = [name for group in names.values() for name in group]
    assert sorted(ours) == sorted(shapes), "each of our parameters is fed exactly once"
    for key, group in names.items():
        rows = sum(shapes[name][0] for name in group)
        assert official[key].shape == (rows, *shapes[group[0]][1:]), key


def test_the_full_official_keys_spelled_out():
    # A few names as the official files have them, independent of any restatement.
    names = key_map(shapes_of(Variant(ENCODERS[0], RELATIVE)))
    assert names["pretrained.blocks.11.attn.qkv.weight"] == (
        "backbone.encoder.layer.11.attention.q_proj.weight",
        "backbone.encoder.layer.11.attention.k_proj.weight",
        "backbone.encoder.layer.11.attention.v_proj.weight",
    )
    assert names["depth_head.scratch.refinenet1.resConfUnit2.conv1.bias"] == (
        "neck.fusion_stage.layers.3.residual_layer2.convolution1.bias",
    )
    assert names["depth_head.scratch.layer4_rn.weight"] == ("neck.convs.3.weight",)
    assert names["depth_head.scratch.output_conv2.2.bias"] == ("head.conv3.bias",)
    assert "depth_head.resize_layers.2.weight" not in names


def test_an_absent_mask_token_is_fine(state):
    del state["pretrained.mask_token"]
    converted = convert(state, shapes_of(tiny_variant()), Path("a.pth"))
    assert converted.keys() == shapes_of(tiny_variant()).keys()


def test_half_precision_becomes_float32(state):
    half = {key: value.half() for key, value in state.items()}
    converted = convert(half, shapes_of(tiny_variant()), Path("a.pth"))
    assert {value.dtype for value in converted.values()} == {torch.float32}


def test_missing_and_extra_keys_are_named(state):
    state["pretrained.blocks.0.attn.qkv.wait"] = state.pop("pretrained.blocks.0.attn.qkv.weight")
    with pytest.raises(ModelError) as error:
        convert(state, shapes_of(tiny_variant()), Path("a.pth"))
    assert_one_line(
        error, "a.pth", "missing keys: 'pretrained.blocks.0.attn.qkv.weight'", "qkv.wait'"
    )


def test_many_missing_keys_are_counted(state):
    kept = {key: value for key, value in state.items() if "depth_head" not in key}
    with pytest.raises(ModelError) as error:
        convert(kept, shapes_of(tiny_variant()), Path("a.pth"))
    assert_one_line(error, "missing keys: 'depth_head.projects.0.weight'", "more")


def test_a_misshapen_key_is_named_with_both_shapes(state):
    state["pretrained.pos_embed"] = state["pretrained.pos_embed"][:, :257]
    with pytest.raises(ModelError) as error:
        convert(state, shapes_of(tiny_variant()), Path("a.pth"))
    assert_one_line(error, "'pretrained.pos_embed' is 1×257×32, not 1×1370×32")


def test_shapes_that_only_add_up_are_refused(state):
    # The packed QKV transposed has as many elements.
    key = "pretrained.blocks.0.attn.qkv.weight"
    state[key] = state[key].T.contiguous()
    with pytest.raises(ModelError) as error:
        convert(state, shapes_of(tiny_variant()), Path("a.pth"))
    assert_one_line(error, f"'{key}' is 32×96, not 96×32")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_both_file_formats_are_read(tmp_path, state, legacy):
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_the_encoder_is_recognized_from_its_width():
    for encoder in ENCODERS:
        state = {"pretrained.cls_token": torch.zeros(1, 1, encoder.width)}
        assert recognize_encoder(state, Path("a.pth")) == encoder


@pytest.mark.parametrize(
    ("state", "part"),
    [
        (
            {"fc.weight": torch.zeros(1)},
            "no key 'pretrained.cls_token' (it begins with 'fc.weight'",
        ),
        ({"pretrained.cls_token": torch.zeros(1, 1, 100)}, "1×1×100, known widths are 384 (vits)"),
        ({"pretrained.cls_token": torch.tensor(0.0)}, "a scalar"),
    ],
    ids=["other-model", "unknown-width", "scalar"],
)
def test_an_unknown_encoder_is_told(state, part):
    with pytest.raises(ModelError) as error:
        recognize_encoder(state, Path("a.pth"))
    assert_one_line(error, part)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([torch.zeros(1)], "a list"),
        (torch.zeros(1), "a Tensor"),
        ({}, "a dict"),
        ({"model": {"a": torch.zeros(1)}, "epoch": 3}, "save its ['model'] alone"),
        ({"epoch": 3}, "entry 'epoch' is a int, not a tensor"),
    ],
    ids=["list", "tensor", "empty", "training-checkpoint", "number"],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, part):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(ModelError) as error:
        read_state_dict(path)
    assert_one_line(error, "state dict", part)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICE"],)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, container):
    victim = tmp_path / "victim"
    monkeypatch.setenv("MALICE", str(victim))
    path = tmp_path / "a.pth"
    if container == "torch":
        torch.save({"weight": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Malicious()}))
    with pytest.raises(ModelError) as error:
        read_state_dict(path)
    assert_one_line(error, str(path), "refused")
    assert not victim.exists()


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 5000, -1, -30, -3000])
def test_a_truncated_file_is_told(tmp_path, state, kept):
    path = tmp_path / "a.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError) as error:
        read_state_dict(path)
    assert_one_line(error, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid 1",
        b"\x80\x02.",
        b"PK\x03\x04 no zip",
        bytes(range(256)) * 40,
    ],
    ids=["html", "lfs-pointer", "empty-pickle", "half-zip", "noise"],
)
def test_other_files_are_told(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_state_dict(path)
    assert_one_line(error, str(path))
