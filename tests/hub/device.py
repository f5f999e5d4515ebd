"""The loopback service's device: onnxruntime runs the uploaded model and profiles its nodes."""

import functools
import io
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
from qai_hub import public_api_pb2 as api
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries

CYCLES_PER_ELEMENT, CYCLES_PER_LAYER, CYCLES_PER_US = 40, 900, 1500
MEGABYTE = 1 << 20

Samples = dict[str, list[np.ndarray]]


class Device:
    """One uploaded model (an .onnx file, or the zip of a model folder), ready to run."""

    def __init__(self, source: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = _unpacked(source, Path(folder))
            self.model = onnx.load(path, load_external_data=False)
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(self, samples: Samples) -> Samples:
        """Every sample through the model; raises ValueError in the device's words."""
        wanted = [i.name for i in self.session.get_inputs()]
        if sorted(samples) != sorted(wanted):
            raise ValueError(f"Dataset inputs {sorted(samples)} do not match {sorted(wanted)}.")
        names = [output.name for output in self.session.get_outputs()]
        outputs: Samples = {name: [] for name in names}
        for values in zip(*(samples[name] for name in wanted), strict=True):
            for name, value in zip(names, self._run_one(wanted, values), strict=True):
                outputs[name].append(value)
        return outputs

    def _run_one(self, names: list[str], values: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        try:
            return self.session.run(None, dict(zip(names, values, strict=True)))
        except Exception as error:  # onnxruntime's errors share no narrower type
            raise ValueError(f"Inference failed: {error}") from error

    def profile(self, cpu_ops: frozenset[str]) -> api.ProfileDetail:
        """One layer per node, with cycles in proportion to what the node writes."""
        layers = [self._layer(i, node, cpu_ops) for i, node in enumerate(self.model.graph.node)]
        time_us = 100 + sum(layer.execution_cycles for layer in layers) // CYCLES_PER_US
        peak = api.Range(lower=30 * MEGABYTE, upper=34 * MEGABYTE)
        memory = api.ProfileDetail.MemoryUsage(increase=peak, peak=peak)
        return api.ProfileDetail(
            major_version=1,
            minor_version=2,
            execution_time=time_us,
            all_execution_times=[time_us + 7 * (i % 5) for i in range(20)],
            after_execution_peak_memory=peak.upper,
            execution_memory=memory,
            cold_load_time=80_000,
            all_cold_load_times=[80_000],
            after_cold_load_peak_memory=peak.upper,
            warm_load_time=60_000,
            all_warm_load_times=[60_000],
            after_warm_load_peak_memory=peak.upper,
            layer_details=layers,
        )

    def _layer(self, i: int, node: onnx.NodeProto, cpu_ops: frozenset[str]) -> api.LayerDetail:
        cycles = CYCLES_PER_LAYER + CYCLES_PER_ELEMENT * self._elements.get(node.output[0], 1)
        unit = api.COMPUTE_UNIT_CPU if node.op_type in cpu_ops else api.COMPUTE_UNIT_NPU
        return api.LayerDetail(
            id=str(i),
            name=node.name or node.output[0],
            layer_type_name=node.op_type,
            compute_unit=unit,
            execution_cycles=cycles,
        )

    @functools.cached_property
    def _elements(self) -> dict[str, int]:
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            value.name: int(np.prod([d.dim_value or 1 for d in value.type.tensor_type.shape.dim]))
            for value in [*graph.value_info, *graph.output]
        }

    @property
    def inputs(self) -> api.NamedTensorTypeList:
        """Names, shapes and types of the model's inputs."""
        return _specs(self.session.get_inputs())

    @property
    def outputs(self) -> api.NamedTensorTypeList:
        """Names, shapes and types of the model's outputs."""
        return _specs(self.session.get_outputs())


def _specs(values: list[onnxruntime.NodeArg]) -> api.NamedTensorTypeList:
    types = [
        api.NamedTensorType(
            name=value.name,
            tensor_type=api.TensorType(shape=value.shape, dtype=_DTYPES[value.type]),
        )
        for value in values
    ]
    return api.NamedTensorTypeList(types=types)


_DTYPES = {
    "tensor(float)": api.TENSOR_DTYPE_FLOAT32,
    "tensor(float16)": api.TENSOR_DTYPE_FLOAT16,
    "tensor(int32)": api.TENSOR_DTYPE_INT32,
    "tensor(int64)": api.TENSOR_DTYPE_INT64,
    "tensor(uint8)": api.TENSOR_DTYPE_UINT8,
}


@functools.lru_cache(maxsize=8)
def device_for(source: bytes) -> Device:
    """The same model runs many times in a test session; it is loaded once."""
    return Device(source)


def _unpacked(source: bytes, folder: Path) -> Path:
    if not zipfile.is_zipfile(io.BytesIO(source)):
        (folder / "model.onnx").write_bytes(source)
        return folder / "model.onnx"
    zipfile.ZipFile(io.BytesIO(source)).extractall(folder)
    (path,) = (path for path in folder.rglob("*.onnx") if path.is_file())
    return path


def samples_in(h5: bytes) -> Samples:
    """The dataset that the client wrote."""
    with h5py.File(io.BytesIO(h5), "r") as file:
        return h5_to_dataset_entries(file)


def h5_of(samples: Samples) -> bytes:
    """A dataset as the client reads it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset_entries_to_h5(samples, file)
    return buffer.getvalue()
