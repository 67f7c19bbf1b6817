"""Malformed images, containers, MATLAB tables and names of files, made by a seeded generator; and the command line."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from bad_inputs import WORLDS
from click.testing import CliRunner
from layouts import flowers_tables, touch
from pictures import FORMATS, Rng, cut, dicom, encode, npz, picture, png_of, table, turned
from PIL import Image

from fastxfer.cli import main
from fastxfer.errors import DataError
from fastxfer.images import check_header, load_image
from fastxfer.targets import load_target
from fastxfer.targets.tuberculosis import SOURCES

SECRETS = ("Doe", "Jane", "12345678", "19700102")


REFUSED = "refused"
ImageCase = tuple[bytes, Any]  # the content; its size, or its pixels, or REFUSED, or None: an image or refused


def damaged(spoil: Callable[[bytes, Rng], bytes], wanted: Any) -> Callable[[Rng], Iterator[ImageCase]]:
    def cases(rng: Rng) -> Iterator[ImageCase]:
        for kind in FORMATS:
            for _ in range(4):
                yield spoil(encode(picture(rng), kind), rng), wanted
        for _ in range(6):
            yield spoil(dicom(rng), rng), wanted

    return cases


def first_frames(rng: Rng) -> Iterator[ImageCase]:
    for kind, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        for frames in (2, 3, 5):
            images = [picture(rng) for _ in range(frames)]
            content = encode(images[0], kind, save_all=True, append_images=images[1:], **options)
            yield content, (31, 24) if kind == "GIF" else np.asarray(images[0])


def other_modes(rng: Rng) -> Iterator[ImageCase]:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"):
        for kind in ("PNG", "TIFF", "JPEG"):
            image = (
                picture(rng).convert(mode)
                if mode != "I;16"
                else Image.fromarray(rng.integers(0, 65536, (24, 31), dtype=np.uint16))
            )
            try:
                yield encode(image, kind), (31, 24)
            except OSError:
                continue  # a format that doesn't hold this mode
    yield encode(picture(rng).convert("F"), "TIFF"), REFUSED


def sizes(rng: Rng) -> Iterator[ImageCase]:
    for kind in FORMATS:
        for size in ((1, 1), (1, 7), (9, 1)):
            content = encode(picture(rng, size[1], size[0]), kind)
            yield content, size
    for size in ((65_000, 1), (1, 65_000)):
        for kind in ("PNG", "BMP", "TIFF", "JPEG", "GIF"):
            yield encode(Image.new("L", size), kind), size
    for size in ((65_000, 65_000), (65_000, 1_539), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)):
        yield png_of(*size), REFUSED
    for width, height in ((0, 5), (5, 0)):
        yield png_of(width, height), REFUSED
    for size in (65_000, 20_000):
        yield b"GIF89a" + struct.pack("<HHBBB", size, size, 0, 0, 0), REFUSED
        yield (
            encode(Image.new("L", (9, 9)), "BMP").replace(struct.pack("<ii", 9, 9), struct.pack("<ii", size, size)),
            REFUSED,
        )
        yield f"P6 {size} {size} 255\n".encode() + b"\0" * 99, REFUSED
        yield dicom(rng, Rows=size, Columns=size), REFUSED


def no_images(rng: Rng) -> Iterator[ImageCase]:
    texts = [
        "",
        "\n",
        "path,label\n",
        "<html>404</html>",
        "version https://git-lfs.github.com/spec/v1\noid",
        "\ufeff",
        "%PDF-1.7",
    ]
    for text in texts:
        yield text.encode(), REFUSED
    for length in (1, 2, 8, 131, 132, 133, 4_000):
        yield b"\0" * length, REFUSED
        yield b"\x00" + rng.bytes(length), REFUSED
    for signature in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"RIFF0000WEBP",
        b"P5",
        b"P6 ",
    ):
        yield signature, REFUSED
        yield signature + rng.bytes(200), REFUSED


def dicoms(rng: Rng) -> Iterator[ImageCase]:
    for tags in (
        *({tag: None} for tag in ("PixelData", "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")),
        *({"Rows": n} for n in (0, 7, 9, 60_000)),
        *({"NumberOfFrames": n} for n in (2, 500)),
        *({"BitsAllocated": n} for n in (1, 7, 24, 64)),
        *({"SamplesPerPixel": n} for n in (0, 2, 3, 4)),
        *({"PhotometricInterpretation": word} for word in ("", "HSV", "Doe^Jane")),
        {"PixelData": b""},
        {"BitsStored": 40},
        {"Rows": None, "Columns": None, "PixelData": None},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = dicom(rng, **tags)
        yield content, REFUSED if "BitsStored" not in tags and tags.get("Rows") != 7 else None
    for tags in (
        {"WindowWidth": 0, "WindowCenter": 5},
        {"WindowWidth": -3, "WindowCenter": 5},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
    ):
        yield dicom(rng, **tags), None
    for center in ([], "", None):
        yield dicom(rng, WindowCenter=center), (6, 8)


IMAGES: dict[str, Callable[[Rng], Iterator[ImageCase]]] = {
    "zero bytes": damaged(lambda content, rng: b"", REFUSED),
    "cut short": damaged(cut, None),
    "header only": damaged(lambda content, rng: content[:12], REFUSED),
    "bytes turned": damaged(turned, None),
    "other bytes behind": damaged(lambda content, rng: content + rng.bytes(50), None),
    "animated": first_frames,
    "modes": other_modes,
    "sizes": sizes,
    "no images": no_images,
    "DICOM": dicoms,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, tmp_path: Path) -> None:
    path, faults = tmp_path / "picture.png", []
    for number, (content, wanted) in enumerate(IMAGES[kind](np.random.default_rng(0))):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fault = _fault(path, wanted)
        told = [s for s in SECRETS for warning in said if s in str(warning.message)]
        if fault or told:
            faults.append(f"case {number} ({content[:12]!r}): {fault} {told}")
    assert not faults, "\n".join(faults)


def _fault(path: Path, wanted: Any) -> str | None:
    try:
        size = check_header(path)
        image = load_image(path)
    except DataError as error:
        message = str(error)
        if wanted is not None and wanted is not REFUSED:
            return f"refused: {message}"
        if str(path) not in message or "\n" in message or any(secret in message for secret in SECRETS):
            return f"a message without the file, of several lines, or about a patient: {message}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if wanted is REFUSED:
        return f"was read, {image.size}"
    if image.mode != "RGB" or (size != image.size and size != image.size[::-1]):
        return f"{image.mode}, {image.size} where the header has {size}"
    if isinstance(wanted, tuple):
        return None if image.size == wanted else f"{image.size} instead of {wanted}"
    return None if wanted is None or np.array_equal(np.asarray(image), wanted) else "other pixels"


DEEP = "[" * 100_000


@pytest.mark.parametrize("kind", ["plan", "study", "recipe", "registered", "words beside weights", "variant"])
def test_brackets_deeper_than_python_counts(kind: str, tmp_path: Path) -> None:
    from fastxfer import plans, registered
    from fastxfer.backbones import checkpoint
    from fastxfer.study import file as study
    from fastxfer.targets import variants
    from pretrain import catalogue

    path = tmp_path / {"registered": "backbones/x.json", "variant": "variants/x.json"}.get(kind, "x.toml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"a = {DEEP}" if path.suffix == ".toml" and kind != "plan" else DEEP)
    read: dict[str, Callable[[], Any]] = {
        "plan": lambda: plans.read_plan(path),
        "study": lambda: study.parse(path),
        "recipe": lambda: catalogue.read_recipe(path),
        "registered": lambda: registered.find_registered("x", tmp_path),
        "words beside weights": lambda: checkpoint._read_words(path),
        "variant": lambda: variants.read_variant("x", tmp_path),
    }
    with pytest.raises(DataError, match=re.escape(str(path))):
        read[kind]()


@pytest.mark.parametrize("ending", ["npz", "packed.npz", "parquet", "arrow", "feather"])
def test_containers(ending: str, tmp_path: Path) -> None:
    rng, faults = np.random.default_rng(0), []
    arrays = ending.endswith("npz")
    content = npz(rng, compressed=ending.startswith("packed")) if arrays else table(rng, ending)
    spoiled = [b"", b"PK\x03\x04", *(cut(content, rng) for _ in range(15)), *(turned(content, rng) for _ in range(25))]
    for number, bad in enumerate(spoiled):
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(bad)
        member = "images" if arrays else "image"
        for address in (path / member / "1", path / member / "99", path / "other" / "0"):
            # a byte turned in pixels that nothing guards is an image like any other
            if fault := _fault(address, None if number >= 17 and address.name == "1" else REFUSED):
                if "a message without the file" in fault and str(path) in fault and "\n" not in fault:
                    continue  # the container is named
                faults.append(f"{address}: {fault}")
    assert not faults, "\n".join(faults)


def test_what_decoders_warn_of_reaches_nobody(tmp_path: Path) -> None:
    """A tag that reaches beyond the file, bytes behind the pixels, a patient in place of a number: the pixels are fine."""
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / "src" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        tiff = bytearray(encode(picture(rng), "TIFF"))
        entries = int.from_bytes(tiff[4:8], "little")
        last = entries + 2 + 12 * (int.from_bytes(tiff[entries : entries + 2], "little") - 1)
        tiff[last + 4 : last + 8] = (10**6).to_bytes(4, "little")
        (folder / f"{i}.tif").write_bytes(tiff)
        spoiled = dicom(rng, PixelData=rng.bytes(120), WindowCenter="1234567", WindowWidth="4000")
        (folder / f"{i}.dcm").write_bytes(spoiled.replace(b"1234567", b"Jane^D."))
    warned = [sys.executable, "-c", f"from fastxfer.images import load_image; load_image({str(folder / '3.tif')!r})"]
    assert "Warning" in subprocess.run(warned, check=True, capture_output=True, text=True).stderr
    line = [sys.executable, "-m", "fastxfer", "targets"]
    subprocess.run([*line, "add", "src", "--name", "x"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*line, "check", "x"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "warn" not in done.stderr.lower()
    assert "Jane" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "name", ["gone.png", ".", "a\0b.png", "x" * 300 + ".png", "x.npz/images/0", "picture.png/images/0"]
)
def test_paths_that_are_no_images(name: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    for read in (load_image, check_header):
        with pytest.raises(DataError):
            read(f"{tmp_path}/{name}")


FLOWERS: dict[str, tuple[str, Callable[[np.ndarray, int], Any]]] = {
    "zero": ("trnid", lambda values, at: np.where(np.arange(len(values)) == at, 0, values)),
    "too large": ("tstid", lambda values, at: np.where(np.arange(len(values)) == at, 9_999, values)),
    "fraction": ("valid", lambda values, at: np.where(np.arange(len(values)) == at, 1.5, values)),
    "nan": ("trnid", lambda values, at: np.where(np.arange(len(values)) == at, np.nan, values)),
    "twice": ("valid", lambda values, at: np.append(values, values[at])),
    "words": ("trnid", lambda values, at: np.array([f"x{v}" for v in values], dtype=object)),
    "empty": ("tstid", lambda values, at: values[:0]),
    "square": ("trnid", lambda values, at: np.stack([values, values])),
}


@pytest.mark.parametrize("kind", FLOWERS)
def test_flowers(kind: str, tmp_path: Path) -> None:
    root = flowers_tables(tmp_path / "flowers102", 20, 20, 110)
    sets = {k: v.ravel() for k, v in scipy.io.loadmat(root / "setid.mat").items() if not k.startswith("_")}
    array, spoil = FLOWERS[kind]
    for at in range(0, 20, 4):
        scipy.io.savemat(root / "setid.mat", sets | {array: spoil(sets[array].astype(float), at)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match=rf"setid\.mat.*\b{array}\b"):
                load_target("flowers102", tmp_path, labels_only=True)


def test_flowers_in_no_set_and_damaged_tables(tmp_path: Path) -> None:
    root, rng = flowers_tables(tmp_path / "flowers102", 20, 20, 110), np.random.default_rng(0)
    sets = {k: v.ravel() for k, v in scipy.io.loadmat(root / "setid.mat").items() if not k.startswith("_")}
    for at in range(5):
        scipy.io.savemat(root / "setid.mat", sets | {"trnid": np.delete(sets["trnid"], at)})
        target = load_target("flowers102", tmp_path, labels_only=True)
        assert target.n_images == 149
        unused = f"jpg/image_{sets['trnid'][at]:05}.jpg"
        assert f"left out 1 images of imagelabels.mat that are in no set: {unused}" in target.notes
    whole = (root / "setid.mat").read_bytes()
    for content in (b"", b"labels", *(cut(whole, rng) for _ in range(15))):
        (root / "setid.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"setid\.mat"):
            load_target("flowers102", tmp_path, labels_only=True)


@pytest.mark.parametrize(
    ("bad", "refused"),
    [
        ("{0}_2.png", "no label"),
        ("{0}.png", "no label"),
        ("{0}_1.0.png", "no label"),
        ("{0}_nan.png", "no label"),
        ("{0}_1 (1).png", "no label"),
        ("{0}_ 1.png", "no label"),
        ("again/{0}_0.png", "lies in two folders"),
        ("{0}_1.png", "the number of"),
        ("{0}_0.jpg", "the number of"),
    ],
)
def test_tuberculosis(bad: str, refused: str, tmp_path: Path) -> None:
    starts = [start for start, _ in SOURCES.values()]
    touch(tmp_path / "tuberculosis", *(f"{start}_{i:04}_{i % 2}.png" for start in starts for i in range(20)))
    good = load_target("tuberculosis", tmp_path)
    for start in starts:
        for i in range(0, 20, 6):
            path = bad.format(f"{start}_{i:04}")
            touch(tmp_path / "tuberculosis", path)
            with pytest.raises(DataError, match=refused) as caught:
                load_target("tuberculosis", tmp_path)
            assert Path(path).name in str(caught.value)
            (tmp_path / "tuberculosis" / path).unlink()
    touch(tmp_path / "tuberculosis", "chncxr_0001_0.png", "cover.png")
    target = load_target("tuberculosis", tmp_path)
    assert target.image_id.tolist() == good.image_id.tolist()
    assert "left out 2 images with names of neither source: chncxr_0001_0.png, cover.png" in target.notes


# ---- the command line ----------------------------------------------------------------------------------------------

WORST: dict[str, tuple[str, dict[str, bytes]]] = {
    "UTF-16": ("own", {"labels.csv": "path,label\n".encode("utf-16")}),
    "zero bytes": ("own", {"labels.csv": b""}),
    "an image for a table": ("own", {"labels.csv": png_of(3, 3)}),
    "NUL": ("own", {"labels.csv": b"path,label\na\0.png,x\n"}),
    "a quote left open": ("own", {"labels.csv": b'path,label\n"a.png,x\n'}),
    "rows in a quote": ("own", {"labels.csv": b'path,label\na.png,"x\nb.png,y\nc.png,z"\n'}),
    "a path that leaves": ("own", {"labels.csv": b"path,label\n../../etc/passwd,x\n"}),
    "no header": ("own", {"labels.csv": b"a/img_00.png,cat,train,Doe Jane 500\n"}),
    "a patient for a split": ("own", {"labels.csv": b"path,label,split,patient\na/img_00.png,cat,Doe Jane 500,train\n"}),
    "CheXpert, moved cells": ("chexpert", {"train.csv": WORLDS["chexpert"].sheets[0].text().replace(",Male", ",,Male").encode()}),
    "NIH, no numbers": ("nih14", {"Data_Entry_2017_v2020.csv": WORLDS["nih14"].sheets[0].text().replace(",1,", ",1.0,").encode()}),
    "MIMIC-CXR, damaged .gz": ("mimic-cxr", {"mimic-cxr-2.0.0-split.csv.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xaa" * 50}),
    "COVIDx, NUL": ("covidx-cxr2", {"test.txt": b"1 a\0.png positive rsna\n"}),
    "Pets, no list": ("pets", {"annotations/test.txt": b"#\n"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORST)
def test_the_command_line_says_it_in_one_line(kind: str, tmp_path: Path) -> None:
    name, changed = WORST[kind]
    folder = WORLDS[name].write(tmp_path, changed)
    words = ["add", str(folder), "--name", "mine"] if name == "own" else ["show", name, "--labels-only"]
    result = CliRunner().invoke(main, ["targets", *words, "--data-root", str(tmp_path)])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    line, page = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert page == "See docs/targets.md"
    assert Path(next(iter(changed))).name in line
    assert "should not happen" not in line
    assert "Doe" not in result.output
    assert not (tmp_path / "targets").exists()


def test_targets_check_lists_every_bad_image(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "src"
    bad = {"zero": b"", "cut": encode(picture(rng), "PNG")[:200], "bomb": png_of(65_000, 65_000), "text": b"Doe, Jane",
           "dicom": dicom(rng, PixelData=None)}  # fmt: skip
    images = bad | {f"good{i}": encode(picture(rng), "PNG") for i in range(3)}
    folder.mkdir()
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)
    rows = [f"{name}.png,{'ab'[i % 2]},{('train', 'test')[i // 2 % 2]}" for i, name in enumerate(images)]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    for words in (["add", str(folder), "--name", "mine"], ["check", "mine"]):
        result = CliRunner().invoke(main, ["targets", *words, "--data-root", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert all(f"{name}.png" in result.output for name in bad)
    assert "good" not in result.output
    assert "Doe" not in result.output
