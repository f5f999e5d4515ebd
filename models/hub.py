"""`hf:OWNER/NAME`, or `hf:FOLDER`: any transformers model whose configuration names its class.

An image goes in as RGB in [0, 255], normalized inside as the model's processor says; text as token
ids and their mask. What comes out is what the model is for: logits, a depth map, the last hidden
state.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from models import hugging_face
from models.dpt_dinov2 import published_files
from models.errors import ModelError
from models.exporters import Exporter
from models.layer_twin import give_twin_weights
from models.modules import call_of, write_module
from models.network import Network, Normalization
from models.quiet import quiet
from models.sizes import parse_size

TOKENS = 128
"""How many tokens a text has if neither the user nor the model's table of positions says so."""

RAW_PIXELS = (
    "no processor says how images are normalized: the graph takes pixel_values as the network does"
)
TWIN_WEIGHTS = "weights are a random twin: structure and latency are real, the results are not"


@dataclass(frozen=True)
class HubModel:
    """A model before its weights are read: its class, and what it is called with."""

    origin: str
    """A Hugging Face id, or a local folder."""
    kind: Any
    config: Any
    normalization: Normalization | None
    inputs: Mapping[str, Tensor]
    """By the names of the class' arguments."""

    @property
    def name(self) -> str:
        """The last part of the id or path."""
        return Path(self.origin).resolve().name

    def notices(self, weights: str) -> tuple[str, ...]:
        """What the user should be told."""
        twin = weights.startswith("twin:")
        raw = "pixel_values" in self.inputs and self.normalization is None
        return (TWIN_WEIGHTS,) * twin + (RAW_PIXELS,) * raw


def read_hub_model(origin: str, size: str | None) -> HubModel:
    """Read the settings of an id or a folder, and choose inputs. Raises ModelError."""
    try:
        files = hugging_face.settings(origin)
    except ModelError:
        known = published_files(origin)
        if known is None:
            raise
        files = known
    config = _config(files["config.json"], origin)
    kind = _kind(config, origin)
    processor = _image_processor(files)
    inputs = _inputs(kind, config, processor, size, origin)
    return HubModel(origin, kind, config, normalization_of(processor), inputs)


def write_hub_model(
    folder: Path, *, model: HubModel, weights: str, exporter: Exporter, opset: int
) -> Path:
    """Export a model with its own weights (`auto`) or a twin's. Raises ModelError."""
    network = _twin(model, weights) if weights.startswith("twin:") else _trained(model)
    network.requires_grad_(False)
    module = Network(network, list(model.inputs), normalization=model.normalization)
    image = "pixel_values" if model.normalization is None else "image"
    inputs = {image if n == "pixel_values" else n: t for n, t in model.inputs.items()}
    call = call_of(module, inputs)
    return write_module(folder, call=call, exporter=exporter, opset=opset)


def _twin(model: HubModel, weights: str) -> Any:
    with quiet():
        network = _made(model)
    give_twin_weights(network, int(weights.removeprefix("twin:")))
    return network.eval()


def _made(model: HubModel) -> Any:
    try:
        return model.kind(model.config)
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{model.origin} can't be built: {_first_line(error)}") from error


def _trained(model: HubModel) -> Any:
    folder = hugging_face.folder_with_weights(model.origin)
    try:
        network, report = hugging_face.load(folder, model.kind, model.config)
    except (ImportError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ModelError(f"{model.origin} can't be loaded: {_first_line(error)}") from error
    # Files often hold more than the class needs: a head of pre-training, tables of positions.
    hugging_face.check_fit({**report, "unexpected_keys": []}, folder)
    return network


def _config(content: Mapping[str, Any], origin: str) -> Any:
    model_type = content.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{origin} is a {model_type!r}, which transformers {transformers.__version__} does not "
            "know (code from a model's repository is not run)"
        )
    try:
        with quiet():
            config = transformers.CONFIG_MAPPING[model_type].from_dict(dict(content))
    except Exception as error:  # whatever a class makes of settings that are not its own
        raise ModelError(f"{origin}: bad config.json: {_first_line(error)}") from error
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _kind(config: Any, origin: str) -> Any:
    """The class that the configuration names, or else the bare model of its type."""
    names = config.architectures or []
    if not names:
        bare = transformers.MODEL_MAPPING.get(type(config), None)
        return bare or _no_class(origin, "no class")
    return getattr(transformers, names[0], None) or _no_class(origin, names[0])


def _no_class(origin: str, name: str) -> Any:
    version = transformers.__version__
    raise ModelError(f"{origin}: config.json names {name}; transformers {version} has none such")


def _image_processor(files: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    for name in hugging_face.PROCESSORS:
        content = files.get(name, {})
        found: Mapping[str, Any] = content.get("image_processor", content)
        if "image_processor_type" in found or "do_normalize" in found or "image_mean" in found:
            return found
    return {}


def normalization_of(processor: Mapping[str, Any]) -> Normalization | None:
    """How a processor of transformers makes pixel values from [0, 255]; None if that is unknown.

    It multiplies by `rescale_factor` (1/255) first: (image · r − m) / s = (image − m/r) / (s/r).
    """
    if not processor or processor.get("rescale_offset"):
        return None
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", "image_mean" in processor):
        mean, std = processor.get("image_mean", mean), processor.get("image_std", std)
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
        return None
    is_bgr = bool(processor.get("do_flip_channel_order"))
    return Normalization([m / scale for m in mean], [s / scale for s in std], is_bgr)


def _inputs(
    kind: Any, config: Any, processor: Mapping[str, Any], size: str | None, origin: str
) -> dict[str, Tensor]:
    arguments = inspect.signature(kind.forward).parameters
    main = kind.main_input_name
    if main not in ("pixel_values", "input_ids", "input_features"):
        raise ModelError(
            f"{origin}: {kind.__name__} takes {main}; inputs are known here for images, text "
            "and mel spectra: call compiler.build(module, inputs=…)"
        )
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in arguments:
        sides = parse_size(size) if size else _image_size(config, processor, origin)
        inputs["pixel_values"] = torch.zeros(1, 3, *sides)
    text = _text(config, None if inputs else size)
    if main == "input_ids":
        inputs["input_ids"] = text
        if "attention_mask" in arguments:
            inputs["attention_mask"] = torch.ones_like(text)
    elif main == "input_features":
        frames = 2 * config.max_source_positions
        inputs[main] = torch.zeros(1, config.num_mel_bins, frames)
    if config.is_encoder_decoder and "decoder_input_ids" in arguments:
        inputs["decoder_input_ids"] = text
        if "decoder_attention_mask" in arguments:
            inputs["decoder_attention_mask"] = torch.ones_like(text)
    return inputs


def _text(config: Any, size: str | None) -> Tensor:
    settings = config.get_text_config()
    tables = ("max_position_embeddings", "max_target_positions")
    most = [getattr(settings, name, None) or TOKENS for name in tables]
    count, width = parse_size(size) if size else (min(*most, TOKENS),) * 2
    if count != width or count < 1:
        raise ModelError(f"size {size}: a text has a number of tokens, as 64")
    # None of them a padding token, on which some models count their positions.
    words = max(getattr(settings, "vocab_size", 1) - 3, 1)
    return (3 + torch.arange(count) % words).reshape(1, count)


def _image_size(config: Any, processor: Mapping[str, Any], origin: str) -> tuple[int, int]:
    """What the processor crops or resizes to, else what the configuration says."""
    wanted: list[Any] = [processor.get("crop_size")] if processor.get("do_center_crop") else []
    wanted += [processor.get("size")] if processor.get("do_resize", True) else []
    # A DPT on a backbone has a size of its own that means nothing.
    parts = [getattr(config, n, None) for n in ("backbone_config", "vision_config")]
    wanted += [getattr(part, "image_size", None) for part in (*parts, config)]
    for found in wanted:
        match found:
            case int():
                return found, found
            case {"height": int(height), "width": int(width)} | [int(height), int(width)]:
                return height, width
    raise ModelError(f"{origin} takes images of any size: give one with --size, as 480x640")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
