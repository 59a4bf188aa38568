"""Any image a user may hand over -> an upright RGB Pillow image.

Rules, so that nobody has to guess what the network saw:

* the EXIF orientation is applied; boxes are in pixels of that upright image;
* transparency is laid over white;
* 16-bit grey is scaled by its full range (65535 -> 255), 32-bit integer grey likewise;
* floating-point pixels must lie in 0..1;
* of an animation the first frame is taken;
* everything that cannot be read raises :class:`ImageError` with the image's name and the reason.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor"

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded (twice Pillow's own warning limit)."""

_EXIF_ORIENTATION = 0x0112
# What Pillow's readers raise on cut or damaged files: OSError mostly, SyntaxError for broken PNG chunks.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
)
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class ImageError(ValueError):
    """An image could not be read. ``name`` says which one, ``reason`` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        """Its way to another process: by default an exception is made anew from its message alone."""
        return type(self), (self.name, self.reason)


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read an image and return it upright, in RGB.

    Args:
        source: a path, encoded bytes, a Pillow image, an array (H, W, 3) or a tensor (3, H, W). Arrays and
            tensors may also have 1 (grey) or 4 (RGBA) channels, arrays may be (H, W); uint8, uint16, bool,
            integers in 0..255, or floats in 0..1.
        name: what to call the image in errors; by default its path or its type.

    Raises:
        ImageError: when it cannot be read.
    """
    name = name or _name_of(source)
    if isinstance(source, Image.Image):
        return _to_upright_rgb(source, name)
    if isinstance(source, torch.Tensor):
        return _from_array(_tensor_to_array(source, name), name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), name)
    if isinstance(source, str | os.PathLike):
        return _decode(_existing_file(source, name), name)
    raise ImageError(
        name, "not an image: give a path, bytes, a PIL image, an array (H, W, 3) or a tensor (3, H, W)"
    )


def many_images(images: object) -> list[ImageSource] | None:
    """The images of a sequence; None when it is one image."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return None
    if isinstance(images, np.ndarray | torch.Tensor):
        return list(images) if images.ndim == 4 else None
    return list(images) if isinstance(images, Iterable) else None


def _name_of(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source) if isinstance(source, str) else str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"{source.mode} image {source.width}x{source.height}")
    if isinstance(source, np.ndarray | torch.Tensor):
        return f"{type(source).__name__} {tuple(source.shape)} {source.dtype}"
    return type(source).__name__


def _existing_file(source: str | os.PathLike[str], name: str) -> Path:
    if str(source).lower().startswith(("http://", "https://", "s3://", "gs://", "data:")):
        raise ImageError(
            name[:80], "this is a URL, not a file: download it first, then give its path or bytes"
        )
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(name, "is a folder, not an image")
        if not path.exists():
            raise ImageError(name, "no such file")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ImageError(name, error.strerror or str(error)) from error
    return path


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return _to_upright_rgb(image, name)
    except UnidentifiedImageError as error:
        empty = file.stat().st_size == 0 if isinstance(file, Path) else file.getbuffer().nbytes == 0
        reason = (
            "the file is empty"
            if empty
            else "not an image in a format that Pillow reads, or damaged at its start"
        )
        raise ImageError(name, reason) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, f"too large to be read safely (more than {MAX_PIXELS:,} pixels)") from error
    except PermissionError as error:
        raise ImageError(name, "may not be read (permission denied)") from error
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(name, f"damaged or cut short ({error})") from error


def _to_upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise ImageError(name, f"has no pixels ({image.width}x{image.height})")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            name,
            f"too large to be read safely: {image.width}x{image.height} pixels, at most {MAX_PIXELS:,}",
        )
    try:
        image.load()  # an animation stands at its first frame unless the caller moved it
        return _to_rgb(_upright(image), name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(name, f"not enough memory for {image.width}x{image.height} pixels") from error
    except _DAMAGE as error:
        raise ImageError(name, f"damaged or cut short ({error})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DAMAGE:
        return image  # broken EXIF data is no reason to refuse good pixels
    if orientation in range(2, 9):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image.copy() if image.readonly else image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image), name)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        # La and RGBa (premultiplied alpha) convert only to their own straight form.
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _tensor_to_array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(
            name, f"expected a tensor (3, H, W), got {tuple(tensor.shape)}; arrays are (H, W, 3)"
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type
        tensor = tensor.float()
    array: np.ndarray = tensor.permute(1, 2, 0).numpy()
    return array


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = "; tensors are (3, H, W), so give a torch.Tensor or move the channels last"
        wanted = "expected an array (H, W, 3), (H, W, 4) or (H, W)"
        raise ImageError(name, f"{wanted}, got {array.shape}{hint if array.ndim == 3 else ''}")
    if 0 in array.shape:
        raise ImageError(name, f"has no pixels, its shape is {array.shape}")
    return _to_upright_rgb(Image.fromarray(np.ascontiguousarray(_to_uint8(array, name))), name)


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    # NaN fails this comparison too, since every comparison with it is false.
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(
                name, f"floating-point pixels must lie in 0..1, got {low:g}..{high:g}; rescale them first"
            )
        return _rounded(np.clip(array, 0, 1) * np.float32(255))
    if not np.issubdtype(array.dtype, np.integer):
        raise ImageError(name, f"cannot read pixels of type {array.dtype}; use uint8 or float32 in 0..1")
    if array.ndim == 2 or array.dtype == np.uint16:
        if low < 0 or high > 65535:
            raise ImageError(
                name, f"16-bit pixels must lie in 0..65535, got {low}..{high}; rescale them first"
            )
        # A 32-bit picture with only 8-bit values is 8-bit data in a wide type; uint16 always means the full
        # range.
        if array.dtype == np.uint16 or high > 255:
            return _rounded(array / np.float32(257))
    if low < 0 or high > 255:
        raise ImageError(name, f"integer pixels must lie in 0..255, got {low}..{high}; rescale them first")
    return np.asarray(array, dtype=np.uint8)


def _rounded(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(array), dtype=np.uint8)
