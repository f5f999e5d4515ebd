"""Reading profiles: the numbers, their units, and which pass made which layer."""

import onnx
import pytest

from compiler.errors import UserError
from compiler.graph import PASS_KEY
from compiler.hub.profile import NOT_ATTRIBUTED, SLOWEST, SOURCE, read_profile

TEXT = """g (float[4,4] x) => (float[4,4] y) <float[4,4] w>
    {
        [MatMul] a = MatMul(x, w)
        [MatMul_1] b = MatMul(a, w)
        ["/blocks.0/attn/Softmax"] soft = Softmax(b)
        y = Add(soft, x)
    }"""
MADE_BY = {"MatMul_1": "split_heads", "/blocks.0/attn/Softmax": "split_heads", "": "fold_norm"}


@pytest.fixture
def model(model_of, tmp_path):
    """MatMul is the source's, MatMul_1 and the Softmax are split_heads', `y` is fold_norm's."""
    model = model_of(TEXT)
    for node in model.graph.node:
        if node.name in MADE_BY:
            node.metadata_props.add(key=PASS_KEY, value=MADE_BY[node.name])
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def layer(name: str, cost: int = 10, unit: str = "NPU", key: str = "execution_cycles") -> dict:
    return {"name": name, "type": "Op", "compute_unit": unit, key: cost}


def profile_of(*layers: dict, **summary: object) -> dict:
    summary = {"estimated_inference_time": 28600, **summary}
    return {"execution_summary": summary, "execution_detail": list(layers)}


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        ("MatMul", SOURCE),
        ("MatMul_1", "split_heads"),
        ("MatMul_1_permute", "split_heads"),
        ("MatMul_permute", SOURCE),
        ("MatMul_2", NOT_ATTRIBUTED),
        ("MatMul_1_2", NOT_ATTRIBUTED),
        ("MatMul_1_token_37", "split_heads"),
        ("MatMul_1:OpId_37", "split_heads"),
        ("_blocks_0_attn_Softmax", "split_heads"),
        ("/blocks.0/attn/Softmax", "split_heads"),
        ("/blocks.0/attn/Softmax_output_0", NOT_ATTRIBUTED),
        ("soft", "split_heads"),
        ("y", "fold_norm"),
        ("y_nchw", "fold_norm"),
        ("Input OpId_2 (cycles)", NOT_ATTRIBUTED),
        ("", NOT_ATTRIBUTED),
    ],
)
def test_whose_a_layer_is(model, name, made_by):
    (found,) = read_profile(profile_of(layer(name)), model).slowest
    assert found.made_by == made_by


def test_a_node_has_its_name_even_if_a_tensor_has_it_too(model_of, tmp_path):
    model = model_of("g (float[4] x) => (float[4] y) { [y] a = Relu(x) [b] y = Neg(a) }")
    model.graph.node[0].metadata_props.add(key=PASS_KEY, value="split_heads")
    onnx.save(model, tmp_path / "net.onnx")
    (found,) = read_profile(profile_of(layer("y")), tmp_path / "net.onnx").slowest
    assert found.made_by == "split_heads"


def test_shares_add_up(model):
    layers = [layer("MatMul", 50), layer("MatMul_1", 30, "GPU"), layer("?", 20, "CPU")]
    profile = read_profile(profile_of(*layers), model)
    for groups in (profile.compute_units, profile.passes):
        assert sum(group.cost for group in groups) == 100
        assert sum(group.share for group in groups) == pytest.approx(1)
        assert sum(group.layers for group in groups) == 3
    assert [(g.name, g.share) for g in profile.compute_units] == [
        ("NPU", 0.5), ("GPU", 0.3), ("CPU", 0.2)
    ]  # fmt: skip
    assert [(g.name, g.share) for g in profile.passes] == [
        (SOURCE, 0.5), ("split_heads", 0.3), (NOT_ATTRIBUTED, 0.2)
    ]  # fmt: skip


def test_the_slowest_come_first(model):
    layers = [layer(f"layer{n}", n) for n in range(1, SLOWEST + 5)]
    costs = [found.cost for found in read_profile(profile_of(*layers), model).slowest]
    assert costs == sorted(costs, reverse=True)
    assert len(costs) == SLOWEST
    assert costs[0] == SLOWEST + 4


def test_without_the_model_nothing_is_attributed():
    profile = read_profile(profile_of(layer("MatMul")), None)
    assert profile.passes == ()
    assert profile.slowest[0].made_by == NOT_ATTRIBUTED


def test_units():
    """Of times and cycles, times are kept."""
    both = {**layer("a", 5), "execution_time": 7}
    assert read_profile(profile_of(both), None).unit == "µs"
    assert read_profile(profile_of(both), None).slowest[0].cost == 7
    assert read_profile(profile_of(layer("a", 5)), None).unit == "cycles"


def test_the_summary():
    profile = read_profile(
        profile_of(estimated_inference_peak_memory=2**20, first_load_time=1500), None
    )
    assert profile.latency_ms == 28.6
    assert profile.peak_memory_bytes == 2**20
    assert profile.first_load_ms == 1.5


@pytest.mark.parametrize("missing", [-1, 0, None, "not measured"])
def test_what_was_not_measured_is_none(missing):
    profile = read_profile(profile_of(estimated_inference_peak_memory=missing), None)
    assert profile.peak_memory_bytes is None
    assert profile.first_load_ms is None


def test_a_profile_without_layers_is_a_latency(model):
    profile = read_profile(profile_of(), model)
    assert (profile.latency_ms, profile.passes, profile.slowest) == (28.6, (), ())


def test_layers_without_costs_have_no_share(model):
    silent = {"name": "MatMul", "type": "MatMul", "compute_unit": "NPU"}
    assert read_profile(profile_of(silent), model).slowest[0].share == 0


@pytest.mark.parametrize("profile", [{}, profile_of(estimated_inference_time=-1)])
def test_a_profile_without_a_latency_is_refused(profile):
    with pytest.raises(UserError, match="no latency"):
        read_profile(profile, None)
