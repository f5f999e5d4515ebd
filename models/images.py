"""Photographs as the exported models take them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models.errors import ModelError

# Pillow's names for how a pixel is stored.
_MODES = {
    "1": "black and white",
    "L": "greyscale",
    "LA": "greyscale with transparency",
    "P": "a palette image",
    "PA": "a palette image with transparency",
    "RGBA": "RGB with transparency",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "I": "32-bit greyscale",
    "I;16": "16-bit greyscale",
    "F": "floating-point greyscale",
}


def load_image(path: Path, height: int, width: int) -> NDArray[np.float32]:
    """Read an RGB photo as 1×3×height×width in [0, 255], upright and resized bilinearly.

    Anything but 8-bit RGB is a ModelError: how transparency or ink becomes RGB is the user's call.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except FileNotFoundError:
        raise ModelError(f"no image at {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ModelError(
            f"cannot read {path} as an image ({error}); give a JPEG or PNG photo"
        ) from None
    if upright.mode != "RGB":
        raise ModelError(
            f"{path} is {_MODES.get(upright.mode, 'of mode ' + upright.mode)}, not RGB; "
            "convert it to 8-bit RGB first (in Python: Image.open(path).convert('RGB'))"
        )
    resized = upright.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def sample_image() -> Path:
    """Return the photograph that ships with matplotlib: Grace Hopper, 1984, public domain.

    U.S. Navy portrait, `sample_data/grace_hopper.jpg`, 512×600 pixels.
    """
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise ModelError(
            "this matplotlib has no sample photo (sample_data/grace_hopper.jpg); "
            "give an image of your own"
        )
    return path
