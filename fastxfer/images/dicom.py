"""DICOM files (PS3.3, PS3.5), by pydicom: one frame becomes an 8-bit image, identifiers stay in the file.

Grey: stored values, rescaled (modality transformation), through the file's window or look-up table (VOI) or over their
range, MONOCHROME1 inverted. Colour: palettes looked up, YBR converted.
"""

from __future__ import annotations

import re
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastxfer.errors import DataError
from fastxfer.images.pixels import Pixels, grey8

MAGIC_AT, MAGIC = 128, b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXTRA = "pip install 'fastxfer[xray]'"


def is_dicom(head: bytes) -> bool:
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def dicom_size(stream: IO[bytes], name: str, max_pixels: int) -> tuple[int, int]:
    """(width, height) as the header declares them. `DataError` for what `decode_dicom` would refuse by the header."""
    pydicom = _pydicom(name)
    try:
        pydicom.filereader.read_preamble(stream, force=False)
        meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
        # Inflated as a whole before anything can be looked at: a few bytes could become many gigabytes.
        deflated = meta.get("TransferSyntaxUID") == _DEFLATED
        stream.seek(0)
        header = None if deflated else pydicom.dcmread(stream, stop_before_pixels=True)
        stream.seek(0)
        frames = 1 if header is None else int(header.get("NumberOfFrames") or 1)
        size = (0, 0) if header is None else (int(header.get("Columns") or 0), int(header.get("Rows") or 0))
    except Exception as error:
        raise DataError(
            f"{name}: truncated or damaged DICOM file, its header cannot be read ({_said(error)})"
        ) from error
    if header is None:
        raise DataError(f"{name}: a deflated DICOM file, which isn't read; dcmtk's `dcmconv +te` writes it undeflated")
    if not size[0] or not size[1]:
        raise DataError(f"{name}: a DICOM file without an image; expected one with Rows, Columns and PixelData")
    if frames > 1:
        raise DataError(f"{name}: a DICOM file of {frames:,} frames; expected one image a file, so split it")
    if size[0] * size[1] > max_pixels:
        raise DataError(
            f"{name}: declares {size[0]:,} x {size[1]:,} pixels, over the limit of {max_pixels:,} pixels; "
            "not decoded (a smaller copy, or a higher max_pixels, would be)"
        )
    return size


def decode_dicom(stream: IO[bytes], name: str, max_pixels: int, pixels: Pixels) -> Image.Image:
    """The image of a DICOM file, mode L or RGB. `DataError` names the file: no image, several frames, damaged, over
    `max_pixels`, a compression without its plug-in, pixels of unknown scale."""
    dicom_size(stream, name, max_pixels)
    pydicom = _pydicom(name)
    try:
        dataset = pydicom.dcmread(stream)
        stored = pydicom.pixels.pixel_array(dataset)
        return _image(pydicom, dataset, stored, pixels)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # parsers and plug-ins raise whatever they trip over
        missing = "plugin" in str(error).lower() or "dependencies" in str(error).lower()
        hint = f"; {_EXTRA} brings the usual decoders" if missing else ""
        raise DataError(f"{name}: truncated, damaged or unsupported DICOM file ({_said(error)}){hint}") from error


def _said(error: Exception) -> str:
    """What pydicom says, in one line, without the values that it quotes: in a damaged file they may be a patient's."""
    return " ".join(re.sub(r"'[^']*'|\"[^\"]*\"", "…", str(error)).split())


def _image(pydicom: Any, dataset: Any, stored: NDArray[Any], pixels: Pixels) -> Image.Image:
    kind = str(dataset.PhotometricInterpretation)
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        grey = _grey(pydicom, dataset, stored, pixels)
        return Image.fromarray(255 - grey if kind == "MONOCHROME1" else grey)
    if kind == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, dataset)
        bits = 8 * stored.itemsize
    elif kind == "RGB" or kind.startswith("YBR"):  # converted by pixel_array
        bits = int(dataset.BitsStored)
    else:
        raise DataError(f"photometric interpretation '{kind}'; expected MONOCHROME1 or 2, RGB, YBR or PALETTE COLOR")
    if bits > 16:
        raise DataError(f"colours of {bits} bits; expected 8 or 16")
    return Image.fromarray(grey8(stored.astype(np.float64), 0, 2**bits - 1))


def _grey(pydicom: Any, dataset: Any, stored: NDArray[Any], pixels: Pixels) -> NDArray[np.uint8]:
    values = np.asarray(pydicom.pixels.apply_rescale(stored, dataset), np.float64)
    if pixels.dicom == "window" and "VOILUTSequence" in dataset:
        shown = pydicom.pixels.apply_voi(np.rint(values).astype(np.int64), dataset)
        return grey8(shown.astype(np.float64), 0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if pixels.dicom == "window" and dataset.get("WindowCenter") not in (None, ""):
        far = np.array([-1e30, 1e30])  # shown as black and as white
        low, high = pydicom.pixels.apply_windowing(far, dataset)
        return grey8(pydicom.pixels.apply_windowing(values, dataset), float(low), float(high))
    padding = dataset.get("PixelPaddingValue")
    inside = (
        values if padding is None else values[stored != padding]
    )  # the frame around the image isn't part of its range
    return grey8(values, float(inside.min(initial=np.inf)), float(inside.max(initial=-np.inf)))


def _pydicom(name: str) -> Any:
    try:
        import pydicom
        import pydicom.filereader
        import pydicom.pixels
    except ImportError as error:
        raise DataError(f"{name}: a DICOM file, and pydicom isn't installed: {_EXTRA}") from error
    return pydicom
