"""Photos in, arrays out; anything but an RGB photo is told in one line."""

import numpy as np
import pytest
from PIL import Image

from models import ModelError, load_image, sample_image


def test_layout_range_and_size(tmp_path):
    # Left half red, right half blue, top row black.
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255
    pixels[:, 30:, 2] = 200
    pixels[:20] = 0
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    image = load_image(path, 28, 42)
    assert image.shape == (1, 3, 28, 42)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    assert image[0, :, -1, 0].tolist() == [255, 0, 0]
    assert image[0, :, -1, -1].tolist() == [0, 0, 200]
    assert image[0, :, 0].max() == 0


def test_a_phone_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    image = load_image(path, 40, 20)
    assert image[0, 0, 0].min() == 255
    assert image[0, 0, -1].max() == 0


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("L", "png", "greyscale"),
        ("RGBA", "png", "RGB with transparency"),
        ("P", "png", "a palette image"),
        ("CMYK", "jpg", "CMYK"),
        ("LA", "png", "greyscale with transparency"),
        ("1", "png", "black and white"),
        ("I;16", "png", "16-bit greyscale"),
        ("LAB", "tiff", "of mode LAB"),
    ],
)
def test_what_is_not_rgb_is_told(tmp_path, mode, suffix, words):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (8, 8)).save(path)
    with pytest.raises(ModelError, match=rf"a\.{suffix} is {words}, not RGB; convert"):
        load_image(path, 14, 14)


def test_a_missing_image_is_told(tmp_path):
    with pytest.raises(ModelError, match="no image at"):
        load_image(tmp_path / "none.jpg", 14, 14)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\nrubbish"])
def test_an_unreadable_image_is_told(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read .*a\.png as an image"):
        load_image(path, 14, 14)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_photo_is_told(tmp_path, share):
    whole = sample_image().read_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match="cannot read"):
        load_image(path, 14, 14)


def test_a_folder_is_told(tmp_path):
    with pytest.raises(ModelError, match="cannot read"):
        load_image(tmp_path, 14, 14)


def test_the_sample_photo_is_there():
    image = load_image(sample_image(), 70, 56)
    assert image.shape == (1, 3, 70, 56)
    assert 0 <= image.min() < 50
    assert 200 < image.max() <= 255
