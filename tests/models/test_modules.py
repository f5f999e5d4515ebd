"""A user's own module: how it is called, the names of inputs and outputs, what is refused."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import compiler
from compiler.errors import UserError
from models import ModelError, resolve_module

X = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
EXPORTERS = ["dynamo", "torchscript"]


class Scores(nn.Module):
    """Two inputs, of which the second may be left out, and a dictionary of results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5))

    def forward(self, tokens, mask=None, *, gain=None):
        hidden = self.inner(tokens)
        hidden = hidden if mask is None else hidden + mask
        hidden = hidden if gain is None else hidden * gain
        return {"scores": hidden.softmax(-1), "largest": hidden.amax(-1)}


class Pair(nn.Module):
    def forward(self, x):
        return x + 1, (2 * x).relu()


def refused(*arguments, **options) -> str:
    with pytest.raises(ModelError) as error:
        resolve_module(*arguments, **options)
    (line,) = str(error.value).splitlines()
    return line


def written(folder, module, inputs, **options) -> onnx.ModelProto:
    return onnx.load(resolve_module(module, inputs, **options).write(folder))


def names(values) -> list[str]:
    return [value.name for value in values]


def test_it_is_refused_in_one_line():
    assert "not a int" in refused(3, {})
    assert "Pair needs inputs={name: example tensor, …}" in refused(Pair(), None)
    assert "Pair needs inputs" in refused(Pair(), {})
    assert "input 'x' is a str, no tensor" in refused(Pair(), {"x": "image"})
    words = "inputs ['image'] are no arguments of Scores's forward(tokens, mask, gain): name all"
    assert words in refused(Scores(), {"tokens": X, "image": X})
    assert "writes opsets 17 to 25, not 3" in refused(Pair(), {"x": X}, opset=3)


def test_inputs_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ModelError) as error:
        resolve_module(Scores(), {"tokens": X[..., :3]}).write(tmp_path)
    (line,) = str(error.value).splitlines()
    assert line.startswith("Scores fails on the inputs {'tokens': [2, 3, 3]}: RuntimeError: mat1")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_can_not_be_exported_names_the_other_exporter(exporter, tmp_path):
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    source = resolve_module(Eigenvalues(), {"x": torch.eye(3)}, exporter=exporter)
    other = "torchscript" if exporter == "dynamo" else "dynamo"
    with pytest.raises(ModelError) as error:
        source.write(tmp_path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"the {exporter} exporter can't export Eigenvalues: ")
    assert line.endswith(f"; try exporter={other!r}")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_it_computes_what_the_module_computes(exporter, tmp_path):
    module = Scores()
    inputs = {"gain": torch.full((5,), 3.0), "tokens": X, "mask": torch.arange(5.0)}
    path = resolve_module(module, inputs, exporter=exporter).write(tmp_path)
    model = onnx.load(path)
    assert names(model.graph.input) == ["tokens", "mask", "gain"]
    assert names(model.graph.output) == ["scores", "largest"]
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    actual = onnxruntime.InferenceSession(str(path)).run(None, feeds)
    expected = module.eval()(**inputs)
    for values, tensor in zip(actual, expected.values(), strict=True):
        np.testing.assert_allclose(values, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_other_names_go_by_position(exporter, tmp_path):
    model = written(tmp_path, Scores(), {"image": X, "bias": X[..., :1]}, exporter=exporter)
    assert names(model.graph.input) == ["image", "bias"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_names_of_outputs(exporter, tmp_path):
    assert names(written(tmp_path, Pair(), {"x": X}, exporter=exporter).graph.output) == [
        "output_0", "output_1",
    ]  # fmt: skip
    model = written(tmp_path, nn.ReLU(), {"input": X}, exporter=exporter)
    assert names(model.graph.output) == ["output"]


def test_the_module_is_left_as_it_was(tmp_path):
    module = Scores().train()
    module.inner[0].eval()
    model = written(tmp_path, module, {"tokens": X.numpy()})
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert "Dropout" not in [node.op_type for node in model.graph.node]


def test_it_is_built_through_a_pipeline(tmp_path):
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    folder = tmp_path / "out"
    inputs = {"x": torch.randn(1, 5, 8)}
    record = compiler.build(Tokens(), "split_heads", inputs=inputs, output=folder)
    assert (record["model"]["name"], record["inputs"]) == ("Tokens", {"x": "float[1×5×8]"})
    assert (record["stages"][-1]["rewrites"], record["stages"][-1]["float64"]["status"]) == (
        1, "pass",
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*record["files"], "build.json", "report.html"]
    )


def test_the_folder_that_an_exporter_wrote_is_built(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    resolve_module(Scores(), {"tokens": X}).write(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["source.onnx", "source.onnx.data"]
    record = compiler.build(str(folder), "", output=tmp_path / "out")
    assert (record["model"]["name"], record["inputs"]) == ("exported", {"tokens": "float[2×3×4]"})


def test_settings_that_do_not_apply(tmp_path):
    with pytest.raises(UserError, match=r"inputs= is for a torch\.nn\.Module: 'a\.onnx' has"):
        compiler.build("a.onnx", "split_heads", inputs={"x": X})
    for options in ({"size": "350"}, {"weights": "twin:0"}):
        with pytest.raises(UserError, match=r"do not apply to a torch\.nn\.Module"):
            compiler.build(Pair(), "split_heads", inputs={"x": X}, **options)


def test_a_name_needs_no_torch():
    code = (
        "import sys, models; models.resolve('dav2-small', weights='twin:3'); "
        "sys.exit('models.modules' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
