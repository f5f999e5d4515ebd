"""From what a user types, or a module that a user has, to a model that can be written as ONNX.

`resolve` decides what is meant and refuses what cannot work, without loading torch; `Source.write`
does the work.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from models import hugging_face
from models.errors import ModelError
from models.exporters import Exporter, choose_opset
from models.sizes import parse_size
from models.variants import (
    HEADS,
    PATCH,
    RELATIVE,
    TABLE_SIDE,
    VARIANTS,
    Encoder,
    Head,
    Variant,
    variant_named,
)

TWIN_NOTICE = (
    "weights are a random twin: structure and latency are real, depth is not "
    "(give --weights a checkpoint for real depth)"
)


@dataclass(frozen=True)
class Source:
    """A model that is ready to be written."""

    name: str
    """`dav2-small`, or the stem of the user's file."""
    weights: str
    """Where the weights come from: `twin:0`, a Hugging Face id, or the path the user typed."""
    notices: tuple[str, ...]
    """What the user should be told, one line each."""
    _write: Callable[[Path], Path] = field(repr=False, compare=False)
    is_onnx: bool = False
    """Whether it is the user's own ONNX file, which is read and not exported."""

    def write(self, folder: Path) -> Path:
        """Put an ONNX model into `folder` and return its path.

        For a user's own ONNX file this is its path, and nothing is copied.
        """
        return self._write(folder)


def resolve(
    model: str,
    *,
    size: str | None = None,
    weights: str = "auto",
    exporter: Exporter = "dynamo",
    opset: int | None = None,
) -> Source:
    """Decide what `model` means.

    model     a name of the family (`dav2-small-metric-indoor`); a path to an `.onnx` file, to a
              folder that holds one (and its external data), or to an official `.pth` checkpoint; or
              `hf:OWNER/NAME`, `hf:FOLDER`: a transformers model
    size      image size in pixels: `350`, or height×width as `392x518`; of Depth Anything multiples
              of 14, 518; of `hf:` what the model's settings say, and for text the number of tokens
    weights   `auto`, `twin:SEED`, a `.pth` file, a Hugging Face folder or id; of `hf:` its own or
              a twin's
    exporter  which of PyTorch's two exporters writes the graph, at `opset` (18; torchscript: 17)

    Raises ModelError.
    """
    if model.startswith("hf:"):
        return _resolve_hub(model.removeprefix("hf:"), size, weights, exporter, opset)
    suffix = Path(model).suffix.lower()
    if suffix == ".onnx" and not Path(model).is_dir():
        _refuse_options(model, size, weights, opset)
        path = _existing(model)
        return Source(path.stem, model, (), lambda folder: path, is_onnx=True)
    if model not in VARIANTS and Path(model).is_dir():
        _refuse_options(model, size, weights, opset)
        inside = _model_in_folder(Path(model))
        return Source(inside.parent.name, str(inside), (), lambda folder: inside, is_onnx=True)
    if suffix == ".pth":
        if weights != "auto":
            raise ModelError(f"{model} holds its own weights: drop --weights {weights}")
        variant, notices = _variant_of_checkpoint(_existing(model))
        name, weights = Path(model).stem, model
    else:
        variant, notices = variant_named(model), ()
        name, weights = variant.name, _choose_weights(variant, weights)
    height, width = _parse_size(size)
    return Source(
        name=name,
        weights=weights,
        notices=(*notices, *_notices(variant, weights)),
        _write=partial(
            _write_variant,
            variant=variant,
            weights=weights,
            height=height,
            width=width,
            exporter=exporter,
            opset=choose_opset(exporter, opset),
        ),
    )


def resolve_module(
    module: Any,
    inputs: Mapping[str, Any] | None,
    *,
    exporter: Exporter = "dynamo",
    opset: int | None = None,
) -> Source:
    """Decide how a `torch.nn.Module` is exported: called with example inputs by name.

    Inputs named like arguments of `forward` go there, with other names they go by position; the
    names are those of the ONNX model's inputs, the shapes its shapes. Raises ModelError.
    """
    from torch import nn

    from models.modules import call_of, write_module

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"a model is a name, a path or a torch.nn.Module, not a {type(module).__name__}"
        )
    call = call_of(module, inputs or {})
    opset = choose_opset(exporter, opset)
    write = partial(write_module, call=call, exporter=exporter, opset=opset)
    return Source(type(module).__name__, "the module's own", (), write)


def _resolve_hub(
    origin: str, size: str | None, weights: str, exporter: Exporter, opset: int | None
) -> Source:
    """Depth Anything V2 under its own name; of other models whatever transformers knows."""
    for name, variant in VARIANTS.items():
        if variant.hub_id == origin:
            weights = origin if weights == "auto" else weights
            return resolve(name, size=size, weights=weights, exporter=exporter, opset=opset)
    if weights != "auto" and not weights.startswith("twin:"):
        raise ModelError(f"hf:{origin} holds its own weights: drop --weights {weights}, or twin:0")
    _check_twin(weights)
    from models.hub import read_hub_model, write_hub_model

    opset = choose_opset(exporter, opset)
    found = read_hub_model(origin, size)
    write = partial(write_hub_model, model=found, weights=weights, exporter=exporter, opset=opset)
    told = origin if weights == "auto" else weights
    return Source(found.name, told, found.notices(weights), write)


def _check_twin(weights: str) -> None:
    if weights.startswith("twin:") and re.fullmatch(r"twin:[0-9]{1,18}", weights) is None:
        raise ModelError(f"cannot read the weights '{weights}': write twin:0, or another seed")


def _refuse_options(model: str, size: str | None, weights: str, opset: int | None) -> None:
    for option, given in (("--size", size), ("--opset", opset)):
        if given is not None:
            raise ModelError(f"{option} does not apply to {model}: an ONNX file has its own")
    if weights != "auto":
        raise ModelError(f"--weights does not apply to {model}: an ONNX file has its own")


def _model_in_folder(folder: Path) -> Path:
    """The one `.onnx` file of a folder; its external data is found beside it when it is read."""
    if (folder / "build.json").exists():
        raise ModelError(
            f"{folder} is a build's folder: to go on from it build {folder / 'model.onnx'}"
        )
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".onnx")
    if not found:
        raise ModelError(f"the folder {folder} holds no .onnx file; give a folder that holds one")
    if len(found) > 1:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ModelError(
            f"the folder {folder} holds {len(found)} .onnx files, give one of them: "
            f"{', '.join(found[:5])}{more}"
        )
    return folder.resolve() / found[0]


def _existing(model: str) -> Path:
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no file at {model}; names of models are {', '.join(VARIANTS)}")
    return path


def _parse_size(size: str | None) -> tuple[int, int]:
    """Read `350` or `392x518` (height×width)."""
    if size is None:
        return TABLE_SIDE * PATCH, TABLE_SIDE * PATCH
    height, width = parse_size(size)
    for side in (height, width):
        if side < PATCH or side % PATCH:
            down = max(side // PATCH, 1) * PATCH
            raise ModelError(
                f"size {size}: {side} is not a positive multiple of {PATCH}; "
                f"the nearest are {down} and {down + PATCH}"
            )
    return height, width


def _choose_weights(variant: Variant, weights: str) -> str:
    """Turn `auto` into something definite, and check the form of the rest."""
    if weights == "auto":
        hub_id = variant.hub_id
        return hub_id if hub_id and hugging_face.is_available(hub_id) else "twin:0"
    if weights.startswith("twin:"):
        _check_twin(weights)
        return weights
    if Path(weights).suffix.lower() == ".pth":
        _check_file_name(_existing(weights), variant)
        return weights
    if weights and Path(weights).is_dir():
        hugging_face.check_config(Path(weights), variant)
        return weights
    if hugging_face.looks_like_id(weights):
        return weights
    raise ModelError(
        f"unknown weights '{weights}': give auto, twin:SEED, a .pth file, or a Hugging Face "
        "folder or id (OWNER/NAME)"
    )


def _head_in_file_name(path: Path) -> Head | None:
    """Read the head off an official file name: shapes are the same for all three heads."""
    if re.search(r"depth_anything_vit[sbl]14", path.name):
        raise ModelError(
            f"{path} is named like Depth Anything V1, whose head reads other layers; "
            "give a depth_anything_v2_*.pth"
        )
    for head in HEADS:
        if head.dataset and f"metric_{head.dataset}" in path.name:
            return head
    return RELATIVE if re.search(r"depth_anything_v2_vit[sblg]", path.name) else None


def _check_file_name(path: Path, variant: Variant) -> None:
    head = _head_in_file_name(path)
    if head not in (None, variant.head):
        meant = Variant(variant.encoder, head).name
        raise ModelError(
            f"{path} is named as weights of {meant}, not of {variant.name}: ask for {meant}, or "
            "rename the file"
        )


def _variant_of_checkpoint(path: Path) -> tuple[Variant, tuple[str, ...]]:
    """Recognize the encoder from the file's shapes, and the head from its name."""
    from models.checkpoint import read_state_dict, recognize_encoder

    head = _head_in_file_name(path)
    encoder = recognize_encoder(read_state_dict(path), path)
    if head is not None:
        return Variant(encoder, head), ()
    relative = Variant(encoder, RELATIVE)
    return relative, (
        f"{path.name}: taken as relative depth (shapes cannot tell); for a metric checkpoint "
        f"build {relative.name}-metric-indoor or -metric-outdoor with --weights {path}",
    )


def _notices(variant: Variant, weights: str) -> tuple[str, ...]:
    notices = []
    if weights.startswith("twin:"):
        notices.append(TWIN_NOTICE)
    if variant.encoder.non_commercial:
        notices.append(
            f"the weights of Depth Anything V2 {variant.encoder.size.capitalize()} are licensed "
            "CC-BY-NC-4.0: no commercial use"
        )
    return tuple(notices)


def _write_variant(
    folder: Path,
    *,
    variant: Variant,
    weights: str,
    height: int,
    width: int,
    exporter: Exporter,
    opset: int,
) -> Path:
    from models.depth_anything import DepthMap
    from models.export import export

    network = _weighted_network(variant, weights)
    path = folder / "source.onnx"
    export(DepthMap(network, height, width), path, height, width, exporter, opset)
    return path


def _weighted_network(variant: Variant, weights: str) -> Any:
    """Build the transformers network of `variant` with the weights that `weights` names."""
    from models.checkpoint import convert, read_state_dict, recognize_encoder
    from models.depth_anything import empty_network
    from models.twin import twin_state_dict

    folder = Path(weights)
    if not weights.startswith("twin:") and folder.suffix.lower() != ".pth":
        local = folder if folder.is_dir() else hugging_face.snapshot(weights)
        return hugging_face.load_network(local, variant)
    network = empty_network(variant)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    if weights.startswith("twin:"):
        state = twin_state_dict(shapes, int(weights.removeprefix("twin:")))
    else:
        official = read_state_dict(folder)
        _check_encoder(recognize_encoder(official, folder), variant, folder)
        state = convert(official, shapes, folder)
    network.load_state_dict(state, assign=True)
    return network


def _check_encoder(found: Encoder, variant: Variant, path: Path) -> None:
    if found != variant.encoder:
        raise ModelError(
            f"{path} holds the {found.size} encoder ({found.code}), not {variant.encoder.size}: "
            f"ask for {Variant(found, variant.head).name}"
        )
