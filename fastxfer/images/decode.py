"""From an image file to RGB pixels. Conventions, decided here once:

- EXIF orientation is honoured (JPEG, PNG, TIFF, WebP).
- Grey becomes three equal channels. 16-bit grey is scaled by 65,535, or by the file's range where `Pixels` says so.
- DICOM is read by `fastxfer.images.dicom`; images inside archives, ``.npz`` and tables by `fastxfer.images.containers`.
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
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray
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
from fastxfer.images.containers import read_member, split_address
from fastxfer.images.dicom import decode_dicom, dicom_size, is_dicom
from fastxfer.images.pixels import DEFAULT, Pixels, grey8

MAX_PIXELS = 100_000_000
"""Largest declared width x height that is decoded by default: 300 MB as RGB."""

FORMATS = "JPEG, PNG, BMP, GIF, TIFF, WebP, JPEG 2000, PPM/PGM or DICOM"
EXTENSIONS = frozenset(
    f".{ending}"
    for kind in (
        "jpg jpeg jpe jfif",
        "png",
        "bmp",
        "gif",
        "tif tiff",
        "webp",
        "jp2 j2k",
        "ppm pgm pbm pnm",
        "dcm dicom",
    )
    for ending in kind.split()
)
"""File names that count as images when a folder is listed (lower case)."""

Stored = NDArray[np.uint8 | np.uint16]
"""Pixels as a container holds them: (h, w) or (h, w, 3)."""

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


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, pixels: Pixels = DEFAULT) -> Image.Image:
    """Decode one image file, or one image inside a container.

    Returns a PIL image, mode RGB, upright, detached from the file. Thread-safe; changes nothing global in Pillow.

    Raises `DataError` naming the file: missing, not a plain file, empty, not an image, truncated or damaged,
    pixels of unknown scale, or a declared size over `max_pixels` (refused from the header, before decoding).
    """
    name = os.fspath(path)
    with _file(name) as stream:
        if isinstance(stream, np.ndarray):
            _refuse_large(name, stream.shape[1], stream.shape[0], max_pixels)
            return _from_array(stream, name, pixels)
        return decode_image(stream, name, max_pixels=max_pixels, pixels=pixels)


def check_header(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Refuse what `load_image` would refuse before decoding, at a fraction of its cost: look before hours are spent.

    Returns (width, height) as the header declares them, before any EXIF rotation. Raises `DataError` naming the file:
    missing, not a plain file, empty, not an image, a header cut short, a declared size over `max_pixels`. A file cut
    after its header passes: only decoding tells.
    """
    name = os.fspath(path)
    with _file(name) as stream:
        if isinstance(stream, np.ndarray):
            return _refuse_large(name, stream.shape[1], stream.shape[0], max_pixels)
        if is_dicom(_head(stream)):
            return dicom_size(stream, name, max_pixels)
        with _open(stream, name, max_pixels)[1] as image:
            return image.size


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, or a container whose name and row the path continues with."""
    return os.path.isfile(path) or split_address(os.fspath(path)) is not None


def read_content(path: str | os.PathLike[str]) -> bytes | Stored:
    """What lies at a path: an encoded image, or pixels that a container holds. `DataError` as of `load_image`."""
    with _file(os.fspath(path)) as found:
        return found if isinstance(found, np.ndarray) else found.read()


def decode_content(content: bytes | Stored, name: str, *, pixels: Pixels = DEFAULT, at_least: int = 0) -> Image.Image:
    """`load_image` of what `read_content` gave. at_least: as of `decode_image`"""
    if isinstance(content, np.ndarray):
        _refuse_large(name, content.shape[1], content.shape[0], MAX_PIXELS)
        return _from_array(content, name, pixels)
    return decode_image(BytesIO(content), name, pixels=pixels, at_least=at_least)


def format_of(content: bytes | Stored) -> str:
    """The format that a file's first bytes tell ("JPEG", "PNG" …); "" for none that is read here."""
    if isinstance(content, np.ndarray):
        return "array"
    try:
        return "DICOM" if is_dicom(content) else _recognise(content[:16], "")[0]
    except DataError:
        return ""


@contextmanager
def _file(name: str) -> Iterator[IO[bytes] | Stored]:
    """The opened file, or pixels that lie in a container; what goes wrong with the file itself becomes a `DataError`."""
    try:
        # A named pipe would wait for ever on open, so look before opening.
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise DataError(f"{name}: not a file; expected an image ({FORMATS})")
        with open(name, "rb") as stream:
            yield stream
    except NotADirectoryError:
        address = split_address(name)
        if address is None:
            raise DataError(f"{name}: there is no such file; expected an image") from None
        inside = read_member(*address)
        yield BytesIO(inside) if isinstance(inside, bytes) else inside
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file; expected an image") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # of a path that holds a NUL; what is wrong with the content is a `DataError` by then
        raise DataError(f"{name!r}: no path of a file ({error})") from error


def decode_image(
    stream: IO[bytes], name: str, *, max_pixels: int = MAX_PIXELS, pixels: Pixels = DEFAULT, at_least: int = 0
) -> Image.Image:
    """Decode one image from an open, seekable binary stream; `name` is what messages call it. See `load_image`.

    at_least: pixels a side that are enough: a JPEG is decoded at a half, a quarter or an eighth of its size, from a part
    of its frequencies, as long as both sides have as many; 0 = as it is
    """
    if is_dicom(_head(stream)):
        return decode_dicom(stream, name, max_pixels, pixels).convert("RGB")
    kind, image = _open(stream, name, max_pixels)
    with image:
        try:
            if at_least:
                image.draft(None, (at_least, at_least))  # None: the mode stays
            image.load()
            upright = _upright(image)
        except Exception as error:
            raise DataError(f"{name}: truncated or damaged {kind} file ({error})") from error
        return _to_rgb(upright, name, pixels)


def _open(stream: IO[bytes], name: str, max_pixels: int) -> tuple[str, ImageFile.ImageFile]:
    """Read the header: the name of the format, and Pillow's image, not decoded and not over `max_pixels`."""
    kind, opener = _recognise(_head(stream), name)
    try:
        image = opener(stream, name)
    except Exception as error:  # decoders raise whatever their format's parser trips over
        raise DataError(f"{name}: truncated or damaged {kind} file, its header cannot be read ({error})") from error
    try:
        _refuse_large(name, *image.size, max_pixels)
    except DataError:
        image.close()
        raise
    return kind, image


def _head(stream: IO[bytes]) -> bytes:
    head = stream.read(132)
    stream.seek(0)
    return head


def _refuse_large(name: str, width: int, height: int, max_pixels: int) -> tuple[int, int]:
    if width * height > max_pixels:
        raise DataError(
            f"{name}: declares {width:,} x {height:,} pixels, over the limit of {max_pixels:,} pixels; "
            "not decoded (a smaller copy, or a higher max_pixels, would be)"
        )
    return width, height


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
    # What begins with a word may be anyone's text, so it is not quoted.
    start = "" if head[:1].isalnum() else f" (starts with {head[:8]!r})"
    raise DataError(f"{name}: not an image{start}; expected {FORMATS}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # unreadable EXIF is no reason to refuse pixels that are fine: it states no orientation
        orientation = 1
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _from_array(values: Stored, name: str, pixels: Pixels) -> Image.Image:
    if values.ndim == 3 and values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)  # as of files: the upper 8 bits of 16-bit colour
    return _to_rgb(Image.fromarray(values), name, pixels)


def _to_rgb(image: Image.Image, name: str, pixels: Pixels) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        low, high = int(grey.min()), int(grey.max())
        if low < 0 or high > 65535:
            raise DataError(f"{name}: grey values from {low} to {high}; expected 16 bits, 0 to 65535")
        low, high = (low, high) if pixels.grey16 == "range" else (0, 65535)
        image = Image.fromarray(grey8(grey.astype(np.float64), low, high))
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels, whose scale is unknown; save it with 8 or 16 bits")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns on the direct way; the colours are the same
    if image.mode == "RGB":
        return image.copy()  # a plain Image, without the file that an ImageFile holds on to
    return image.convert("RGB")
