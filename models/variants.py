"""The Depth Anything V2 family as a table: four encoders times three heads.

Widths and layers are those of the official `run.py` and `dpt.py`
(github.com/DepthAnything/Depth-Anything-V2); licences are those of its README.
"""

import difflib
from dataclasses import dataclass

from models.errors import ModelError

PATCH = 14
"""Side of a patch in pixels: image sizes are multiples of it."""

TABLE_SIDE = 37
"""Side of the trained position table in patches (518 / 14)."""


@dataclass(frozen=True)
class Encoder:
    """One DINOv2 backbone and the width of the DPT head trained on it."""

    size: str
    """The word in our names: `dav2-SIZE`."""
    code: str
    """The word in official file names: `depth_anything_v2_CODE.pth`."""
    width: int
    layers: int
    heads: int
    taps: tuple[int, int, int, int]
    """1-based layers whose tokens the head reads."""
    features: int
    """Channels of the fusion stage."""
    neck: tuple[int, int, int, int]
    """Channels of the four reassembled maps."""
    swiglu: bool = False
    non_commercial: bool = True
    public: bool = True
    """Whether trained weights were published."""


@dataclass(frozen=True)
class Head:
    """What the last activation means: a unitless inverse depth, or metres."""

    suffix: str
    max_depth_m: int | None
    dataset: str
    """The word in official file names, empty for the relative models."""
    hub_word: str
    """The word in Hugging Face ids, empty for the relative models."""


@dataclass(frozen=True)
class Variant:
    """One member of the family."""

    encoder: Encoder
    head: Head

    @property
    def name(self) -> str:
        """The name a user types, e.g. `dav2-small-metric-indoor`."""
        return f"dav2-{self.encoder.size}{self.head.suffix}"

    @property
    def hub_id(self) -> str | None:
        """The Hugging Face id of the trained weights; None if none were published."""
        if not self.encoder.public:
            return None
        words = ["Depth-Anything-V2", self.head.hub_word, self.encoder.size.capitalize(), "hf"]
        return "depth-anything/" + "-".join(word for word in words if word)


ENCODERS = (
    Encoder(
        "small", "vits", 384, 12, 6, (3, 6, 9, 12), 64, (48, 96, 192, 384), non_commercial=False
    ),
    Encoder("base", "vitb", 768, 12, 12, (3, 6, 9, 12), 128, (96, 192, 384, 768)),
    Encoder("large", "vitl", 1024, 24, 16, (5, 12, 18, 24), 256, (256, 512, 1024, 1024)),
    Encoder(
        "giant",
        "vitg",
        1536,
        40,
        24,
        (10, 20, 30, 40),
        384,
        (1536, 1536, 1536, 1536),
        swiglu=True,
        public=False,
    ),
)

RELATIVE = Head("", None, "", "")
HEADS = (
    RELATIVE,
    Head("-metric-indoor", 20, "hypersim", "Metric-Indoor"),
    Head("-metric-outdoor", 80, "vkitti", "Metric-Outdoor"),
)

VARIANTS = {
    variant.name: variant
    for variant in (Variant(encoder, head) for encoder in ENCODERS for head in HEADS)
}


def variant_named(name: str) -> Variant:
    """Look a name up; an unknown one is a ModelError that lists the nearest names."""
    if name in VARIANTS:
        return VARIANTS[name]
    nearest = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4) or list(VARIANTS)[::3]
    raise ModelError(
        f"unknown model '{name}': nearest names are {', '.join(nearest)}; "
        "a path ending in .onnx or .pth is a model too, and hf:OWNER/NAME is Hugging Face's"
    )
