"""Checkpoints: written whole or not at all, with a digest inside, read without running any code that they might hold.

A checkpoint is a file of torch.save; its digest is the comment that a zip archive may end with, so that `torch.load` takes
the file as any other. One in shares is a folder of torch.distributed.checkpoint, and a file with the digests of all.
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
import torch.distributed.checkpoint as dcp

from fastxfer.batches import Group
from fastxfer.errors import DataError
from fastxfer.files import PARTIAL, whole_file
from fastxfer.progress import say
from pretrain.ranks import gathered

_MARK = b"sha256 "
_DIGEST = 64  # hexadecimal digits
REST = "rest.pt"  # of a checkpoint in shares: all but the tensors


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) so that `path` is the old file or the new one, also after a crash."""
    with whole_file(path) as file:
        torch.save(content, file)
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment, its last field
        file.write((len(_MARK) + _DIGEST).to_bytes(2, "little") + _MARK)
        file.flush()
        file.write(_digest(Path(file.name)).encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this package; `DataError` if it is damaged or somebody else's."""
    with path.open("rb") as file:
        if not _is_whole(file):
            raise DataError(
                f"checkpoint '{path}' cannot be read (it does not end with the digest of its bytes): "
                "is it truncated or damaged, or none of a pre-training run?"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"checkpoint '{path}' cannot be read by this version of torch: {error}") from error
    if not isinstance(content, dict) or not {"model", "meta", "optimizer", "training"} <= set(content):
        raise DataError(
            f"'{path}' is no checkpoint of a pre-training run that could go on: it lacks the optimiser's state"
        )
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


def write_shares(folder: Path, shares: dict[str, Any], rest: dict[str, Any], group: Group) -> None:
    """A folder of torch.distributed.checkpoint, there whole or not at all: `shares` (tensors) by all, `rest` by the first."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    if group.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    gathered(group, None)
    dcp.save(shares, checkpoint_id=partial)
    digests = gathered(group, {p.name: _digest(p) for p in partial.glob(f"__{group.rank}_*")})
    if group.rank == 0:
        digests.append({".metadata": _digest(partial / ".metadata")})
        content = {"model": {}, "optimizer": {}, "digests": {k: v for some in digests for k, v in some.items()}, **rest}
        write_checkpoint(partial / REST, content)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    gathered(group, None)


def check_folder(folder: Path) -> None:
    """`DataError` if a file of the folder is missing or not what was written."""
    for name, digest in read_checkpoint(folder / REST)["digests"].items():
        if not (folder / name).is_file():
            raise DataError(f"checkpoint '{folder}' lacks its file '{name}'")
        if _digest(folder / name) != digest:
            raise DataError(f"checkpoint '{folder}' is damaged: '{name}' is not what was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Shelf:
    """The checkpoints of one run: the newest at `out`, those before it and the best in the folder beside it.

    NAME.pt; NAME.checkpoints/NAME-step-000120.pt, NAME-best.pt. keep: how many of the last, the newest among them
    """

    out: Path
    keep: int = 2
    step: int | None = None  # of the file at `out`; None = none of this run is there
    best_step: int | None = None  # of the best in shares, whose folder stays

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
        if best:  # before `out`: were the process killed in between, it would come to the same step again
            write_checkpoint(self.best, content)
            _same_file(self.best, self.out)
            self.best_step = None
        else:
            write_checkpoint(self.out, content)
        self.step = step
        self._prune(self.keep - 1)

    def put_shares(
        self, shares: dict[str, Any], rest: dict[str, Any], step: int, group: Group, best: bool = False
    ) -> None:
        """The same as a folder, to which each process writes its share; all must call it.

        Nothing is at `out` then until `put` ends the run; and the best is the folder of its step.
        """
        folder = self.of_step(step).with_suffix("")
        if group.rank == 0 and self.step is not None:
            os.replace(self.out, self.of_step(self.step))
        self.step, self.best_step = None, step if best else self.best_step
        write_shares(folder, shares, rest, group)
        if group.rank == 0:
            self._prune(self.keep)

    def _prune(self, keep: int) -> None:
        best = None if self.best_step is None else self.of_step(self.best_step).with_suffix("")
        for path in self.older()[keep:]:
            if path != best:
                _remove(path)

    def older(self) -> list[Path]:
        """Those before the one at `out`, the latest first."""
        start = self.of_step(0).stem.removesuffix("000000")
        found = [p for p in self.folder.glob(f"{start}*") if p.name.removesuffix(".pt").removeprefix(start).isdigit()]
        return sorted(found, key=lambda path: int(path.stem.removeprefix(start)), reverse=True)

    def newest(self) -> Path | None:
        """The newest that can be read, None where none was ever written; `DataError` if none of them can be read."""
        candidates = [*([self.out] if self.out.exists() else []), *self.older()]
        errors = []
        for path in candidates:
            try:
                check_folder(path) if path.is_dir() else read_checkpoint(path)
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _same_file(there: Path, name: Path) -> None:
    """Give a file a second name, whole or not at all; a copy where the file system knows no such thing."""
    name.parent.mkdir(parents=True, exist_ok=True)
    temporary = name.with_name(f"{name.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        os.link(there, temporary)
    except OSError:
        shutil.copyfile(there, temporary)
    temporary.replace(name)
