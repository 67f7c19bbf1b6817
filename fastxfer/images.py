"""One way from an image file to RGB pixels, used by every room: what is embedded is what was checked.

Conventions, decided here once:

- EXIF orientation is honoured (JPEG, PNG, TIFF, WebP).
- Grey becomes three equal channels. 16-bit grey is scaled by 65,535, not by the file's range.
- Alpha is dropped, as torchvision's and timm's loaders do; palettes are looked up; CMYK is converted.
- Of an animation or a multi-page file the first frame is taken.
- 32-bit integer pixels above 65,535 or below 0, and floating-point pixels, are refused: their scale is anyone's guess.

The format is told from the first bytes, not from the file's name. Pillow's decoder classes are called directly:
`PIL.Image.open` would apply its process-wide limit (`Image.MAX_IMAGE_PIXELS`) instead of ours, and changing that
global, or muting its warning, is neither thread-safe nor ours to do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fastxfer.errors import DataError

MAX_PIXELS = 100_000_000
"""Largest declared width x height that is decoded by default: 300 MB as RGB."""

FORMATS = "JPEG, PNG, BMP, GIF, TIFF, WebP, JPEG 2000 or PPM/PGM"
EXTENSIONS = frozenset(
    f".{ending}"
    for kind in ("jpg jpeg jpe jfif", "png", "bmp", "gif", "tif tiff", "webp", "jp2 j2k", "ppm pgm pbm pnm")
    for ending in kind.split()
)
"""File names that count as images when a folder is listed (lower case)."""

_Opener = Callable[[IO[bytes], str], ImageFile.ImageFile]

# First bytes -> Pillow's class. What isn't here is not decoded at all (EPS would start Ghostscript, for instance).
_SIGNATURES: tuple[tuple[bytes, str, _Opener], ...] = (
    (b"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
    (b"GIF87a", "GIF", GifImagePlugin.GifImageFile),
    (b"GIF89a", "GIF", GifImagePlugin.GifImageFile),
    (b"BM", "BMP", BmpImagePlugin.BmpImageFile),
    (b"II*\0", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", Jpeg2KImagePlugin.Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", "JPEG 2000", Jpeg2KImagePlugin.Jpeg2KImageFile),
    *((b"P" + digit, "PPM", PpmImagePlugin.PpmImageFile) for digit in (b"1", b"2", b"3", b"4", b"5", b"6")),
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image file.

    Returns a PIL image, mode RGB, upright, detached from the file. Thread-safe; changes nothing global in Pillow.

    Raises `DataError` naming the file: missing, not a plain file, empty, not an image, truncated or damaged,
    pixels of unknown scale, or a declared size over `max_pixels` (refused from the header, before decoding).
    """
    name = os.fspath(path)
    with _file(name) as stream:
        return decode_image(stream, name, max_pixels=max_pixels)


def check_header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Refuse what `load_image` would refuse before decoding, at a fraction of its cost: look before hours are spent.

    Returns (width, height) as the header declares them, before any EXIF rotation. Raises `DataError` naming the file:
    missing, not a plain file, empty, not an image, a header cut short, a declared size over `max_pixels`. A file cut
    after its header passes: only decoding tells.
    """
    name = os.fspath(path)
    with _file(name) as stream, _open(stream, name, max_pixels)[1] as image:
        return image.size


def format_of(content: bytes) -> str:
    """The format that a file's first bytes tell ("JPEG", "PNG" …); "" for none that is read here."""
    try:
        return _recognise(content[:16], "")[0]
    except DataError:
        return ""


@contextmanager
def _file(name: str) -> Iterator[IO[bytes]]:
    """The opened file; what goes wrong with the file itself, now or while it is read, becomes a `DataError`."""
    try:
        # A named pipe would wait for ever on open, so look before opening.
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise DataError(f"{name}: not a file; expected an image ({FORMATS})")
        with open(name, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file; expected an image") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def decode_image(stream: IO[bytes], name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image from an open, seekable binary stream; `name` is what messages call it. See `load_image`."""
    kind, image = _open(stream, name, max_pixels)
    with image:
        try:
            image.load()
            upright = _upright(image)
        except Exception as error:
            raise DataError(f"{name}: truncated or damaged {kind} file ({error})") from error
        return _to_rgb(upright, name)


def _open(stream: IO[bytes], name: str, max_pixels: int) -> tuple[str, ImageFile.ImageFile]:
    """Read the header: the name of the format, and Pillow's image, not decoded and not over `max_pixels`."""
    head = stream.read(16)
    stream.seek(0)
    kind, opener = _recognise(head, name)
    try:
        image = opener(stream, name)
    except Exception as error:  # decoders raise whatever their format's parser trips over
        raise DataError(f"{name}: truncated or damaged {kind} file, its header cannot be read ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise DataError(
            f"{name}: declares {width:,} x {height:,} pixels, over the limit of {max_pixels:,} pixels; "
            "not decoded (a smaller copy, or a higher max_pixels, would be)"
        )
    return kind, image


def _recognise(head: bytes, name: str) -> tuple[str, _Opener]:
    for signature, kind, opener in _SIGNATURES:
        if head.startswith(signature):
            return kind, opener
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP", WebPImagePlugin.WebPImageFile
    if not head:
        raise DataError(f"{name}: empty file (0 bytes); expected an image ({FORMATS})")
    if head.startswith(b"version https://"):
        raise DataError(f"{name}: a Git LFS pointer, not the image itself; fetch it with `git lfs pull`")
    raise DataError(f"{name}: not an image (starts with {head[:8]!r}); expected {FORMATS}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # unreadable EXIF is no reason to refuse pixels that are fine: it states no orientation
        orientation = 1
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        low, high = int(grey.min(initial=0)), int(grey.max(initial=0))
        if low < 0 or high > 65535:
            raise DataError(f"{name}: grey values from {low} to {high}; expected 16 bits, 0 to 65535")
        # round(v * 255 / 65535) in integers
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels, whose scale is unknown; save it with 8 or 16 bits")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on the direct way; the colours are the same
    if image.mode == "RGB":
        return image.copy()  # a plain Image, without the file that an ImageFile holds on to
    return image.convert("RGB")
