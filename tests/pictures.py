"""Images, DICOM files and containers in memory, good ones and damaged ones: tests and `benchmarks.breaking` write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

Rng = np.random.Generator
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")
FORMATS = (*LOSSLESS, "JPEG", "GIF", "WEBP", "JPEG2000")


def picture(rng: Rng, height: int = 24, width: int = 31) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dicom(rng: Rng, **tags: Any) -> bytes:
    """A grey DICOM file that says who is on it; a tag of None is left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Jane", "12345678", "19700102"
    stored = {
        "Rows": 8,
        "Columns": 6,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": rng.integers(0, 4000, 48, dtype=np.uint16).tobytes(),
    }
    for tag, value in (stored | tags).items():
        if value is not None:
            setattr(ds, tag, value)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def png_of(width: int, height: int, pixels: bytes = b"\0" * 100) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def npz(rng: Rng, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, images=rng.integers(0, 256, (5, 6, 7), dtype=np.uint8))
    return stream.getvalue()


def table(rng: Rng, ending: str) -> bytes:
    """Three images as Parquet, as a stream of Arrow's, or as one of its files."""
    stream = io.BytesIO()
    content = pyarrow.table({"image": [encode(picture(rng), "PNG") for _ in range(3)]})
    if ending == "parquet":
        pyarrow.parquet.write_table(content, stream)
    else:
        new = pyarrow.ipc.new_stream if ending == "arrow" else pyarrow.ipc.new_file
        with new(stream, content.schema) as writer:
            writer.write_table(content, max_chunksize=1)
    return stream.getvalue()


def cut(content: bytes, rng: Rng) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def turned(content: bytes, rng: Rng) -> bytes:
    """A few bytes turned, anywhere behind the first 16 (a changed signature is another kind)."""
    spoiled = bytearray(content)
    for at in rng.integers(16, len(content), 1 + int(rng.integers(8))):
        spoiled[at] ^= int(rng.integers(1, 256))
    return bytes(spoiled)
