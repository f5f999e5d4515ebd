"""Depth Anything V2 as `transformers` defines it, made faithful to the official code.

Two things differ from `DepthAnythingForDepthEstimation`: the position embedding is a constant
interpolated the official way (see `positions`), and the ImageNet normalization is inside.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from models.positions import interpolate_positions
from models.variants import PATCH, TABLE_SIDE, Variant

# ImageNet statistics of torchvision, on the 0..255 scale: 255 * (0.485, 0.456, 0.406) and
# 255 * (0.229, 0.224, 0.225).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def config(variant: Variant) -> Any:
    """Return the transformers configuration of a variant; attention is written out (eager)."""
    encoder, head = variant.encoder, variant.head
    backbone = Dinov2Config(
        image_size=TABLE_SIDE * PATCH,
        patch_size=PATCH,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        use_swiglu_ffn=encoder.swiglu,
        out_indices=list(encoder.taps),
        apply_layernorm=True,
        reshape_hidden_states=False,
        use_mask_token=False,
        attn_implementation="eager",
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=encoder.width,
        neck_hidden_sizes=list(encoder.neck),
        fusion_hidden_size=encoder.features,
        depth_estimation_type="relative" if head.max_depth_m is None else "metric",
        max_depth=head.max_depth_m or 1,
        attn_implementation="eager",
    )


def empty_network(variant: Variant) -> Any:
    """Build the transformers model without memory for its weights (the meta device)."""
    with torch.device("meta"):
        return DepthAnythingForDepthEstimation(config(variant)).eval()


class FixedEmbeddings(nn.Module):
    """Tokens of one image size: class token and patches, plus a constant position embedding."""

    def __init__(self, embeddings: Any, positions: Tensor) -> None:
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings
        self.cls_token = embeddings.cls_token
        self.position_embeddings = nn.Parameter(positions, requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map 1×3×H×W normalized pixels to 1×(1+H/14·W/14)×C tokens."""
        patches = self.patch_embeddings(pixel_values)
        return torch.cat((self.cls_token, patches), dim=1) + self.position_embeddings


class DepthMap(nn.Module):
    """The exported function: an RGB image in [0, 255] in, a depth map out, one image size.

    The backbone's layers are called here one by one, not through `Dinov2Backbone.forward`, which
    writes a mask of N×N ones into every attention of an exported graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, height: int, width: int) -> None:
        """Take over `network` (a DepthAnythingForDepthEstimation) and fix its image size."""
        super().__init__()
        self.grid = (height // PATCH, width // PATCH)
        embeddings = network.backbone.embeddings
        positions = interpolate_positions(embeddings.position_embeddings.detach(), *self.grid)
        network.backbone.embeddings = FixedEmbeddings(embeddings, positions)
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Map 1×3×H×W in [0, 255] to 1×H×W: metres, or unitless inverse depth (relative)."""
        backbone = self.network.backbone
        tokens = backbone.embeddings((image - self.mean) / self.std)
        taps = []
        for number, layer in enumerate(backbone.encoder.layer, start=1):
            tokens = layer(tokens)
            if number in backbone.out_indices:
                taps.append(backbone.layernorm(tokens))
        maps = self.network.neck(taps, *self.grid)
        depth: Tensor = self.network.head(maps, *self.grid)
        return depth
