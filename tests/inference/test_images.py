from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groundingml.inference import ImageError, load_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return image.getpixel((x, y))  # type: ignore[return-value]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste("red", (0, 0, 20, 10))  # the upper left quarter
    # How the camera stores the picture so that undoing the orientation gives the upright one.
    stored_as = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if stored_as is None else upright.transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "photo.png", exif=exif.tobytes())
    loaded = load_image(path)
    assert loaded.size == (40, 20)
    assert pixel(loaded, 2, 2) == RED
    assert pixel(loaded, 37, 17) == (0, 0, 255)


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = saved(
        Image.new("RGB", (8, 8), "red"), tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00"
    )
    assert load_image(path).size == (8, 8)


@pytest.mark.parametrize(
    ("mode", "color", "expected", "why"),
    [
        ("L", 128, (128, 128, 128), "grey is spread over the channels"),
        ("1", 1, WHITE, "bilevel"),
        ("RGBA", (255, 0, 0, 255), RED, "opaque pixels stay"),
        ("RGBA", (255, 0, 0, 0), WHITE, "transparent pixels show white"),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127), "half transparent black over white is grey"),
        ("LA", (0, 0), WHITE, "grey with alpha"),
        ("CMYK", (0, 255, 255, 0), RED, "printing colours"),
        ("YCbCr", (76, 85, 255), (254, 0, 0), "video colours, within rounding"),
        ("HSV", (0, 255, 255), RED, "HSV"),
        ("I", 300, (1, 1, 1), "32-bit grey beyond 8 bits is read as 16-bit"),
        ("F", 0.5, (128, 128, 128), "floats lie in 0..1"),
    ],
)
def test_pillow_modes(mode: str, color: object, expected: tuple[int, ...], why: str) -> None:
    loaded = load_image(Image.new(mode, (4, 3), color))  # type: ignore[arg-type]
    assert loaded.mode == "RGB", why
    assert np.abs(np.subtract(pixel(loaded), expected)).max() <= 1, why


@pytest.mark.parametrize("transparent", [True, False])
def test_palette_images(tmp_path: Path, transparent: bool) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    path = saved(image, tmp_path / "a.png", **({"transparency": 0} if transparent else {}))
    assert pixel(load_image(path)) == (WHITE if transparent else RED)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32896, 128), (257, 1)])
def test_sixteen_bit_png_uses_its_full_range(tmp_path: Path, value: int, expected: int) -> None:
    path = saved(Image.fromarray(np.full((4, 4), value, np.uint16)), tmp_path / "a.png")
    assert pixel(load_image(path)) == (expected,) * 3


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(load_image(path)) == RED


RAMP = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (RAMP, "uint8 (H, W, 3)"),
        (np.asfortranarray(RAMP), "not contiguous"),
        (RAMP.astype(np.float32) / 255, "floats in 0..1"),
        (RAMP.astype(np.float64) / 255, "doubles"),
        (RAMP.astype(np.float16) / np.float16(255), "half precision"),
        (RAMP.astype(np.int64), "integers in 0..255"),
        (RAMP.astype(np.uint16) * 257, "16-bit colour"),
        (np.dstack([RAMP, np.full((2, 4), 255, np.uint8)]), "opaque RGBA"),
        (torch.from_numpy(RAMP).permute(2, 0, 1), "uint8 tensor (3, H, W)"),
        (torch.from_numpy(RAMP).permute(2, 0, 1) / 255, "float tensor"),
    ],
)
def test_arrays_and_tensors_give_their_pixels(source: np.ndarray | torch.Tensor, why: str) -> None:
    assert np.array_equal(np.asarray(load_image(source)), RAMP), why


def test_grey_arrays_and_tensors() -> None:
    grey = np.array([[0, 255]], np.uint8)
    expected = np.array([[[0] * 3, [255] * 3]], np.uint8)
    sources = (
        grey,
        grey[..., None],
        grey > 0,
        torch.from_numpy(grey)[None],
        torch.tensor([[[0.0, 1.0]]]).bfloat16(),
    )
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), expected)


@pytest.mark.parametrize("kind", ["str", "path", "bytes"])
def test_encoded_sources(photo_dir: Path, kind: str) -> None:
    path = photo_dir / "cat.jpg"
    source = {"str": str(path), "path": path, "bytes": path.read_bytes()}[kind]
    assert np.array_equal(np.asarray(load_image(source)), np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4, 3)) + 200.0, "must lie in 0..1, got 200..200"),
        (np.full((4, 4, 3), np.nan), "must lie in 0..1"),
        (np.full((4, 4, 3), 256, np.int32), "must lie in 0..255"),
        (np.full((4, 4), -1, np.int32), "must lie in 0..65535"),
        (np.zeros((3, 4, 5), np.uint8), "tensors are (3, H, W)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (np.zeros((4, 4, 3), complex), "cannot read pixels of type complex128"),
        (torch.zeros(5, 4, 3), "arrays are (H, W, 3)"),
        (torch.zeros(3, 0, 4), "has no pixels"),
        (12, "not an image"),
        (None, "not an image"),
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        ("https://example.com/cat.jpg", "URL"),
        ("no/such/file.jpg", "no such file"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_is_no_image_says_why(source: object, reason: str) -> None:
    with pytest.raises(ImageError, match="(?i)" + reason.replace("(", r"\(").replace(")", r"\)")) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert caught.value.name
    assert caught.value.reason in str(caught.value)


def test_errors_name_the_file(tmp_path: Path) -> None:
    folder, empty, text = tmp_path / "folder", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    folder.mkdir()
    empty.touch()
    text.write_text("hello")
    for path, reason in [(folder, "folder"), (empty, "empty"), (text, "not an image")]:
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path)
        assert str(path) in str(caught.value)
    with pytest.raises(ImageError, match=r"^upload 7: "):
        load_image(b"junk", name="upload 7")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_anywhere_is_an_image_error_or_an_image(photo_dir: Path, format_name: str) -> None:
    buffer = io.BytesIO()
    Image.open(photo_dir / "cat.jpg").resize((60, 40)).save(buffer, format_name)
    data = buffer.getvalue()
    lengths = range(1, len(data), max(1, len(data) // 60))
    assert sum(_is_refused(data[:length]) for length in lengths) > 20


def _is_refused(data: bytes) -> bool:
    try:
        load_image(data)
    except ImageError:
        return True
    return False


def test_a_decompression_bomb_is_refused_without_decoding(tmp_path: Path) -> None:
    bomb = (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    path = tmp_path / "bomb.bmp"
    path.write_bytes(bomb)
    with pytest.raises(ImageError, match="too large to be read safely"):
        load_image(path)


def test_the_users_image_is_not_changed() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    load_image(image)
    assert image.mode == "RGBA"
    assert pixel(image) == (255, 0, 0, 0)
