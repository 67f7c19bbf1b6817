"""One decode path: every kind of file comes out as RGB, or is refused by name."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from fastxfer.errors import DataError
from fastxfer.images import MAX_PIXELS, check_header, decode_image, load_image


def picture(height: int = 6, width: int = 9, seed: int = 0) -> Image.Image:
    """A picture without any symmetry, so that every wrong turn shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode_image(io.BytesIO(content), "x.img")
    assert image.mode == "RGB"
    assert type(image) is Image.Image
    return np.asarray(image)


def try_pixels(content: bytes) -> np.ndarray | None:
    """The pixels, or None where the file is refused; any exception but a `DataError` fails the test."""
    try:
        return pixels(content)
    except DataError:
        return None


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has one row of nothing: small on disk, huge once decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"  # the content decides, not the name
    path.write_bytes(encode(picture(), kind))
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(picture()))


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("JPEG2000", {"irreversible": False})])
def test_modern_formats(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(pixels(encode(picture(40, 50), kind, **options)), np.asarray(picture(40, 50)))


def test_jpeg_is_what_pillow_decodes() -> None:
    content = encode(picture(40, 50), "JPEG")
    assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_modes(mode: str) -> None:
    image = picture().convert(mode)
    assert np.array_equal(pixels(encode(image, "PNG")), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_blended() -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.full((6, 9), 3, dtype=np.uint8)))
    assert np.array_equal(pixels(encode(image, "PNG")), np.asarray(picture()))


def test_palette_with_transparency_loads_without_a_warning() -> None:
    image = picture().quantize(8)
    content = encode(image, "PNG", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(content), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted() -> None:
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert pixels(encode(white, "JPEG", quality=95)).min() > 250
    black = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert pixels(encode(black, "JPEG", quality=95)).max() < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_65535(kind: str) -> None:
    grey = np.array([[0, 1, 128, 129], [257, 32768, 65534, 65535]], dtype=np.uint16)
    out = pixels(encode(Image.fromarray(grey), kind))
    assert np.array_equal(out[..., 0], np.round(grey / 65535 * 255).astype(np.uint8))
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 0], out[..., 2])


def test_16_bit_grey_is_not_stretched_to_its_range() -> None:
    dark = Image.fromarray(np.full((4, 4), 2570, dtype=np.uint16))
    assert set(pixels(encode(dark, "PNG")).ravel()) == {10}


def test_32_bit_grey_within_16_bits_is_scaled_and_beyond_is_refused() -> None:
    fine = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert pixels(encode(fine, "TIFF"))[0, :, 0].tolist() == [0, 255]
    for value in (-1, 65536):
        wild = Image.fromarray(np.array([[0, value]], dtype=np.int32))
        with pytest.raises(DataError, match=r"x\.img: grey values from -?\d+ to \d+; expected 16 bits"):
            pixels(encode(wild, "TIFF"))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match=r"x\.img: floating-point pixels, whose scale is unknown"):
        pixels(encode(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    image = picture(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    out = pixels(encode(image, kind, exif=exif, **options))
    plain = Image.open(io.BytesIO(encode(image, kind, **options))).convert("RGB")
    plain.getexif()[0x0112] = orientation
    assert np.array_equal(out, np.asarray(ImageOps.exif_transpose(plain)))
    assert out.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow mentions the broken tag
        content = encode(picture(24, 40), "JPEG", exif=exif)
        assert pixels(content).shape == (24, 40, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    red, blue = (Image.new("RGB", (5, 4), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    out = pixels(encode(red, kind, save_all=True, append_images=[blue], **options))
    assert out.shape == (4, 5, 3)
    assert (out == [255, 0, 0]).all()


def test_one_pixel() -> None:
    assert pixels(encode(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7, 7, 7]]]


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    content = encode(picture(30, 30), kind)
    whole = pixels(content)
    refused = 0
    for length in [*range(0, len(content), max(1, len(content) // 60)), len(content) - 1]:
        out = try_pixels(content[:length])
        refused += out is None
        assert out is None or np.array_equal(out, whole), f"{length} of {len(content)} bytes"
    assert refused > 40


def test_truncated_and_empty_files_are_named(tmp_path: Path) -> None:
    content = encode(picture(60, 60), "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg: truncated or damaged JPEG file"):
        load_image(cut)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.png: empty file \(0 bytes\); expected an image \(JPEG, PNG,"):
        load_image(empty)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", r"not an image \(starts with b'<html>no'\); expected JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"not an image"),
        (b"\x89PNG\r\n\x1a\n", r"truncated or damaged PNG file, its header cannot be read"),
        (b"\xff\xd8\xff\xe0", r"truncated or damaged JPEG file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", r"a Git LFS pointer, not the image itself"),
    ],
)
def test_not_an_image(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: " + message):
        load_image(path)


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="not a file; expected an image"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: not a file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("size", [(65_000, 65_000), (2_000_000_000, 2_000_000_000), (MAX_PIXELS + 1, 1)])
def test_a_bomb_is_refused_from_its_header(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(DataError, match=rf"bomb\.png: declares {size[0]:,} x .* over the limit of 100,000,000 pixels"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_the_limit_holds_for_every_format(kind: str) -> None:
    content = encode(picture(20, 20), kind)
    assert decode_image(io.BytesIO(content), "x", max_pixels=400).size == (20, 20)
    with pytest.raises(DataError, match="declares 20 x 20 pixels, over the limit of 399 pixels"):
        decode_image(io.BytesIO(content), "x", max_pixels=399)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_check_header_tells_the_size_and_holds_the_limit(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(encode(picture(20, 30), kind))
    assert check_header(path) == (30, 20)
    with pytest.raises(DataError, match=r"x\.img: declares 30 x 20 pixels, over the limit of 599 pixels; not decoded"):
        check_header(path, max_pixels=599)


def test_check_header_refuses_what_is_no_image_and_reads_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    content = encode(picture(200, 200), "JPEG")
    for bad, message in (
        (b"", r"x\.jpg: empty file \(0 bytes\)"),
        (b"GIF", r"x\.jpg: not an image"),
        (content[:20], r"x\.jpg: truncated or damaged JPEG file, its header cannot be read"),
        (png_header(65_000, 65_000), r"x\.jpg: declares 65,000 x 65,000 pixels, over the limit of 100,000,000"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            check_header(path)
    path.write_bytes(content[: len(content) // 2])  # cut after the header: its pixels are not looked at
    assert check_header(path) == (200, 200)
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        check_header(tmp_path / "gone.png")
    with pytest.raises(DataError, match="not a file; expected an image"):
        check_header(tmp_path)


def test_pillows_global_state_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow's own limit, far below: our decode neither warns nor fails, and leaves it where it was.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    content = encode(picture(20, 20), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(content).shape == (20, 20, 3)
        with pytest.raises(DataError):
            pixels(content[:-40])
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_threads_get_the_same_pixels(tmp_path: Path) -> None:
    paths = []
    for i in range(20):
        paths.append(tmp_path / f"{i}.png")
        picture(30, 30, seed=i).save(paths[-1])
    wrong: list[int] = []

    def work() -> None:
        for i, path in enumerate(paths):
            if not np.array_equal(np.asarray(load_image(path)), np.asarray(picture(30, 30, seed=i))):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_STARTS = [encode(picture(12, 12), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_STARTS), st.data())
def test_damaged_bytes_end_in_an_image_or_a_data_error(content: bytes, data: st.DataObject) -> None:
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow comments on some damages
        out = try_pixels(bytes(broken))
    assert out is None or out.shape[2] == 3


@pytest.mark.real
@pytest.mark.parametrize("pattern", ["nih_sample/images/*.png", "dtd10/images/*/*.jpg", "omniglot_small/*/*/*/*.png"])
def test_real_images_are_what_pillow_decodes(real: Path, pattern: str) -> None:
    paths = sorted(real.glob(pattern))[::25]
    assert len(paths) > 20
    for path in paths:
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(load_image(path)), np.asarray(image.convert("RGB")))
