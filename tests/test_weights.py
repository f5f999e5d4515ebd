"""Weights: mapped bytes, exact values until they are written, one line for what is missing."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from compiler.errors import UserError
from compiler.graph import Graph
from compiler.weights import (
    ALIGNMENT_NBYTES,
    MappedWeight,
    NewWeight,
    WeightsFile,
    external_source,
    is_float,
)

TEXT = "g (float[4,16] x) => (float[4,32] y) <float[16,32] w> { y = MatMul(x, w) }"


def external(model: onnx.ModelProto, folder: Path, **changed: str | None) -> Path:
    """The model with its weights in `data.bin`, and some of what is said about them changed."""
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    again = onnx.load(path, load_external_data=False)
    (weight,) = again.graph.initializer
    said = {entry.key: entry.value for entry in weight.external_data} | changed
    del weight.external_data[:]
    for key, value in said.items():
        if value is not None:
            weight.external_data.add(key=key, value=value)
    path.write_bytes(again.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        values_at(path)
    (line,) = str(error.value).splitlines()
    return line


def values_at(path: Path) -> np.ndarray:
    graph = Graph.load(path)
    return graph.values(graph.nodes[0].inputs[1])


@pytest.mark.parametrize("length", ["given", "left out"])
def test_external_data_is_mapped(model_of, tmp_path, length):
    model = model_of(TEXT)
    expected = numpy_helper.to_array(model.graph.initializer[0])
    path = external(model, tmp_path, **({"length": None} if length == "left out" else {}))
    values = values_at(path)
    np.testing.assert_array_equal(values, expected)
    assert not values.flags.writeable


def test_external_data_in_a_folder_below(model_of, tmp_path):
    path = external(model_of(TEXT), tmp_path)
    expected = values_at(path).copy()
    (tmp_path / "below").mkdir()
    (tmp_path / "data.bin").rename(tmp_path / "below" / "data.bin")
    (tmp_path / "second").mkdir()
    np.testing.assert_array_equal(values_at(external_at(path, "below/data.bin")), expected)
    np.testing.assert_array_equal(
        values_at(external_at(path, "second/../below/data.bin")), expected
    )


def external_at(path: Path, location: str) -> Path:
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../data.bin", "/etc/passwd", "a/../../data.bin", "", ".."])
def test_external_data_outside_the_folder(model_of, tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(model_of(TEXT), folder)
    (tmp_path / "data.bin").write_bytes((folder / "data.bin").read_bytes())
    line = refused(external_at(path, location))
    assert "is outside the model's folder" in line
    assert "'w'" in line
    assert repr(location) in line


def test_a_link_that_leads_outside(model_of, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(model_of(TEXT), folder)
    (folder / "data.bin").rename(tmp_path / "data.bin")
    (folder / "data.bin").symlink_to(tmp_path / "data.bin")
    assert "is outside the model's folder" in refused(path)


def test_external_data_that_is_not_there(model_of, tmp_path):
    path = external(model_of(TEXT), tmp_path)
    (tmp_path / "data.bin").unlink()
    assert refused(path).endswith(f"{tmp_path / 'data.bin'} does not exist")


def test_a_truncated_file_of_weights(model_of, tmp_path):
    path = external(model_of(TEXT), tmp_path)
    whole = (tmp_path / "data.bin").read_bytes()
    (tmp_path / "data.bin").write_bytes(whole[:-1])
    line = refused(path)
    assert f"bytes 0..{len(whole)} are beyond the end" in line
    assert "truncated" in line


WRONG = {
    "too short": {"length": "2000"},
    "too long": {"length": "4096", "offset": "0"},
    "negative": {"offset": "-4"},
    "not a number": {"length": "many"},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_lengths(model_of, tmp_path, fault):
    path = external(model_of(TEXT), tmp_path, **WRONG[fault])
    with (tmp_path / "data.bin").open("ab") as file:
        file.write(bytes(4096))
    assert "'w'" in refused(path)


# -- new weights -----------------------------------------------------------------------------------


def test_a_new_weight_is_rounded_once_and_only_when_it_is_written():
    values = np.array([1 / 3, 1e-9, 2.0])
    weight = NewWeight(values, np.dtype(np.float32), "a third")
    assert weight.exact().dtype == np.float64
    np.testing.assert_array_equal(weight.exact(), values)
    assert weight.load().dtype == np.float32
    np.testing.assert_array_equal(weight.load(), values.astype(np.float32))
    assert numpy_helper.to_array(weight.tensor).dtype == np.float32
    assert (weight.shape, weight.nbytes) == ((3,), 12)


def test_integers_are_not_promoted():
    weight = NewWeight(np.array([2**53 + 1]), np.dtype(np.int64), "n")
    assert weight.exact().dtype == np.int64
    assert int(weight.exact()[0]) == 2**53 + 1


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"])
def test_floats_are_promoted(kind):
    onnx_type = TensorProto.DataType.Value(kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx_type)
    values = np.array([[0.5, -3.0], [256.0, 1 / 3]])
    weight = NewWeight(values.astype(dtype), dtype, kind)
    assert is_float(onnx_type)
    assert weight.exact().dtype == np.float64
    np.testing.assert_array_equal(weight.exact(), values.astype(dtype).astype(np.float64))
    assert weight.tensor.data_type == onnx_type


def test_a_transposed_view_is_written_in_order(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(
        numpy_helper.to_array(NewWeight(values, values.dtype, "t").tensor), values
    )
    weight = WeightsFile(tmp_path / "w.bin").append("t", values, TensorProto.FLOAT)
    np.testing.assert_array_equal(weight.load(), values)


# -- the file of weights ---------------------------------------------------------------------------


def test_tensors_begin_on_pages(tmp_path):
    file = WeightsFile(tmp_path / "w.bin")
    kinds = [np.float32, np.float16, np.int8]
    arrays = [np.arange(5 * k + 1).astype(kind) for k, kind in enumerate(kinds)]
    types = [onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in kinds]
    weights = [
        file.append(f"w{k}", a, t) for k, (a, t) in enumerate(zip(arrays, types, strict=True))
    ]
    for k, (weight, array) in enumerate(zip(weights, arrays, strict=True)):
        path, offset, length = external_source(weight.tensor, tmp_path)
        assert (path, offset % ALIGNMENT_NBYTES, length) == (tmp_path / "w.bin", 0, array.nbytes)
        np.testing.assert_array_equal(weight.load(), array)
        assert weight.tensor.name == f"w{k}"
        assert file.holds(weight)


def test_a_weight_of_another_file_is_adopted_byte_for_byte(model_of, tmp_path):
    path = external(model_of(TEXT), tmp_path)
    graph = Graph.load(path)
    weight = graph.weight(graph.nodes[0].inputs[1])
    file = WeightsFile(tmp_path / "mine.bin")
    assert isinstance(weight, MappedWeight)
    assert not file.holds(weight)
    adopted = file.adopt(weight)
    assert file.holds(adopted)
    assert adopted.load().tobytes() == weight.load().tobytes()


def test_an_empty_tensor(tmp_path):
    weight = WeightsFile(tmp_path / "w.bin").append("e", np.zeros((0, 3), np.float32), 1)
    assert weight.load().shape == (0, 3)


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    """A build into the same folder, in the same process."""
    for value in (1.0, 2.0):
        path = tmp_path / "w.bin"
        path.unlink(missing_ok=True)
        weight = WeightsFile(path).append("w", np.full(1000, value, np.float32), 1)
        assert set(weight.load().tolist()) == {value}
