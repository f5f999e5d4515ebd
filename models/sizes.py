"""The sizes that a user types."""

import re

from models.errors import ModelError


def parse_size(size: str) -> tuple[int, int]:
    """Read `350` or `392x518` (height×width). Raises ModelError."""
    match = re.fullmatch(r"([0-9]{1,6})(?:[x×]([0-9]{1,6}))?", size)
    if match is None:
        raise ModelError(f"cannot read the size '{size}': write 350, or height×width as 392x518")
    return int(match[1]), int(match[2] or match[1])
