"""The whole model as a match: what passes that wrap a network ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.graph import PASS_KEY, Graph, Tensor
from compiler.region import TensorType
from compiler.rewrite import Signature

_COLOURS = 4  # red, green, blue and depth or opacity


@dataclass(frozen=True)
class Network:
    """The whole model between its inputs and its outputs."""

    place: str
    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def signature(self) -> Signature:
        """The names and types of the inputs and outputs."""
        return Signature(
            {tensor.name: TensorType.of(tensor) for tensor in self.inputs},
            {tensor.name: TensorType.of(tensor) for tensor in self.outputs},
        )

    def image_and_map(self, image: str, result: str) -> tuple[Tensor, Tensor]:
        """The tensors that the function of this name chooses."""
        names = image_and_map(self.signature, image, result)
        (source,) = (tensor for tensor in self.inputs if tensor.name == names[0])
        (sink,) = (tensor for tensor in self.outputs if tensor.name == names[1])
        return source, sink


def whole_network(graph: Graph) -> Iterator[Network]:
    """The one match that every model has."""
    yield Network(graph.outputs[0].name, graph.inputs, graph.outputs)


class NoMap(Exception):  # noqa: N818 - a refusal, not an error
    """Why a model isn't from an image to a map."""


def image_and_map(signature: Signature, image: str = "", result: str = "") -> tuple[str, str]:
    """The names of a model's float image N×C×H×W and of its float map …×H×W.

    Args:
        signature: may have other inputs and outputs, too.
        image: the input that is meant; if empty, the only one that is an image, or of several
            the only one that is grey or in colour (keys and values have four dimensions, too).
        result: the output that is meant; if empty, the only one that is a map.

    Raises:
        NoMap: if there is none, or no telling which.
    """
    images = {name: _is_image(kind) for name, kind in signature.inputs.items()}
    pictures = {name: fits and (signature.inputs[name].shape or ())[1] in (1, 3)
                for name, fits in images.items()}  # fmt: skip
    if not image and sum(pictures.values()) == 1:
        images = pictures
    maps = {name: len(kind.fixed_shape or ()) >= 3 and kind.is_float
            for name, kind in signature.outputs.items()}  # fmt: skip
    return (
        _chosen("input", image, signature.inputs, images, "a float N×C×H×W image"),
        _chosen("output", result, signature.outputs, maps, "a float map …×H×W"),
    )


def _is_image(kind: TensorType) -> bool:
    """Whether a type is float N×C×H×W; N×H×W×C shows by a last axis too short for columns."""
    shape = kind.fixed_shape or ()
    return len(shape) == 4 and kind.is_float and not shape[3] <= _COLOURS < shape[1]


def not_image_to_map(network: Network, image: str, result: str) -> str | None:
    """Why the map can't be replaced: there is no image or no map, or other outputs come from it."""
    try:
        _, sink = network.image_and_map(image, result)
    except NoMap as reason:
        return str(reason)
    for reader in sink.outputs if len(network.outputs) > 1 else []:
        return f"{reader.op} {reader.name!r} reads the output {sink.name!r}, for another output"
    return None


def _chosen(
    what: str, wanted: str, kinds: Mapping[str, TensorType], fits: Mapping[str, bool], form: str
) -> str:
    if wanted and wanted not in kinds:
        raise NoMap(f"the model has no {what} {wanted!r}, but {', '.join(map(repr, kinds))}")
    found = [name for name in ([wanted] if wanted else kinds) if fits[name]]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoMap(f"{' and '.join(map(repr, found))} are each {form}: {what}=NAME says which")
    if len(kinds) == 1 or wanted:
        name = wanted or next(iter(kinds))
        raise NoMap(f"the {what} {f'{name!r} ' if wanted else ''}is {kinds[name]}, not {form}")
    listed = ", ".join(f"{name!r} is {kind}" for name, kind in kinds.items())
    raise NoMap(f"no {what} is {form}: {listed}")


def node_made_by(graph: Graph, pass_name: str) -> str | None:
    """The name of a node that an earlier run of a pass made, if there is one."""
    made = (n for n in graph.nodes if getattr(n, "metadata", {}).get(PASS_KEY) == pass_name)
    return next((node.name for node in made), None)
