"""One model as AI Hub takes it: exactly one .onnx and at most one .data, with its own weights only.

A build's folder holds several stages and the weights of all of them; qai-hub refuses such a folder
(`qai_hub.client._get_model_dir_type`). External weights are copied from file to file, in pieces.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from compiler.building import appearing_whole
from compiler.errors import UserError
from compiler.graph import read_model
from compiler.weights import EMBED_BELOW_NBYTES, MappedWeight, WeightsFile

MODEL_NAME, DATA_NAME = "model.onnx", "model.data"
# Protobuf refuses 2 GB. Half of it leaves a reader room to write the model again with inferred
# shapes and folded constants, as AI Hub's converters do.
ONE_FILE_BELOW_NBYTES = 1 << 30


def package(model: Path, folder: Path) -> Path:
    """Writes a model and the weights that it uses into a folder of their own; returns what to send.

    That is the .onnx where it holds its weights, else the folder, which then holds a .data as well.
    The same model gives the same bytes, wherever it lies. An earlier package is replaced.

    Raises:
        UserError: for a bad model, and a folder that holds anything else.
    """
    proto = read_model(model)
    _drop_unused(proto.graph)
    for tensor in filter(_is_external, _nested_tensors(proto.graph)):
        tensor.raw_data = b"".join(MappedWeight(tensor, model.parent).chunks())
        _forget_location(tensor)
    external = [MappedWeight(t, model.parent) for t in proto.graph.initializer if _is_external(t)]
    nbytes = proto.ByteSize() + sum(_length(weight) for weight in external)
    _remove_earlier(folder, model)
    with appearing_whole(folder) as beside:
        if nbytes < ONE_FILE_BELOW_NBYTES:
            _write_as_one(proto, external, beside)
        else:
            _write_as_two(proto, model.parent, beside)
    return folder if (folder / DATA_NAME).exists() else folder / MODEL_NAME


def _remove_earlier(folder: Path, model: Path) -> None:
    if folder.resolve() == model.parent.resolve():
        raise UserError(f"{folder} holds the model itself: choose another folder to package it in")
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {MODEL_NAME, DATA_NAME}:
        shutil.rmtree(folder)


def _write_as_one(model: onnx.ModelProto, external: list[MappedWeight], folder: Path) -> None:
    """Writes the model's protobuf message, taking the external weights from disk one by one."""
    graph = model.graph
    _keep_only(graph, [tensor for tensor in graph.initializer if not _is_external(tensor)])
    heads = [_head(weight) for weight in external]
    nbytes = graph.ByteSize() + sum(map(len, heads)) + sum(map(_length, external))
    content = graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    with (folder / MODEL_NAME).open("wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.write(_field(onnx.ModelProto.GRAPH_FIELD_NUMBER, nbytes))
        file.write(content)
        for head, weight in zip(heads, external, strict=True):
            file.write(head)
            file.writelines(weight.chunks())


def _head(weight: MappedWeight) -> bytes:
    """The bytes of an initializer of a GraphProto up to those of its values."""
    tensor = TensorProto()
    tensor.CopyFrom(weight.tensor)
    _forget_location(tensor)
    raw = _field(TensorProto.RAW_DATA_FIELD_NUMBER, _length(weight))
    content: bytes = tensor.SerializeToString(deterministic=True) + raw
    nbytes = len(content) + _length(weight)
    return _field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, nbytes) + content


def _field(number: int, nbytes: int) -> bytes:
    """How a field of `nbytes` begins: its number and its length, as protobuf writes them."""
    head = bytearray([number << 3 | 2])
    while nbytes > 0x7F:
        head.append(nbytes & 0x7F | 0x80)
        nbytes >>= 7
    return bytes([*head, nbytes])


def _write_as_two(model: onnx.ModelProto, source: Path, folder: Path) -> None:
    """Large initializers go to the .data file, everything else stays in the .onnx."""
    weights = WeightsFile(folder / DATA_NAME)
    for tensor in model.graph.initializer:
        weight = MappedWeight(tensor, source)
        if _is_external(tensor):
            tensor.CopyFrom(weights.adopt(weight).tensor)
        elif tensor.ByteSize() >= EMBED_BELOW_NBYTES:
            stored = weights.append(tensor.name, weight.load(), tensor.data_type)
            tensor.CopyFrom(stored.tensor)
    (folder / MODEL_NAME).write_bytes(model.SerializeToString(deterministic=True))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Forgets the initializers that nothing reads; one that is an input too is its default."""
    used = {*_reads(graph), *(value.name for value in graph.input)}
    _keep_only(graph, [tensor for tensor in graph.initializer if tensor.name in used])


def _keep_only(graph: onnx.GraphProto, initializers: list[TensorProto]) -> None:
    if len(initializers) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(initializers)


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that nodes and outputs take, in subgraphs too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for body in _bodies(node):
            yield from _reads(body)


def _nested_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The tensors in attributes and subgraphs."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
        for body in _bodies(node):
            yield from body.initializer
            yield from _nested_tensors(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _length(weight: MappedWeight) -> int:
    assert weight.source is not None
    return weight.source[2]


def _forget_location(tensor: TensorProto) -> None:
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
