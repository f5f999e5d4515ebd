"""Official `.pth` checkpoints: reading them safely and renaming every key.

Names on the left are those of the official `dpt.py` and `dinov2.py`, on the right those of
`transformers`. Every key of a checkpoint is accounted for; nothing is skipped in silence.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.errors import ModelError
from models.variants import ENCODERS, Encoder

_BLOCK = "pretrained.blocks.{i}."
_LAYER = "backbone.encoder.layer.{i}."
_QKV = tuple(_LAYER + f"attention.{letter}_proj.{{p}}" for letter in "qkv")
_NECK = "neck.reassemble_stage.layers.{i}."
_FUSION = (
    ("out_conv", "projection"),
    ("resConfUnit1.conv1", "residual_layer1.convolution1"),
    ("resConfUnit1.conv2", "residual_layer1.convolution2"),
    ("resConfUnit2.conv1", "residual_layer2.convolution1"),
    ("resConfUnit2.conv2", "residual_layer2.convolution2"),
)

# official -> transformers; {i} counts layers, {p} is weight or bias. One official tensor may be
# several of ours, stacked along its first axis. Fusion stages are numbered from the other end.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pretrained.cls_token", ("backbone.embeddings.cls_token",)),
    ("pretrained.pos_embed", ("backbone.embeddings.position_embeddings",)),
    ("pretrained.patch_embed.proj.{p}", ("backbone.embeddings.patch_embeddings.projection.{p}",)),
    (_BLOCK + "norm1.{p}", (_LAYER + "norm1.{p}",)),
    (_BLOCK + "attn.qkv.{p}", _QKV),
    (_BLOCK + "attn.proj.{p}", (_LAYER + "attention.o_proj.{p}",)),
    (_BLOCK + "ls1.gamma", (_LAYER + "layer_scale1.lambda1",)),
    (_BLOCK + "norm2.{p}", (_LAYER + "norm2.{p}",)),
    (_BLOCK + "mlp.fc1.{p}", (_LAYER + "mlp.fc1.{p}",)),
    (_BLOCK + "mlp.fc2.{p}", (_LAYER + "mlp.fc2.{p}",)),
    (_BLOCK + "mlp.w12.{p}", (_LAYER + "mlp.gate_proj.{p}", _LAYER + "mlp.up_proj.{p}")),
    (_BLOCK + "mlp.w3.{p}", (_LAYER + "mlp.down_proj.{p}",)),
    (_BLOCK + "ls2.gamma", (_LAYER + "layer_scale2.lambda1",)),
    ("pretrained.norm.{p}", ("backbone.layernorm.{p}",)),
    ("depth_head.projects.{i}.{p}", (_NECK + "projection.{p}",)),
    ("depth_head.resize_layers.{i}.{p}", (_NECK + "resize.{p}",)),
    *(
        (f"depth_head.scratch.layer{number}_rn.weight", (f"neck.convs.{number - 1}.weight",))
        for number in (1, 2, 3, 4)
    ),
    *(
        (
            f"depth_head.scratch.refinenet{number}.{official}.{{p}}",
            (f"neck.fusion_stage.layers.{4 - number}.{ours}.{{p}}",),
        )
        for number in (1, 2, 3, 4)
        for official, ours in _FUSION
    ),
    ("depth_head.scratch.output_conv1.{p}", ("head.conv1.{p}",)),
    ("depth_head.scratch.output_conv2.0.{p}", ("head.conv2.{p}",)),
    ("depth_head.scratch.output_conv2.2.{p}", ("head.conv3.{p}",)),
)

# Stands in for masked patches in DINOv2's pre-training; depth estimation masks none.
UNUSED = frozenset({"pretrained.mask_token"})

_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(KeyError, IndexError, AttributeError, ImportError),
)


def key_map(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[str, ...]]:
    """Map official names to ours, for a network with parameters of these names and shapes."""
    layers = 1 + max(int(name.split(".")[3]) for name in shapes if ".encoder.layer." in name)
    named = {
        official.format(i=i, p=p): tuple(ours.format(i=i, p=p) for ours in targets)
        for official, targets in RULES
        for i in range(max(layers, 4))
        for p in ("weight", "bias")
    }
    # The table names more than one network has: SwiGLU or plain MLP, convolutions without a bias.
    return {official: ours for official, ours in named.items() if ours[0] in shapes}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors; code hidden in a pickle is refused, not run."""
    try:
        mapped = zipfile.is_zipfile(path)  # torch maps only its zip format
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} is refused: it is no PyTorch file of tensors alone (damaged, or a pickle of "
            "other objects); give the official .pth, e.g. depth_anything_v2_vits.pth"
        ) from None
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot read {path}: not a PyTorch checkpoint, or truncated ({reason}); "
            "download it again"
        ) from None
    return _checked_state_dict(loaded, path)


def _checked_state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise ModelError(
            f"{path} holds no state dict but a {type(loaded).__name__}; "
            "save the model's state_dict() instead"
        )
    wrong = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    if wrong:
        nested = [key for key in wrong if isinstance(loaded[key], dict)]
        advice = f"save its ['{nested[0]}'] alone" if nested else "save a state_dict() instead"
        raise ModelError(
            f"{path} holds no state dict: entry '{wrong[0]}' is a "
            f"{type(loaded[wrong[0]]).__name__}, not a tensor; {advice}"
        )
    return loaded


def recognize_encoder(state: Mapping[str, Tensor], path: Path) -> Encoder:
    """Tell the encoder from the width of its class token; `convert` checks all the rest."""
    token = state.get("pretrained.cls_token")
    if token is None:
        raise ModelError(
            f"{path} is no official Depth Anything V2 checkpoint: no key 'pretrained.cls_token' "
            f"(it begins with {_some(list(state))})"
        )
    width = token.shape[-1] if token.ndim else 0
    for encoder in ENCODERS:
        if encoder.width == width:
            return encoder
    raise ModelError(
        f"{path} has an unknown encoder: 'pretrained.cls_token' is {_shape(token.shape)}, known "
        f"widths are {', '.join(f'{e.width} ({e.code})' for e in ENCODERS)}"
    )


def convert(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], path: Path
) -> dict[str, Tensor]:
    """Rename and split an official state dict into ours (float32), with every key accounted for.

    `shapes` are the names and shapes of our network's parameters.
    """
    names = key_map(shapes)
    missing = [key for key in names if key not in state]
    extra = [key for key in state if key not in names and key not in UNUSED]
    if missing or extra:
        found = [
            f"{what}: {_some(keys)}"
            for what, keys in (("missing keys", missing), ("unknown keys", extra))
            if keys
        ]
        raise ModelError(f"{path} does not fit this model: {'; '.join(found)}")
    _check_shapes(state, names, shapes, path)
    converted: dict[str, Tensor] = {}
    for official, ours in names.items():
        parts = torch.split(state[official].float(), [shapes[name][0] for name in ours])
        converted.update(zip(ours, parts, strict=True))
    return converted


def _check_shapes(
    state: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, torch.Size],
    path: Path,
) -> None:
    wrong = []
    for official, ours in names.items():
        expected = (sum(shapes[name][0] for name in ours), *shapes[ours[0]][1:])
        if tuple(state[official].shape) != expected:
            wrong.append(f"'{official}' is {_shape(state[official].shape)}, not {_shape(expected)}")
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise ModelError(f"{path} does not fit this model: {'; '.join(wrong[:2])}{more}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(f"'{key}'" for key in keys[:3]) + more
