"""One way from an image file to RGB pixels, used by every room: what is embedded is what was checked."""

from fastxfer.images.containers import member_names, members
from fastxfer.images.decode import EXTENSIONS, FORMATS, MAX_PIXELS, check_header, decode_image, format_of, load_image
from fastxfer.images.pixels import DEFAULT, Pixels

__all__ = [
    "DEFAULT",
    "EXTENSIONS",
    "FORMATS",
    "MAX_PIXELS",
    "Pixels",
    "check_header",
    "decode_image",
    "format_of",
    "load_image",
    "member_names",
    "members",
]
