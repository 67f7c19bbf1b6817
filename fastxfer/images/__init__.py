"""One way from an image file to RGB pixels, used by every room: what is embedded is what was checked."""

from fastxfer.images.containers import count_rows, member_names, members, read_tar, tar_index
from fastxfer.images.decode import (
    EXTENSIONS,
    FORMATS,
    MAX_PIXELS,
    check_header,
    decode_content,
    decode_image,
    exists,
    format_of,
    load_image,
    read_content,
)
from fastxfer.images.pixels import CHOICES, DEFAULT, Pixels

__all__ = [
    "CHOICES",
    "DEFAULT",
    "EXTENSIONS",
    "FORMATS",
    "MAX_PIXELS",
    "Pixels",
    "check_header",
    "count_rows",
    "decode_content",
    "decode_image",
    "exists",
    "format_of",
    "load_image",
    "member_names",
    "members",
    "read_content",
    "read_tar",
    "tar_index",
]
