"""The matrices of a Resize, against the float64 kernel that the verifier runs on unit samples."""

import numpy as np
import pytest

from compiler.interpolation import NotLinear, matrices_of
from compiler.verify.float64 import evaluate

COORDINATES = (
    "align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",
)  # fmt: skip


def of_height(height: int, attributes: str, **given: str) -> str:
    """A Resize of the height alone, to `sizes` or by `scales`."""
    ((name, values),) = given.items()
    kind, places = ("float[4]", "s") if name == "scales" else ("int64[4]", ", s")
    head = f"g (float[1,1,{height},5] x) => (float[1,1,n,5] y) <{kind} s = {{{values}}}>"
    return f"{head} {{ y = Resize <{attributes}>(x, , {places}) }}"


def in_coordinates(mode: str) -> str:
    return f'coordinate_transformation_mode="{mode}"'


def by_kernel(graph) -> np.ndarray:
    """What the kernel makes of each unit sample along the height: the columns of the matrix."""
    (node,) = graph.to_model().graph.node
    constants = {tensor.name: tensor.values for tensor in graph.constants()}
    length = graph.inputs[0].shape[2]
    columns = []
    for place in range(length):
        x = np.zeros(graph.inputs[0].shape)
        x[:, :, place] = 1
        columns.append(evaluate([node], constants, {"x": x}, ["y"], {"": 19})["y"][0, 0, :, 0])
    return np.stack(columns, axis=1)


def agrees(graph) -> None:
    ((axis, matrix),) = matrices_of(graph, graph.nodes[0]).items()
    assert axis == 2
    np.testing.assert_allclose(matrix, by_kernel(graph), rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [(6, 9), (6, 3), (5, 1), (1, 4), (7, 10), (9, 4)])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("more", ["", ", exclude_outside=1", ", antialias=1"])
def test_sizes(graph_of, sizes, coordinates, mode, more):
    attributes = f'mode="{mode}", {in_coordinates(coordinates)}{more}'
    agrees(graph_of(of_height(sizes[0], attributes, sizes=f"1, 1, {sizes[1]}, 5"), 19))


@pytest.mark.parametrize("scale", [1.5, 0.7, 2.3, 3.0])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ['mode="linear"', 'mode="cubic", cubic_coeff_a=-0.5'])
def test_scales(graph_of, scale, coordinates, mode):
    """Where the length is no whole multiple the scale, not the ratio of lengths, counts."""
    attributes = f"{mode}, {in_coordinates(coordinates)}"
    agrees(graph_of(of_height(7, attributes, scales=f"1, 1, {scale}, 1"), 19))


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ["ceil", "floor", "round_prefer_ceil", "round_prefer_floor"])
@pytest.mark.parametrize("sizes", [(6, 12), (6, 9), (9, 4)])
def test_nearest(graph_of, coordinates, rounding, sizes):
    attributes = f'mode="nearest", nearest_mode="{rounding}", {in_coordinates(coordinates)}'
    agrees(graph_of(of_height(sizes[0], attributes, sizes=f"1, 1, {sizes[1]}, 5"), 19))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_a_kept_aspect_ratio(graph_of, policy):
    """One scale for all axes that are resized, whatever sizes are asked for."""
    graph = graph_of(
        """g (float[1,1,6,8] x) => (float[1,1,n,m] y) <int64[2] s = {9, 20}> {
            y = Resize <mode="linear", axes=[2, 3], keep_aspect_ratio_policy="P">(x, , , s)
        }""".replace("P", policy), 18
    )  # fmt: skip
    matrices = matrices_of(graph, graph.nodes[0])
    sizes = {"not_larger": {2: (9, 6), 3: (12, 8)}, "not_smaller": {2: (15, 6), 3: (20, 8)}}
    assert {axis: matrix.shape for axis, matrix in matrices.items()} == sizes[policy]


def test_axes_counted_from_the_end(graph_of):
    graph = graph_of(
        """g (float[1,1,6,8] x) => (float[1,1,9,4] y) <int64[2] s = {4, 9}> {
            y = Resize <mode="linear", axes=[-1, 2]>(x, , , s)
        }""", 18
    )  # fmt: skip
    matrices = matrices_of(graph, graph.nodes[0])
    assert {axis: matrix.shape for axis, matrix in matrices.items()} == {2: (9, 6), 3: (4, 8)}


REFUSED = {
    "a crop": (
        'y = Resize <mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        "(x, r, , s)",
        "coordinate_transformation_mode=tf_crop_and_resize is not supported",
    ),
    "sizes that are computed": (
        'z = Shape(x) y = Resize <mode="linear">(x, , , z)',
        "'z' is not constant",
    ),
    "a length that rounds to itself": (
        'y = Resize <mode="linear">(x, , slightly)',
        "axis 2 keeps its 6 samples at a scale of 1.05, where runtimes differ",
    ),
    "nearest with antialias": (
        'y = Resize <mode="nearest", antialias=1>(x, , , s)',
        "antialias is not defined for mode=nearest",
    ),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(graph_of, body, reason):
    graph = graph_of(
        "g (float[1,1,6,8] x) => (y) "
        f"<int64[4] s = {{1, 1, 9, 20}}, float[8] r = {{0, 0, 0, 0, 1, 1, 1, 1}}, "
        f"float[4] slightly = {{1, 1, 1.05, 2.5}}> {{ {body} }}", 18
    )  # fmt: skip
    with pytest.raises(NotLinear, match=f"^{reason}$"):
        matrices_of(graph, graph.nodes[-1])


def test_refuses_a_dynamic_axis_that_changes_and_no_other(graph_of):
    text = """g (float[n,1,6,w] x) => (float[n,1,9,v] y) <float[4] s = {1, 1, 1.5, SCALE}> {
        y = Resize <mode="linear">(x, , s)
    }"""
    kept = graph_of(text.replace("SCALE", "1").replace(",v]", ",w]"), 18)
    assert list(matrices_of(kept, kept.nodes[0])) == [2]
    changed = graph_of(text.replace("SCALE", "2"), 18)
    with pytest.raises(NotLinear, match="axis 3 of 'x' is dynamic"):
        matrices_of(changed, changed.nodes[0])


def test_refuses_an_old_opset(graph_of):
    text = "g (float[1,1,6,8] x) => (float[1,1,n,m] y) <float[4] s = {1, 1, 2, 2}>"
    graph = graph_of(f'{text} {{ y = Resize <mode="linear">(x, s) }}', 10)
    with pytest.raises(NotLinear, match="opset 10 leaves a Resize's coordinates open"):
        matrices_of(graph, graph.nodes[0])
