"""The map's groups: all nodes, each once, few enough in a group to be laid out at once."""

import onnx

from compiler.report.clusters import LARGEST, clusters_of
from compiler.report.stages import read_stages


def stage(tmp_path, names: list[str]):
    """A chain of Relus with the given names."""
    nodes = [onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=name)
             for i, name in enumerate(names)]  # fmt: skip
    ends = [onnx.helper.make_tensor_value_info(f"t{i}", 1, [4]) for i in (0, len(names))]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "00_source.onnx")
    return read_stages(tmp_path, ["00_source"])[0]


def test_every_node_of_a_build_is_in_one_group(built):
    (last,) = read_stages(built, ["05_flip_average"])
    groups = clusters_of(last)
    assert sorted(i for _, members in groups for i in members) == list(range(len(last.nodes)))
    assert max(len(members) for _, members in groups) <= LARGEST


def test_modules_give_the_titles_and_a_copy_is_beside_its_original(built):
    stages = read_stages(built, ["00_source", "04_split_heads", "05_flip_average"])
    titles = [title for title, _ in clusters_of(stages[-1])]
    assert "network.backbone.encoder.layer.3" in titles
    assert "flip_average.network.backbone.encoder.layer.3" in titles


def test_names_that_are_paths_are_modules(tmp_path):
    names = [f"/layer.{i // 40}/part_{i % 40}" for i in range(160)]
    groups = clusters_of(stage(tmp_path, names))
    assert groups == [(f"layer.{i}", list(range(40 * i, 40 * i + 40))) for i in range(4)]


def test_a_model_without_modules_is_cut_into_runs(tmp_path):
    groups = clusters_of(stage(tmp_path, [f"n{i}" for i in range(1000)]))
    assert max(len(members) for _, members in groups) <= LARGEST
    assert [i for _, members in groups for i in members] == list(range(1000))


def test_a_module_at_both_ends_of_the_model_is_two_groups(tmp_path):
    names = ["/io/a", *(f"/body/n{i}" for i in range(LARGEST)), "/io/b"]
    groups = clusters_of(stage(tmp_path, names))
    assert [(title, len(members)) for title, members in groups] == [
        ("io", 1), ("body", LARGEST), ("io", 1)
    ]  # fmt: skip
