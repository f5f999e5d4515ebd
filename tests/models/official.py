"""Our own restatement of the official Depth Anything V2 in PyTorch, as an oracle.

It follows the description of the official `dinov2.py` and `dpt.py` (parameter names, packed QKV,
position interpolation by scale factor) and shares no code with `models`, so that agreement means
something. `official_model` builds one with telling random weights; `export_official` writes it the
way users of the official code do.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# code: width, layers, heads, tapped layers (0-based), fusion channels, neck channels
CONFIGS = {
    "vits": (384, 12, 6, (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "vitb": (768, 12, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "vitl": (1024, 24, 16, (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
    "vitg": (1536, 40, 24, (9, 19, 29, 39), 384, (1536, 1536, 1536, 1536)),
    # Not official: the same code at sizes that test in a blink.
    "tiny": (32, 4, 2, (0, 1, 2, 3), 16, (8, 16, 24, 32)),
    "tiny-swiglu": (48, 4, 3, (0, 1, 2, 3), 16, (8, 16, 24, 32)),
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        head_width = width // self.heads
        packed = self.qkv(x).reshape(batch, tokens, 3, self.heads, head_width)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * head_width**-0.5) @ key.transpose(-2, -1)
        merged = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(merged)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Two thirds of the MLP's 4·width, rounded up to a multiple of 8.
        hidden = math.ceil(int(4 * width * 2 / 3) / 8) * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, swiglu: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SwiGlu(width) if swiglu else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 14, stride=14)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, swiglu: bool) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 37 * 37, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads, swiglu) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (37, 37):
            return self.pos_embed
        width = self.pos_embed.shape[-1]
        grid = self.pos_embed[:, 1:].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
        scale = (float(rows + 0.1) / math.sqrt(37 * 37), float(columns + 0.1) / math.sqrt(37 * 37))
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, x: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
        rows, columns = x.shape[-2] // 14, x.shape[-1] // 14
        x = torch.cat((self.cls_token, self.patch_embed(x)), dim=1)
        x = x + self.positions(rows, columns)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in taps:
                tapped.append(self.norm(x)[:, 1:])
        return tapped


class ResidualConvUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)

    def forward(self, path: Tensor | None, skip: Tensor, size: tuple[int, int]) -> Tensor:
        # The deepest fusion has no path from below; its resConfUnit1 is never used.
        x = skip if path is None else path + self.resConfUnit1(skip)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class Head(nn.Module):
    def __init__(self, width: int, channels: int, neck: tuple[int, ...], metric: bool) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(width, out, 1) for out in neck)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(neck[0], neck[0], 4, stride=4),
                nn.ConvTranspose2d(neck[1], neck[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(neck[3], neck[3], 3, stride=2, padding=1),
            ]
        )
        scratch = nn.Module()
        for number, out in enumerate(neck, start=1):
            scratch.add_module(
                f"layer{number}_rn", nn.Conv2d(out, channels, 3, padding=1, bias=False)
            )
            scratch.add_module(f"refinenet{number}", Fusion(channels))
        scratch.output_conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(channels // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
            nn.Sigmoid() if metric else nn.ReLU(),
        )
        self.scratch = scratch

    def forward(self, tapped: list[Tensor], rows: int, columns: int) -> Tensor:
        maps = []
        for index, tokens in enumerate(tapped):
            grid = tokens.transpose(1, 2).reshape(1, tokens.shape[-1], rows, columns)
            grid = self.resize_layers[index](self.projects[index](grid))
            maps.append(self.scratch.get_submodule(f"layer{index + 1}_rn")(grid))
        finest = maps[0].shape[-2:]
        sizes = [(2 * finest[0], 2 * finest[1]), *(m.shape[-2:] for m in maps[:3])]
        path = None
        for index in (3, 2, 1, 0):
            fusion = self.scratch.get_submodule(f"refinenet{index + 1}")
            path = fusion(path, maps[index], sizes[index])
        x = self.scratch.output_conv1(path)
        x = F.interpolate(x, size=(rows * 14, columns * 14), mode="bilinear", align_corners=True)
        return self.scratch.output_conv2(x)


class OfficialDepthAnything(nn.Module):
    """1×3×H×W RGB in [0, 255] -> 1×H×W; normalization inside, after division by 255."""

    def __init__(self, encoder: str, layers: int | None, max_depth: float | None) -> None:
        super().__init__()
        width, all_layers, heads, taps, channels, neck = CONFIGS[encoder]
        layers = layers or all_layers
        # A shallower copy taps its last four layers.
        self.taps = taps if layers == all_layers else tuple(range(layers - 4, layers))
        self.max_depth = max_depth
        swiglu = encoder in ("vitg", "tiny-swiglu")
        self.pretrained = Backbone(width, layers, heads, swiglu)
        self.depth_head = Head(width, channels, neck, metric=max_depth is not None)

    def forward(self, image: Tensor) -> Tensor:
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=image.dtype).reshape(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=image.dtype).reshape(1, 3, 1, 1)
        x = (image / 255.0 - mean) / std
        rows, columns = x.shape[-2] // 14, x.shape[-1] // 14
        depth = self.depth_head(self.pretrained(x, self.taps), rows, columns).squeeze(1)
        return F.relu(depth) if self.max_depth is None else depth * self.max_depth


def official_model(
    encoder: str = "vits",
    depth: int | None = None,
    seed: int = 0,
    max_depth: float | None = None,
) -> OfficialDepthAnything:
    """Build the official architecture with random weights under which every path matters.

    `depth` overrides the number of layers (four at least); `max_depth` makes it a metric model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OfficialDepthAnything(encoder, depth, max_depth)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _randomize(name, parameter)
    return model.eval().requires_grad_(False)


def _randomize(name: str, parameter: Tensor) -> None:
    if name.endswith(("pos_embed", "cls_token")):
        parameter.normal_()
    elif "norm" in name and name.endswith("weight"):
        parameter.uniform_(0.5, 1.5)
    elif name.endswith("gamma"):
        parameter.uniform_(0.2, 0.6)
    elif name.endswith("output_conv2.2.bias"):
        parameter.fill_(1.0)
    elif parameter.ndim < 2 or name.endswith("mask_token"):
        parameter.normal_(std=0.2)
    else:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    if name.endswith("qkv.weight"):
        width = parameter.shape[1]
        parameter[: 2 * width] *= 1.7  # softmax logits of standard deviation near 3


def export_official(
    model: nn.Module, path: Path, height: int, width: int, exporter: str, opset: int
) -> None:
    """Export as users of the official code do, with either exporter ("dynamo", "torchscript")."""
    image = torch.zeros(1, 3, height, width)
    with _silence(), torch.no_grad():
        torch.onnx.export(
            model,
            (image,),
            str(path),
            dynamo=exporter == "dynamo",
            opset_version=opset,
            input_names=["image"],
            output_names=["depth"],
            **({"verbose": False} if exporter == "dynamo" else {}),
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(before)
