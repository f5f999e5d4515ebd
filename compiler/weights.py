"""Weights that stay on disk: mapped when a pass asks for them, written as they stand when not.

Three kinds of values hang on a graphsurgeon `Constant`:

- `MappedWeight`: bytes of an ONNX file or its external data, mapped read-only;
- `NewWeight`: what a pass made. Slices are views of mapped bytes; the results of arithmetic are
  float64 and are rounded once, to the storage type, when they are written. So what the verifier
  proves in float64 is what is written, up to that one rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from compiler.errors import UserError

Array = NDArray[Any]

# Smaller tensors are kept inside the .onnx file: shape inference needs them, and people read them.
EMBED_BELOW_NBYTES = 1024
# The page size that the ONNX specification recommends, so that readers can map single tensors.
ALIGNMENT_NBYTES = 4096
_CHUNK_NBYTES = 1 << 22
# Types of less than a byte: ONNX packs them, NumPy does not.
_BITS: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}
_FLOATS = {
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
}


def is_float(onnx_type: int) -> bool:
    """Whether an ONNX element type is one of the floating-point types that are promoted."""
    return onnx_type in _FLOATS


def onnx_type_of(dtype: Any) -> int:
    """The ONNX element type of a NumPy dtype, or of graphsurgeon's own int for exotic ones."""
    return (
        dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    )


class Weight(LazyValues):  # type: ignore[misc]
    """What every weight of ours can do; graphsurgeon reads `tensor`, `shape`, `dtype`, `nbytes`."""

    shape: tuple[int, ...]
    dtype: Any
    nbytes: int

    tensor: Any

    def load(self) -> Array:
        """The values in their storage type."""
        raise NotImplementedError

    def unrounded(self) -> Array:
        """The values as they are held: of a wider type where a pass has made them."""
        return self.load()

    def exact(self) -> Array:
        """The values before rounding: float64 for floats, as they are for anything else."""
        values = self.unrounded()
        return values.astype(np.float64) if is_float(onnx_type_of(self.dtype)) else values


class MappedWeight(Weight):
    """A tensor of an ONNX file; external data is mapped from `folder` when it is asked for."""

    def __init__(self, tensor: TensorProto, folder: Path) -> None:
        super().__init__(tensor)
        self.shape = tuple(tensor.dims)
        self.source = external_source(tensor, folder) if tensor.data_location else None

    def load(self) -> Array:
        """The values in their storage type; a read-only view of the file where that is possible."""
        if self.source is None:
            return numpy_helper.to_array(self.tensor)
        path, offset, length = self.source
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        count = math.prod(self.shape)
        if self.tensor.data_type in _BITS or dtype.itemsize * count != length:
            return _unpack(self.tensor, path, offset, length)
        return _mapped(path, offset, length).view(dtype).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The external bytes as they are on disk, read piece by piece and not kept."""
        assert self.source is not None
        path, offset, length = self.source
        with path.open("rb") as file:
            file.seek(offset)
            for done in range(0, length, _CHUNK_NBYTES):
                yield file.read(min(_CHUNK_NBYTES, length - done))


class NewWeight(Weight):
    """Values that a pass made, with the sentence that says how (`qkv.weight[:, 64:128]`)."""

    def __init__(self, values: Array, dtype: Any, how: str) -> None:
        self._values = values
        self.how = how
        self.shape = tuple(values.shape)
        self.dtype = dtype
        self.nbytes = (
            values.size * onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(dtype)).itemsize
        )

    @property
    def tensor(self) -> TensorProto:
        """The rounded values as an embedded tensor; graphsurgeon names it after its constant."""
        return numpy_helper.from_array(np.asarray(self.load(), order="C"))

    def load(self) -> Array:
        """The values rounded to their storage type."""
        storage = onnx.helper.tensor_dtype_to_np_dtype(onnx_type_of(self.dtype))
        return self._values if self._values.dtype == storage else self._values.astype(storage)

    def unrounded(self) -> Array:
        """The values as the pass made them."""
        return self._values


def fits_its_shape(tensor: TensorProto) -> bool:
    """Whether an embedded tensor has as many bytes as its shape needs."""
    if not tensor.HasField("raw_data"):
        return True
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits = _BITS.get(tensor.data_type, 8 * dtype.itemsize)
    needed: int = -(-math.prod(tensor.dims) * bits // 8)
    return len(tensor.raw_data) == needed


def external_source(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """Where a tensor's external bytes are: (file, offset, length in bytes).

    Raises UserError when the location leaves the model's folder or the file is too short.
    """
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    path = Path(os.path.normpath(folder / location))
    if not location or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"weight {tensor.name!r}: external data {location!r} is outside the model's folder; "
            "move it beside the .onnx file and save the model again"
        )
    if not path.is_file():
        raise UserError(f"weight {tensor.name!r}: external data file {path} does not exist")
    try:
        offset = int(info.get("offset", 0))
        length = int(info["length"]) if "length" in info else path.stat().st_size - offset
    except ValueError as error:
        raise UserError(f"weight {tensor.name!r}: {error} in its external data") from error
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise UserError(
            f"weight {tensor.name!r}: bytes {offset}..{offset + length} are beyond the end of "
            f"{path} ({path.stat().st_size} bytes); the file is truncated"
        )
    return path, offset, length


def _mapped(path: Path, offset: int, length: int) -> Array:
    """Bytes of a file, read-only, through one mapping a file.

    A mapping of its own for each of a thousand slices would count, and keep, the same pages of
    memory a thousand times.
    """
    if length == 0:
        return np.zeros(0, np.uint8)
    inode = path.stat().st_ino
    known = _mappings.get(path)
    if known is None or known[0] != inode or known[1].size < offset + length:
        known = _mappings[path] = (inode, np.memmap(path, np.uint8, "r"))
    return known[1][offset : offset + length].view(np.ndarray)


_mappings: dict[Path, tuple[int, Array]] = {}


def _unpack(tensor: TensorProto, path: Path, offset: int, length: int) -> Array:
    inline = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    with path.open("rb") as file:
        file.seek(offset)
        inline.raw_data = file.read(length)
    try:
        return numpy_helper.to_array(inline)
    except ValueError as error:
        raise UserError(
            f"weight {tensor.name!r}: {length} bytes of external data do not fit its shape "
            f"{list(tensor.dims)}"
        ) from error


class WeightsFile:
    """The one file that all stages of a build share; each stage appends what its pass made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def append(self, name: str, values: Array, onnx_type: int) -> MappedWeight:
        """Writes a tensor at the end of the file and returns it as a mapped weight."""
        if onnx_type in _BITS:
            packed = numpy_helper.from_array(values).raw_data
            return self._append(name, [packed], values.shape, onnx_type)
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return self._append(name, [flat.data], values.shape, onnx_type)

    def adopt(self, weight: MappedWeight) -> MappedWeight:
        """Copies the bytes of a weight that lives in another file, whatever their type."""
        tensor = weight.tensor
        return self._append(tensor.name, weight.chunks(), tuple(tensor.dims), tensor.data_type)

    def holds(self, weight: Weight) -> bool:
        """Whether a weight's bytes are already in this file."""
        source = weight.source if isinstance(weight, MappedWeight) else None
        return source is not None and source[0] == self.path

    def _append(
        self,
        name: str,
        pieces: Iterable[bytes | memoryview],
        shape: tuple[int, ...],
        onnx_type: int,
    ) -> MappedWeight:
        with self.path.open("ab") as file:
            file.write(b"\0" * (-file.tell() % ALIGNMENT_NBYTES))
            offset = file.tell()
            for piece in pieces:
                file.write(piece)
            length = file.tell() - offset
        tensor = TensorProto(name=name, data_type=onnx_type, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return MappedWeight(tensor, self.path.parent)
