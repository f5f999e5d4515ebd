"""The four-layer stand-ins of `official.CONFIGS` as members of our own table."""

from models.variants import HEADS, RELATIVE, Encoder, Head, Variant

TINY = Encoder("tiny", "tiny", 32, 4, 2, (1, 2, 3, 4), 16, (8, 16, 24, 32))
TINY_SWIGLU = Encoder(
    "tiny-swiglu", "tiny-swiglu", 48, 4, 3, (1, 2, 3, 4), 16, (8, 16, 24, 32), swiglu=True
)


def tiny_variant(swiglu: bool = False, head: Head = RELATIVE) -> Variant:
    return Variant(TINY_SWIGLU if swiglu else TINY, head)


METRIC_INDOOR = HEADS[1]
