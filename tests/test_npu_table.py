"""The rows of `python -m tools.npu`: a sweep that can be read, and what it makes of the figures."""

import onnx
import pytest
import typer

from compiler.sweep.grid import read_grid
from tools.npu import DESCRIPTION, Row, as_markdown, grid_of, rows_in, rows_of
from tools.npu_models import OFFICIAL, file_of, write

ALL = rows_in(list(DESCRIPTION["rows"]))


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "npu.toml"
    path.write_text(grid_of(ALL), "utf-8")
    return read_grid(str(path))


def test_every_row_is_two_variants_whose_passes_exist(grid):
    labels = [variant.label for variant in grid.variants]
    pairs = [f"{row['name']}-{kind}" for row in ALL for kind in ("stock", "ours")]
    assert labels == [label for label in pairs if label in labels]
    assert {f"{row['name']}-ours" for row in ALL} <= set(labels)
    ours = {v.label: v.passes for v in grid.variants}["small-350-ours"]
    assert ours.startswith("fold_norm:into=conv,split_heads")


def test_weights_are_twins_and_exported_graphs_lie_beside(grid, tmp_path):
    models = {variant.model for variant in grid.variants}
    assert str(tmp_path / "models/official-small-518/model.onnx") in models
    assert str(tmp_path / "models/swin-t-224/model.onnx") in models
    named = [v for v in grid.variants if v.model.startswith("dav2")]
    assert {v.weights for v in named} == {"twin:0"}
    exported = [v for v in grid.variants if v.model.startswith(str(tmp_path))]
    assert len(named) + len(exported) == len(grid.variants)


def test_what_is_stock_to_two_rows_is_built_once(grid):
    built = [(v.model, v.size, v.passes) for v in grid.variants]
    assert len(built) == len(set(built))
    labels = {variant.label for variant in grid.variants}
    assert "small-518-w8a16-stock" in labels
    assert "small-518-w8a16-attention-8-stock" not in labels
    measured_once = [measured(label, number) for number, label in enumerate(sorted(labels), 1)]
    rows = {row.name: row for row in rows_of(ALL, measured_once, "iq-9075")}
    one, two = rows["small-518-w8a16"], rows["small-518-w8a16-attention-8"]
    assert one.stock_ms == two.stock_ms
    assert one.ours_ms != two.ours_ms
    other = rows["small-350-w8a16"]
    assert other.stock_ms != one.stock_ms


def test_groups_select_rows_once_and_in_their_order():
    names = [row["name"] for row in rows_in(["zoo", "small", "zoo"])]
    assert names[0] == "vit-b16-224"
    assert names[-1] == "small-350-w8a16-attention-8"
    assert len(names) == len(set(names))
    with pytest.raises(typer.BadParameter, match="no group 'huge': there are small, large, zoo"):
        rows_in(["small", "huge"])


def test_a_configuration_becomes_a_model_of_random_weights_once(tmp_path):
    config = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 1, "patch_size": 16,
              "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}  # fmt: skip
    write(tmp_path, "tiny", 32, {"tiny": config})
    path = tmp_path / file_of("tiny", 32)
    (image,) = onnx.load(path).graph.input
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 3, 32, 32]
    constants = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    assert all(values.std() > 0 for values in constants if values.size > 100)
    path.write_bytes(b"kept")
    write(tmp_path, "tiny", 32, {"tiny": config})
    assert path.read_bytes() == b"kept"


def test_official_graphs_come_in_three_sizes():
    assert {row["model"] for row in ALL if row["model"].startswith("official")} == set(OFFICIAL)


DESCRIBED = {"model": "dav2-small", "size": 518, "ours": "split_heads"}


def measured(variant, ms, **more):
    row = {"variant": variant, "simulated_ms": ms, "passes": "split_heads", "error": None,
           "missing_ops": 0, "cpu_nodes": []}  # fmt: skip
    return {**row, **more}


def test_a_row_has_both_latencies_and_their_ratio():
    wanted = [{**DESCRIBED, "name": "a", "target_ms": 36}]
    (row,) = rows_of(wanted, [measured("a-stock", 50.0), measured("a-ours", 40.0)], "iq-9075")
    assert (row.stock_ms, row.ours_ms, row.target_ms, row.error) == (50.0, 40.0, 36, "")
    assert row.ratio == pytest.approx(0.8)
    assert as_markdown([row]).splitlines()[-1] == "| a | 50.00 | 40.00 | 0.80 | 36.00 |"


def test_targets_are_of_one_chip():
    wanted = [{**DESCRIBED, "name": "a", "target_ms": 36}]
    (row,) = rows_of(wanted, [measured("a-stock", 50.0), measured("a-ours", 40.0)], "sa8797")
    assert row.target_ms is None


@pytest.mark.parametrize(
    ("more", "doubt"),
    [
        ({"missing_ops": 3}, "3 ops without a cost"),
        ({"cpu_nodes": [{"op": "Erf"}]}, "1 nodes on the CPU"),
        ({"cpu_nodes": [{"op": "QuantizeLinear"}]}, ""),
    ],
)
def test_a_latency_that_is_not_the_whole_is_told(more, doubt):
    wanted = [{**DESCRIBED, "name": "a"}]
    (row,) = rows_of(wanted, [measured("a-stock", 50.0), measured("a-ours", 4.0, **more)], "x")
    assert row.error == doubt


def test_a_failed_variant_leaves_a_gap():
    wanted = [{**DESCRIBED, "name": "a"}]
    failed = measured("a-ours", None, error="building: no")
    (row,) = rows_of(wanted, [measured("a-stock", 50.0), failed], "iq-9075")
    assert row == Row("a", 50.0, None, None, "split_heads", "building: no")
    assert "| – | – | – |" in as_markdown([row])
