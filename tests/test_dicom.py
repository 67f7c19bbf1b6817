"""DICOM: grey values as the standard defines them, checked by hand-made files and by pydicom's own real ones."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from fastxfer.errors import DataError, UsageError
from fastxfer.images import Pixels, check_header, load_image


def write(path: Path, values: np.ndarray, **tags: object) -> Path:
    """A DICOM file of 16-bit grey values (or 8-bit colours), with these tags on top."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.PatientName, ds.PatientID = "Doe^Jane", "12345678"
    ds.Rows, ds.Columns = values.shape[:2]
    ds.SamplesPerPixel = 3 if values.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * values.itemsize
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    for tag, value in tags.items():
        setattr(ds, tag, value)
    ds.PixelData = values.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path, **choice: str) -> np.ndarray:
    image = load_image(path, pixels=Pixels(**choice))
    assert image.mode == "RGB"
    values = np.asarray(image)
    assert (values == values[..., :1]).all()
    return values[..., 0]


RAMP = np.arange(0, 4000, 100, dtype=np.uint16).reshape(5, 8)


def test_without_a_window_the_range_is_shown(tmp_path):
    path = write(tmp_path / "a.dcm", RAMP)
    want = np.rint(RAMP * 255.0 / 3900).astype(np.uint8)
    np.testing.assert_array_equal(grey(path), want)
    np.testing.assert_array_equal(
        grey(write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")), 255 - want
    )
    assert check_header(path) == (8, 5)
    assert (grey(write(tmp_path / "flat.dcm", np.full((2, 3), 7, np.uint16))) == 0).all()


def test_rescaling_and_window_are_those_of_the_standard(tmp_path):
    """PS3.3 C.11.2.1.2: x ≤ c − 0.5 − (w − 1)/2 is black, x > c − 0.5 + (w − 1)/2 white, a line between."""
    c, w = 500.0, 1000.0
    path = write(tmp_path / "a.dcm", RAMP, RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=c, WindowWidth=w)
    x = RAMP * 0.5 - 100
    want = np.rint(255 * np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1))
    np.testing.assert_array_equal(grey(path), want)
    np.testing.assert_array_equal(grey(path, dicom="range"), np.rint(RAMP * 255.0 / 3900))
    first = write(tmp_path / "b.dcm", RAMP, WindowCenter=[500, 90], WindowWidth=[1000, 7])
    np.testing.assert_array_equal(grey(first), np.rint(255 * np.clip((RAMP - 499.5) / 999 + 0.5, 0, 1)))
    signed = write(tmp_path / "c.dcm", RAMP.astype(np.int16) - 2000, WindowCenter=0, WindowWidth=2000)
    assert grey(signed).flat[0] == 0
    assert grey(signed).flat[-1] == 255


def test_a_look_up_table_comes_before_a_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 8], np.array([200, 10, 100, 250], np.uint16).tobytes()
    path = write(
        tmp_path / "a.dcm", np.array([[50, 100, 101, 102, 103, 900]], np.uint16), WindowCenter=1, WindowWidth=1,
        VOILUTSequence=[table],
    )  # fmt: skip
    np.testing.assert_array_equal(grey(path), [[200, 200, 10, 100, 250, 250]])


def test_padding_is_not_part_of_the_range(tmp_path):
    values = np.array([[65535, 65535, 100, 200, 300]], np.uint16)
    path = write(tmp_path / "a.dcm", values, PixelPaddingValue=65535)
    np.testing.assert_array_equal(grey(path)[0, 2:], [0, 128, 255])


def test_colour(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(write(tmp_path / "a.dcm", values))), values)


@pytest.mark.parametrize(
    "file",
    [
        "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_small_odd_jpeg.dcm", "examples_palette.dcm", "SC_rgb_rle_16bit.dcm", "examples_overlay.dcm",
        "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm",
    ],
)  # fmt: skip
def test_real_files_of_every_common_compression(file):
    path = Path(get_testdata_file(file, download=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = load_image(path)
        size = check_header(path)
    assert image.size == size
    assert np.asarray(image).std() > 5
    if file.startswith("MR_small"):
        plain = np.asarray(load_image(get_testdata_file("MR_small.dcm", download=False)))
        np.testing.assert_array_equal(np.asarray(image), plain)


def test_what_is_refused_is_named(tmp_path):
    def refused(path: Path, message: str, **options: int) -> None:
        with pytest.raises(DataError, match=message) as error:
            load_image(path, **options)
        assert str(path) in str(error.value)
        for identifier in ("Doe", "12345678"):
            assert identifier not in str(error.value)

    several = np.zeros((6, 4, 5), np.uint8)
    refused(write(tmp_path / "frames.dcm", several[0], NumberOfFrames=6), "6 frames; expected one image a file")
    refused(write(tmp_path / "large.dcm", RAMP), "declares 8 x 5 pixels, over the limit of 39 pixels", max_pixels=39)
    refused(write(tmp_path / "deflated.dcm", RAMP, syntax=DeflatedExplicitVRLittleEndian), "deflated DICOM file")
    whole = write(tmp_path / "whole.dcm", RAMP).read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole[:-20])
    refused(cut, "truncated, damaged or unsupported DICOM file")
    cut.write_bytes(whole[:200])
    refused(cut, "DICOM file")
    report = pydicom.dcmread(io.BytesIO(whole))
    for tag in ("PixelData", "Rows", "Columns"):
        delattr(report, tag)
    report.save_as(tmp_path / "report.dcm")
    refused(tmp_path / "report.dcm", "a DICOM file without an image")
    with pytest.raises(DataError, match="without an image"):
        check_header(tmp_path / "report.dcm")
    odd = write(tmp_path / "odd.dcm", RAMP, PhotometricInterpretation="HSV")
    refused(odd, "photometric interpretation 'HSV'; expected MONOCHROME1 or 2")
    with pytest.raises(UsageError, match="dicom 'full': expected window or range"):
        Pixels(dicom="full")


def test_dicom_folders_are_targets_that_are_checked_and_embedded(tmp_path):
    """From a folder of X-rays in DICOM to embeddings; the same pixels as PNG give the same ones."""
    import torch
    from PIL import Image

    from fastxfer.backbones import load_backbone
    from fastxfer.embed import embed
    from fastxfer.store import EmbeddingStore
    from fastxfer.targets import add_target, check_target

    rng = np.random.default_rng(0)
    for i in range(8):
        values = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
        folder = tmp_path / "dcm" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shown = load_image(write(folder / f"{i}.dcm", values, PhotometricInterpretation="MONOCHROME1"))
        folder = tmp_path / "png" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(shown)).save(folder / f"{i}.png")
    targets = [add_target(tmp_path / kind, kind, tmp_path) for kind in ("dcm", "png")]
    found = check_target(targets[0])
    assert found["undecodable"] == []
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    input_size, mean, std = (3, 32, 32), 0.5, 0.5\n\n"
        "    def __init__(self):\n        super().__init__()\n        self.scale = torch.nn.Parameter(torch.ones(1))\n\n"
        "    def forward(self, x):\n        return torch.nn.functional.avg_pool2d(x * self.scale, 8).flatten(1)\n\n\nbuild = Net\n"
    )
    torch.save({"scale": torch.full((1,), 2.0)}, tmp_path / "net.pt")
    backbone = load_backbone(tmp_path / "net.pt", arch=f"{tmp_path / 'net.py'}:build", name="net")
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    embed(backbone, targets, store)
    dicom, png = (np.asarray(store.embeddings("net", name)) for name in ("dcm", "png"))
    assert dicom.shape == (8, 48)
    np.testing.assert_array_equal(dicom, png)
