"""The built graph against an independent computation in float64 torch, pass by pass and whole.

The network is our own restatement of the official code (tests/models/official.py); the model is
built from its checkpoint. Nothing on the expected side uses ONNX, transformers, or the passes'
oracles. The models are run as users run them, in onnxruntime's float32.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.building import build_stages
from compiler.pipeline import parse_pipeline
from models.checkpoint import convert
from models.depth_anything import DepthMap, empty_network
from models.export import export
from models.sources import resolve
from tests.models.official import OfficialDepthAnything, official_model
from tests.models.tiny import tiny_variant

Function = Callable[[Tensor], Tensor]
SIZE = (70, 98)
USERS = (60, 81)
RESIZE = f"insert_resize:height={USERS[0]}:width={USERS[1]}"


def resized(f: Function, size: tuple[int, int], users: tuple[int, int]) -> Function:
    """The network on images of the user's size; the map has a channel axis."""

    def bilinear(x: Tensor, to: tuple[int, int]) -> Tensor:
        return F.interpolate(x, to, mode="bilinear", align_corners=True)

    return lambda image: bilinear(f(bilinear(image, size))[:, None], users)


def averaged(f: Function) -> Function:
    return lambda image: (f(image) + f(image.flip(-1)).flip(-1)) / 2


def in_range(f: Function) -> Function:
    def scaled(image: Tensor) -> Tensor:
        depth = f(image)
        return (depth - depth.min()) / (depth.max() - depth.min())

    return scaled


def photo(height: int, width: int) -> Tensor:
    """Whole numbers in [0, 255]: a smooth scene with noise, unlike its mirror image."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 5, 4, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    noise = torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64)
    return (255 * (0.8 * smooth + 0.2 * noise)).clamp(0, 255).round()


def error(path: Path, expected: Function, size: tuple[int, int]) -> float:
    """The largest difference over the expected map's range."""
    image = photo(*size)
    with torch.no_grad():
        wanted = expected(image).numpy()
    session = onnxruntime.InferenceSession(str(path))
    (actual,) = session.run(None, {"image": image.numpy().astype(np.float32)})
    assert actual.shape == wanted.shape
    assert np.ptp(wanted) > 1e-2 * np.abs(wanted).max(), "a constant map would prove nothing"
    return float(np.abs(actual - wanted).max() / np.ptp(wanted))


@pytest.fixture(scope="module")
def official() -> OfficialDepthAnything:
    return official_model("tiny").double()


@pytest.fixture(scope="module")
def source(tmp_path_factory, official) -> Path:
    network = empty_network(tiny_variant())
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    state = convert(official.state_dict(), shapes, Path("official.pth"))
    network.load_state_dict(state, assign=True)
    path = tmp_path_factory.mktemp("source") / "source.onnx"
    export(DepthMap(network, *SIZE), path, *SIZE, "dynamo", 18)
    return path


def built(source: Path, passes: str, tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    build_stages(source, parse_pipeline(passes), folder, failures=tmp_path / "failure")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("passes", "around", "size"),
    [
        pytest.param("fold_norm", lambda f: f, SIZE, id="fold_norm"),
        pytest.param("fold_norm:into=conv", lambda f: f, SIZE, id="fold_norm into conv"),
        pytest.param("split_heads", lambda f: f, SIZE, id="split_heads"),
        pytest.param("split_heads:merge=sum", lambda f: f, SIZE, id="split_heads by sums"),
        pytest.param(RESIZE, lambda f: resized(f, SIZE, USERS), USERS, id="insert_resize"),
        pytest.param("flip_average", averaged, SIZE, id="flip_average"),
        pytest.param("flip_average:mode=batch", averaged, SIZE, id="flip_average in a batch"),
        pytest.param("range_output", in_range, SIZE, id="range_output"),
        pytest.param(
            f"canonicalize,{RESIZE},fold_norm,split_heads,flip_average",
            lambda f: averaged(resized(f, SIZE, USERS)),
            USERS,
            id="the default pipeline",
        ),
        pytest.param(
            f"{RESIZE},fold_norm:into=conv,split_heads:merge=sum,flip_average:mode=batch,"
            "range_output",
            lambda f: in_range(averaged(resized(f, SIZE, USERS))),
            USERS,
            id="every other option",
        ),
    ],
)
def test_equals_torch(source, official, tmp_path, passes, around, size):
    assert error(built(source, passes, tmp_path), around(official), size) < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda f: averaged(resized(f, SIZE, USERS)), id="as it is"),
        pytest.param(lambda f: resized(f, SIZE, USERS), id="without the mirrored image"),
        pytest.param(lambda f: averaged(resized(lambda x: f(x.flip(1)), SIZE, USERS)), id="BGR"),
        pytest.param(
            lambda f: averaged(resized(lambda x: f(x + 0.1), SIZE, USERS)), id="another mean"
        ),
    ],
)
def test_a_wrong_expectation_shows(source, official, tmp_path, wrong, request):
    model = built(source, f"{RESIZE},fold_norm,split_heads,flip_average", tmp_path)
    far = error(model, wrong(official), USERS)
    assert (far < 1e-5) == ("as it is" in request.node.name)


@pytest.mark.slow
def test_the_default_build_of_small_at_518_equals_torch(tmp_path):
    official = official_model("vits")
    torch.save(official.state_dict(), tmp_path / "depth_anything_v2_vits.pth")
    source = resolve(str(tmp_path / "depth_anything_v2_vits.pth")).write(tmp_path)
    pipeline = "canonicalize,insert_resize:height=480:width=640,fold_norm,split_heads,flip_average"
    expected = averaged(resized(official.double(), (518, 518), (480, 640)))
    assert error(built(source, pipeline, tmp_path), expected, (480, 640)) < 1e-5
