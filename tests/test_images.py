"""Images of every mode come out as CoOp's pipeline has them, or are refused by name."""

import zlib

import numpy as np
import pytest
from PIL import Image

from apd.errors import UserError
from apd.images import read_image

WIDE = np.array([[0, 20000], [40000, 65535]], dtype=np.uint16)


def pixels(path):
    return np.asarray(read_image(path)).tolist()


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "name, values",
    [
        ("grey.png", WIDE),
        ("grey.tif", WIDE),
        ("float.tif", (WIDE / 65535).astype(np.float32)),
        ("signed.tif", WIDE.astype(np.int32)),
    ],
)
def test_more_than_8_bits_are_refused(tmp_path, name, values):
    """Pillow would clip them: to white, those in [0, 1] to black."""
    path = save(tmp_path / name, Image.fromarray(values))
    with pytest.raises(UserError, match=f"cannot read image {path} .mode .* more than 8 bits"):
        read_image(path)


def test_colours_of_16_bits_are_scaled(tmp_path):
    """Pillow reads them as 8 bits, by the type's range."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in WIDE)

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = (2).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert pixels(tmp_path / "a.png") == [[[0] * 3, [78] * 3], [[156] * 3, [255] * 3]]


@pytest.mark.parametrize(
    "mode, colour, name, expected",
    [
        ("1", 1, "a.png", [255, 255, 255]),
        ("L", 100, "a.png", [100, 100, 100]),
        ("LA", (100, 0), "a.png", [100, 100, 100]),
        ("RGBA", (1, 2, 3, 0), "a.png", [1, 2, 3]),  # the colour under transparency
        ("RGBA", (1, 2, 3, 0), "a.tif", [1, 2, 3]),
        ("P", 0, "a.png", [0, 0, 0]),
        ("CMYK", (0, 255, 255, 0), "a.tif", [255, 0, 0]),
    ],
)
def test_modes(tmp_path, mode, colour, name, expected):
    assert pixels(save(tmp_path / name, Image.new(mode, (1, 1), colour))) == [[expected]]


def test_a_rotation_in_exif_is_not_applied(tmp_path):
    image = Image.new("RGB", (3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert read_image(save(tmp_path / "a.jpg", image, exif=exif)).size == (3, 2)


def test_the_first_frame_counts(tmp_path):
    first, second = (Image.new("RGB", (1, 1), colour) for colour in ("red", "blue"))
    path = save(tmp_path / "a.tif", first, save_all=True, append_images=[second])
    assert pixels(path) == [[[255, 0, 0]]]


def test_a_picture_above_pillows_limit(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("RGB", (20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="more pixels than Pillow reads: make it smaller"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_damaged_files(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read image {tmp_path / 'a.png'}"):
        read_image(tmp_path / "a.png")
