"""Our network with mapped weights against the restated official code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import convert
from models.depth_anything import MEAN, STD, DepthMap, empty_network
from models.variants import ENCODERS, VARIANTS, Variant
from tests.models.official import CONFIGS, OfficialDepthAnything, official_model
from tests.models.tiny import METRIC_INDOOR, tiny_variant

SIZES = [(252, 252), (350, 350), (518, 518), (392, 518), (518, 392), (70, 14), (14, 14)]


def mapped(official: OfficialDepthAnything, variant: Variant, height: int, width: int) -> DepthMap:
    network = empty_network(variant)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    state = convert(official.state_dict(), shapes, Path("official.pth"))
    network.load_state_dict(state, assign=True)
    return DepthMap(network, height, width)


def photo(height: int, width: int) -> torch.Tensor:
    """Integers in [0, 255]: a smooth scene with noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.rand(1, 3, height, width, generator=generator)
    return (255 * (0.8 * smooth + 0.2 * noise)).clamp(0, 255).round()


@torch.no_grad()
def assert_same_depth(official: OfficialDepthAnything, ours: DepthMap, image: torch.Tensor) -> None:
    expected, actual = official(image), ours(image)
    assert actual.shape == expected.shape == (1, *image.shape[2:])
    assert expected.std() > 1e-2 * expected.abs().max(), "a constant map would prove nothing"
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_equals_the_official_code(height, width):
    official = official_model("tiny")
    ours = mapped(official, tiny_variant(), height, width)
    assert_same_depth(official, ours, photo(height, width))


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
def test_equals_the_official_metric_code(swiglu):
    official = official_model("tiny-swiglu" if swiglu else "tiny", max_depth=20.0)
    ours = mapped(official, tiny_variant(swiglu, METRIC_INDOOR), 140, 168)
    assert_same_depth(official, ours, photo(140, 168))


@pytest.mark.parametrize(("height", "width"), [(518, 518), (392, 518)], ids=str)
def test_the_full_small_model_equals_the_official_code(height, width):
    official = official_model("vits")
    ours = mapped(official, VARIANTS["dav2-small"], height, width)
    assert_same_depth(official, ours, photo(height, width))


def test_normalization_equals_its_float64_formula():
    values = np.arange(256.0)[:, None]
    formula = (values / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ours = (values - np.float64(MEAN)) / np.float64(STD)
    assert np.abs(ours - formula).max() < 1e-12


def test_normalization_constants_lose_nothing_in_float32():
    ours = DepthMap(empty_network_with_weights(), 14, 14)
    assert np.abs(ours.mean.flatten().double().numpy() - MEAN).max() < 1e-5
    assert np.abs(ours.std.flatten().double().numpy() - STD).max() < 1e-5


def empty_network_with_weights():
    return empty_network(tiny_variant()).to_empty(device="cpu")


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.size)
def test_the_table_agrees_with_the_official_one(encoder):
    width, layers, heads, taps, features, neck = CONFIGS[encoder.code]
    assert (encoder.width, encoder.layers, encoder.heads) == (width, layers, heads)
    assert encoder.taps == tuple(index + 1 for index in taps)
    assert (encoder.features, encoder.neck) == (features, neck)


def test_ids_on_hugging_face():
    assert VARIANTS["dav2-small"].hub_id == "depth-anything/Depth-Anything-V2-Small-hf"
    indoor = VARIANTS["dav2-base-metric-indoor"].hub_id
    assert indoor == "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf"
    assert VARIANTS["dav2-giant"].hub_id is None
