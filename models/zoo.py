"""The zoo: families of models that people bring, each small, built offline, with twin weights.

Every family is the real code of `transformers` (or a small network of its own) under a tiny
configuration: two layers, and different numbers of tokens, heads and features per head, so that no
axis can be mistaken for another. Image models take RGB in [0, 255] and normalize inside.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from models.depth_anything import DepthMap, empty_network
from models.export import Call, export_call
from models.exporters import choose_opset
from models.layer_twin import give_twin_weights
from models.network import Network
from models.quiet import quiet
from models.twin import twin_state_dict
from models.variants import RELATIVE, Encoder, Variant

ZooExporter = Literal["dynamo", "torchscript", "skl2onnx"]
FOREST_OPSET = 18
VOCABULARY = 50
MEL_BANDS = 8


@dataclass(frozen=True)
class Example:
    """A network that is ready to be exported."""

    module: Any
    """A torch module of tensors, or a fitted regressor of scikit-learn."""
    inputs: dict[str, Tensor]
    """What it is traced on, by the names that the ONNX inputs get."""
    outputs: tuple[str, ...] = ("output",)
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Axes that a dynamic export leaves open, where the rule (`_open_axes`) is not enough."""


@dataclass(frozen=True)
class Family:
    """A kind of model, and what there is to find in it."""

    name: str
    shows: str
    """What is special about it, in a few words."""
    build: Callable[[], Example] = field(repr=False)
    attentions: int
    """How many attentions of more than one head it has: what split_heads should split."""
    one_head: int = 0
    """How many attentions of a single head it has, which nothing should split."""
    unsupported: Mapping[ZooExporter, str] = field(default_factory=dict)
    """The reason why an exporter can't export it."""
    exporters: tuple[ZooExporter, ...] = ("dynamo", "torchscript")
    fixed: str | None = None
    """The reason why it has no dynamic export."""

    @property
    def is_installed(self) -> bool:
        """Whether this machine can build it: skl2onnx is an extra."""
        return self.exporters != ("skl2onnx",) or importlib.util.find_spec("skl2onnx") is not None


def write(
    family: Family,
    folder: Path,
    exporter: ZooExporter,
    *,
    opset: int | None = None,
    attention: Literal["eager", "sdpa"] | None = None,
    is_dynamic: bool = False,
) -> Path:
    """Export a family into `folder`, in silence, and return the path of the ONNX file.

    `opset` defaults to the exporter's own (dynamo 18, torchscript 17), `attention` to what
    transformers takes unless told otherwise (SAM does not let itself be told). A dynamic export
    takes batches of any size, and texts of any length.
    """
    path = folder / f"{family.name}_{exporter}.onnx"
    with contextlib.redirect_stdout(io.StringIO()), quiet():  # torch prints its progress
        example = family.build()
        if exporter == "skl2onnx":
            _write_forest(example, path, is_dynamic=is_dynamic)
            return path
        if attention is not None:
            set_attention(example.module, attention)
        call = _dynamic_call(example) if is_dynamic else _call(example)
        export_call(call, path, exporter, choose_opset(exporter, opset))
    return path


def _call(example: Example) -> Call:
    names, arguments = list(example.inputs), tuple(example.inputs.values())
    return Call(example.module, names, list(example.outputs), arguments)


def _dynamic_call(example: Example) -> Call:
    """The same with a batch of two, as an axis of length one counts as fixed, and open axes."""
    call = _call(example)
    pairs = tuple(torch.cat((tensor, tensor)) for tensor in call.arguments)
    axes = [example.dynamic.get(n) or _open_axes(n, t) for n, t in example.inputs.items()]
    return replace(call, arguments=pairs, dynamic=axes)


def _open_axes(name: str, tensor: Tensor) -> dict[int, str]:
    """The batch, and of a text its tokens; a decoder's text has a length of its own."""
    if tensor.is_floating_point() or tensor.ndim != 2:
        return {0: "batch"}
    return {0: "batch", 1: "decoder_tokens" if name.startswith("decoder_") else "tokens"}


def set_attention(module: nn.Module, attention: Literal["eager", "sdpa"]) -> None:
    """Choose how the transformers models inside a module compute attention."""
    for model in module.modules():
        if isinstance(model, transformers.PreTrainedModel):
            model.set_attn_implementation(attention)


def _write_forest(example: Example, path: Path, *, is_dynamic: bool) -> None:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    types = [
        (name, FloatTensorType([None if is_dynamic else rows.shape[0], rows.shape[1]]))
        for name, rows in example.inputs.items()
    ]
    model = skl2onnx.convert_sklearn(
        example.module, initial_types=types, target_opset={"": FOREST_OPSET, "ai.onnx.ml": 3}
    )
    path.write_bytes(model.SerializeToString())


# -- what the families are built from --------------------------------------------------------------


class CachedDecoder(nn.Module):
    """One step of a decoder: keys and values of the past come in, those of the whole go out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Map 1×N tokens, a 1×(P+N) mask and a key and a value 1×H×P×D for every layer."""
        pairs = list(zip(past[::2], past[1::2], strict=True))
        cache = transformers.DynamicCache(pairs)
        result = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache)
        present = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return (result.last_hidden_state, *present)


class UNet(nn.Module):
    """Segmentation as segmentation_models_pytorch does it, with two scales and no attention."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.first = _two_convolutions(3, channels)
        self.second = _two_convolutions(channels, 2 * channels)
        self.bottom = _two_convolutions(2 * channels, 4 * channels)
        self.up = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
        self.behind_up = _two_convolutions(4 * channels, 2 * channels)
        self.behind_resize = _two_convolutions(3 * channels, channels)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, pixel_values: Tensor, return_dict: bool) -> dict[str, Tensor]:
        """Map 1×3×H×W to logits of the same size: one scale up by weights, one by a resize."""
        fine = self.first(pixel_values)
        coarse = self.second(nn.functional.max_pool2d(fine, 2))
        up = self.up(self.bottom(nn.functional.max_pool2d(coarse, 2)))
        up = self.behind_up(torch.cat((up, coarse), dim=1))
        up = nn.functional.interpolate(up, scale_factor=2.0, mode="bilinear")
        return {"logits": self.head(self.behind_resize(torch.cat((up, fine), dim=1)))}


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


def _example(
    model: Any, inputs: Mapping[str, Tensor], output: str = "last_hidden_state"
) -> Example:
    """Give a model twin weights and wrap it."""
    give_twin_weights(model, 0)
    module = Network(model.eval().requires_grad_(False), list(inputs), output)
    return Example(module, dict(inputs))


def _image(height: int = 32, width: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": 255 * torch.rand(1, 3, height, width, generator=generator)}


def _ids(tokens: int = 9) -> Tensor:
    return torch.arange(tokens).reshape(1, tokens) * 7 % VOCABULARY


def _text(tokens: int = 9) -> dict[str, Tensor]:
    return {"input_ids": _ids(tokens)}


def _masked_text(tokens: int = 9) -> dict[str, Tensor]:
    return {**_text(tokens), "attention_mask": torch.ones(1, tokens, dtype=torch.long)}


# 48 features in 4 heads of 12.
_SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_DINO = {"hidden_size": 48, "num_attention_heads": 4, "mlp_ratio": 2}


def _transformers(kind: str, config: dict[str, Any], inputs: Mapping[str, Tensor]) -> Example:
    """The model class `kind` of transformers under its configuration class."""
    model = getattr(transformers, f"{kind}Model")
    return _example(model(model.config_class(**config)), inputs)


# -- families that take more than a configuration -------------------------------------------------


def _depth_anything_v1() -> Example:
    backbone = transformers.Dinov2Config(
        image_size=70, patch_size=14, num_hidden_layers=4, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"], **_DINO,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=48,
        neck_hidden_sizes=[8, 12, 16, 24], fusion_hidden_size=16, head_hidden_size=8,
    )  # fmt: skip
    model = transformers.DepthAnythingForDepthEstimation(config)
    return _example(model, _image(70, 56), "predicted_depth")


def _depth_anything_v2() -> Example:
    encoder = Encoder("tiny", "tiny", 48, 4, 4, (1, 2, 3, 4), 16, (8, 12, 16, 24))
    network = empty_network(Variant(encoder, RELATIVE))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    network.load_state_dict(twin_state_dict(shapes, 0), assign=True)
    image = _image(70, 56)["pixel_values"]
    return Example(DepthMap(network, 70, 56), {"image": image}, ("depth",))


def _dpt(side: int, **config: Any) -> Example:
    backbone = transformers.Dinov2Config(
        image_size=side, patch_size=14, num_hidden_layers=4, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"], apply_layernorm=False, **_DINO,
    )  # fmt: skip
    config = {"backbone_config": backbone, "neck_hidden_sizes": [8, 12, 16, 24], **config}
    model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**config))
    return _example(model, _image(side, side - 14), "predicted_depth")


def _sam() -> Example:
    config = transformers.SamVisionConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, mlp_dim=64, image_size=64,
        patch_size=8, window_size=3, global_attn_indexes=[1], output_channels=8,
    )  # fmt: skip
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    return _example(SamVisionEncoder(config), _image(64, 64))


def _detr() -> Example:
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1],
        out_features=["stage4"],
    )  # fmt: skip
    config = {
        "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
        "backbone_config": backbone, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 5,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }  # fmt: skip
    mask = {"pixel_mask": torch.ones(1, 96, 64, dtype=torch.long)}
    return _transformers("Detr", config, {**_image(96, 64), **mask})


def _t5() -> Example:
    config = {
        "vocab_size": VOCABULARY, "d_model": 48, "d_kv": 8, "d_ff": 64, "num_layers": 2,
        "num_heads": 4,
    }  # fmt: skip
    inputs = {**_text(9), "decoder_input_ids": _ids(5)}
    return _transformers("T5", config, inputs)


def _whisper() -> Example:
    config = {
        "vocab_size": VOCABULARY, "d_model": 48, "num_mel_bins": MEL_BANDS, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 20,
        "max_target_positions": 16, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(1, MEL_BANDS, 40, generator=generator)
    text = {f"decoder_{name}": values for name, values in _masked_text(5).items()}
    return _transformers("Whisper", config, {"input_features": sound, **text})


_LLAMA = {**_SIZES, "vocab_size": VOCABULARY, "num_key_value_heads": 2}


def _llama_cached() -> Example:
    model = transformers.LlamaModel(transformers.LlamaConfig(**_LLAMA))
    give_twin_weights(model, 0)
    generator = torch.Generator().manual_seed(0)
    names = [f"past_{i}_{what}" for i in range(2) for what in ("key", "value")]
    past = {name: torch.randn(1, 2, 7, 12, generator=generator) for name in names}
    inputs = {"input_ids": _ids(3), "attention_mask": torch.ones(1, 10, dtype=torch.long), **past}
    outputs = ("output", *(name.replace("past", "present") for name in names))
    dynamic = {name: {0: "batch", 2: "past"} for name in names}
    dynamic["attention_mask"] = {0: "batch", 1: "past_and_tokens"}
    return Example(CachedDecoder(model.eval().requires_grad_(False)), inputs, outputs, dynamic)


def _regressor(kind: str) -> Example:
    """A forest that was fitted to noise, as deep as its few rows allow."""
    import sklearn.ensemble

    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    target = (rows[:, 0] * rows[:, 1] + rows[:, 2].sin()).numpy()
    regressor = getattr(sklearn.ensemble, kind)(n_estimators=5, max_depth=4, random_state=0)
    return Example(regressor.fit(rows.numpy(), target), {"X": rows[:3]})


# -- the table -------------------------------------------------------------------------------------

FAMILIES: tuple[Family, ...] = (
    Family("depth-anything-v1", "separate QKV, layer scale, a convolutional head",
           _depth_anything_v1, 4),
    Family("depth-anything-v2", "fixed positions, the normalization inside",
           _depth_anything_v2, 4, fixed="its graph is for one image of one size, on purpose"),
    Family("dpt-dinov2-relative", "the class token read out into every patch",
           partial(_dpt, 70, fusion_hidden_size=16), 4),
    # As facebook/dpt-dinov2-small-nyu and -kitti are, down to the 256 features of the projection.
    Family("dpt-dinov2-nyu", "the same, with a projection before the head and bias-free fusion",
           partial(_dpt, 42, add_projection=True, use_bias_in_fusion_residual=False), 4),
    Family("dinov2-registers", "register tokens", partial(
        _transformers, "Dinov2WithRegisters",
        {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, **_DINO}, _image(),
    ), 2, unsupported={"torchscript": "torchscript has no antialiased bicubic resize"}),
    Family("vit", "the plain case", partial(
        _transformers, "ViT", {"image_size": 32, "patch_size": 8, **_SIZES}, _image(),
    ), 2),
    Family("clip-text", "causal mask as a constant", partial(
        _transformers, "CLIPText",
        {"vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2, **_SIZES},
        _text(),
    ), 2),
    Family("clip-vision", "quick GELU, normalization before the first layer", partial(
        _transformers, "CLIPVision", {"image_size": 32, "patch_size": 8, **_SIZES}, _image(),
    ), 2),
    Family("swin", "windows, shifted windows, relative position bias", partial(
        _transformers, "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
         "num_heads": [2, 4], "window_size": 4},
        _image(),
    ), 4),
    Family("beit", "relative position bias with a class token, keys without bias", partial(
        _transformers, "Beit",
        {"image_size": 32, "patch_size": 8, "use_relative_position_bias": True,
         "use_mask_token": False, **_SIZES},
        _image(),
    ), 2),
    Family("segformer", "fewer keys than queries; one head in the first stage", partial(
        _transformers, "Segformer",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 48],
         "num_attention_heads": [1, 2, 4, 4], "sr_ratios": [4, 2, 2, 1]},
        _image(96, 64),
    ), 3, one_head=1),
    # Of its six, the decoder's first self attention depends on no input: it is folded away.
    Family("detr", "self and cross attention, a mask of pixels, learned queries", _detr, 5),
    Family("sam", "packed QKV, windows, decomposed relative position", _sam, 2),
    Family("mobilevit", "attention among convolutions, patches unfolded", partial(
        _transformers, "MobileViT",
        {"image_size": 192, "hidden_sizes": [16, 24, 32],
         "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]},
        _image(192, 128),
    ), 9),
    Family("bert", "a mask that is an input", partial(
        _transformers, "Bert", {"vocab_size": VOCABULARY, **_SIZES}, _masked_text(),
    ), 2),
    Family("t5", "bucketed relative position, no scale, cross attention", _t5, 6),
    Family("gpt2", "packed QKV, causal", partial(
        _transformers, "GPT2",
        {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 48, "n_layer": 2, "n_head": 4,
         "use_cache": False},
        _masked_text(),
    ), 2),
    Family("llama", "rotary positions, grouped queries, causal", partial(
        _transformers, "Llama", {"use_cache": False, **_LLAMA}, _masked_text(),
    ), 2),
    Family("llama-cache", "keys and values of the past as inputs and outputs", _llama_cached, 2),
    Family("whisper", "sound in, causal and cross attention", _whisper, 6),
    Family("unet", "no attention: convolutions and skips",
           lambda: _example(UNet(), _image(48, 40), "logits"), 0),
    Family("random-forest", "no attention: trees",
           partial(_regressor, "RandomForestRegressor"), 0, exporters=("skl2onnx",)),
    Family("gradient-boosting", "no attention: boosted trees",
           partial(_regressor, "GradientBoostingRegressor"), 0, exporters=("skl2onnx",)),
)  # fmt: skip
