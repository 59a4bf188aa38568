"""Images as annotators saw them: upright, whatever their EXIF orientation says."""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError

_ORIENTATION = 0x0112
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}


def upright(encoded: bytes) -> tuple[bytes, str, int, int]:
    """An image's bytes, the ending of its file's name, its width and height.

    The bytes are those given, except of an image that has to be turned: many tools ignore its orientation,
    and boxes would not fit.

    Raises:
        ValueError: they are no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            kind = image.format or ""
            if image.getexif().get(_ORIENTATION, 1) == 1 and kind in _ENDINGS:
                return encoded, _ENDINGS[kind], image.width, image.height
            turned = ImageOps.exif_transpose(image)
            target, ending = ("JPEG", ".jpg") if kind == "JPEG" else ("PNG", ".png")
            buffer = io.BytesIO()
            turned.save(buffer, target, **({"quality": 95} if target == "JPEG" else {}))
            return buffer.getvalue(), ending, turned.width, turned.height
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"its image cannot be read: {error}") from error
