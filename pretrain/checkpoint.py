"""Checkpoints: written whole or not at all, with a digest inside, read without running any code that they might hold.

A checkpoint is a file of torch.save; its digest is the comment that a zip archive may end with, so that `torch.load` takes
the file as any other.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from fastxfer.errors import DataError
from fastxfer.files import PARTIAL, whole_file
from fastxfer.progress import say

_MARK = b"sha256 "
_DIGEST = 64  # hexadecimal digits


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) so that `path` is the old file or the new one, also after a crash."""
    with whole_file(path) as file:
        torch.save(content, file)
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment, its last field
        file.write((len(_MARK) + _DIGEST).to_bytes(2, "little") + _MARK)
        file.flush()
        with open(file.name, "rb") as written:
            file.write(hashlib.file_digest(written, "sha256").hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this package; `DataError` if it is damaged or somebody else's."""
    try:
        with path.open("rb") as file:
            whole = _is_whole(file)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"checkpoint '{path}' cannot be read ({str(error).splitlines()[0]}): is it truncated?"
        ) from error
    if not isinstance(content, dict) or not {"model", "meta", "optimizer", "training"} <= set(content):
        raise DataError(
            f"'{path}' is no checkpoint of a pre-training run that could go on: it lacks the optimiser's state"
        )
    if not whole:
        raise DataError(f"checkpoint '{path}' is damaged: its bytes are not those that its digest was made of")
    return content


def _is_whole(file: IO[bytes]) -> bool:
    """Whether the file ends with the digest of what is before it."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _DIGEST - len(_MARK), 0))
    mark, told = file.read(len(_MARK)), file.read()
    if mark != _MARK:
        return False
    sha = hashlib.sha256()
    file.seek(0)
    left = end - _DIGEST
    while left > 0:
        piece = file.read(min(left, 1 << 20))
        sha.update(piece)
        left -= len(piece)
    return told == sha.hexdigest().encode()


@dataclass
class Shelf:
    """The checkpoints of one run: the newest at `out`, those before it and the best in the folder beside it.

    NAME.pt; NAME.checkpoints/NAME-step-000120.pt, NAME-best.pt. keep: how many of the last, the newest among them
    """

    out: Path
    keep: int = 2
    step: int | None = None  # of the file at `out`; None = none of this run is there

    @property
    def folder(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.checkpoints")

    @property
    def best(self) -> Path:
        return self.folder / f"{self.out.stem}-best.pt"

    def of_step(self, step: int) -> Path:
        return self.folder / f"{self.out.stem}-step-{step:06}.pt"

    def put(self, content: dict[str, Any], step: int, best: bool = False) -> None:
        """Make `content` the newest; the one that was it is kept, the oldest goes. best: it is also the best so far."""
        if self.keep > 1 and self.step is not None and self.step != step:
            _same_file(self.out, self.of_step(self.step))
        write_checkpoint(self.out, content)
        self.step = step
        if best:
            _same_file(self.out, self.best)
        for path in self.older()[self.keep - 1 :]:
            path.unlink()

    def older(self) -> list[Path]:
        """Those before the newest, the latest first."""
        found = self.folder.glob(self.of_step(0).name.replace("000000", "*"))
        return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]), reverse=True)

    def newest(self) -> Path | None:
        """The newest that can be read, None where none was ever written; `DataError` if none of them can be read."""
        candidates = [*([self.out] if self.out.exists() else []), *self.older()]
        errors = []
        for path in candidates:
            try:
                read_checkpoint(path)
            except DataError as error:
                errors.append(error)
                continue
            for damage in errors:
                say(f"{damage}; going on from '{path}', the one before")
            return path
        if errors:
            raise DataError(f"{errors[0]}; there is none before it: --overwrite begins again")
        return None

    def clear(self) -> None:
        """Forget an earlier run's, all but `out`, which stays until it is replaced."""
        self.step = None
        shutil.rmtree(self.folder, ignore_errors=True)


def _same_file(there: Path, name: Path) -> None:
    """Give a file a second name, whole or not at all; a copy where the file system knows no such thing."""
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f"{name.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        os.link(there, temporary)
    except OSError:
        shutil.copyfile(there, temporary)
    temporary.replace(name)
