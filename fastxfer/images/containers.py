"""Images that lie in one file together, addressed like files in a folder: ``FILE/MEMBER/ROW``, or ``FILE/MEMBER``.

``.tar``      MEMBER is the name of a file in it (uncompressed archives: ImageNet's classes, webdataset's shards), no ROW
``.npz``      MEMBER is an array (n, h, w) or (n, h, w, 3), 8 or 16 bits, as in MedMNIST; pickles are refused
``.parquet``  MEMBER is a column of encoded images: bytes, or a struct with `bytes`, as Hugging Face writes them; the same of
``.arrow``, ``.feather``, see `fastxfer.images.tables`

What was read last is kept (an array, a row group, an archive's index), so that neighbours cost nothing more.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastxfer.errors import DataError
from fastxfer.images import tables

ENDINGS = (".tar", ".npz", *tables.ENDINGS)
_lock = threading.Lock()  # two threads that miss the same entry must not both read it


def split_address(path: str) -> tuple[str, str] | None:
    """(file, address inside) of a path that leads into a container, None for any other."""
    file, inside = os.path.split(path)
    while file and inside != path:
        if file.lower().endswith(ENDINGS) and os.path.isfile(file):
            return file, inside
        file, above = os.path.split(file)
        if not above:
            return None
        inside = f"{above}/{inside}"
    return None


def read_member(file: str, address: str) -> NDArray[Any] | bytes:
    """Pixels (h, w) or (h, w, 3) of a row of an ``.npz``, or encoded bytes of a row of a table or a file in a ``.tar``.

    `DataError` names the container and what isn't in it.
    """
    if file.lower().endswith(".tar"):
        place = tar_index(file).get(address)
        if place is None:
            raise DataError(f"{file}: there is no file '{address}' in this archive")
        return _read_at(file, *place)
    member, _, number = address.rpartition("/")
    if not member or not number.isdecimal():
        raise DataError(f"{file}: '{address}' is no address in it; expected MEMBER/ROW")
    row = int(number)
    if file.lower().endswith(".npz"):
        images = _kept(_array, file, member)
        if row >= len(images):
            raise DataError(f"{file}: '{member}' has {len(images):,} images, there is no number {row:,}")
        return images[row]
    first = 0
    for group, length in enumerate(_kept(_group_lengths, file)):
        if row < first + length:
            value = _kept(_column, file, member, group)[row - first].as_py()
            value = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(value, bytes):
                raise DataError(f"{file}: row {row:,} of '{member}' holds no image bytes")
            return value
        first += length
    raise DataError(f"{file}: has {first:,} rows, there is no number {row:,}")


class TarIndex(Mapping[str, tuple[int, int]]):
    """Files in an uncompressed archive: name -> (offset, bytes), in arrays: a quarter of a dict's memory.

    Of an archive with millions of files, or of thousands of archives, it can be kept, and shared with forked processes.
    """

    def __init__(self, names: list[str], offsets: list[int], sizes: list[int]) -> None:
        encoded = np.array([name.encode() for name in names], np.bytes_)
        order = np.argsort(encoded, kind="stable")
        # A name that comes twice is its last file, as tar has it.
        last = np.ones(len(order), np.bool_)
        last[:-1] = encoded[order[1:]] != encoded[order[:-1]]
        order = order[last]
        self._names = encoded[order]
        self._places = np.array([offsets, sizes], np.int64).reshape(2, -1)[:, order]

    def __getitem__(self, name: str) -> tuple[int, int]:
        wanted = np.bytes_(name.encode())
        i = int(np.searchsorted(self._names, wanted))
        if i == len(self._names) or self._names[i] != wanted:
            raise KeyError(name)
        return int(self._places[0, i]), int(self._places[1, i])

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def nbytes(self) -> int:
        return int(self._names.nbytes + self._places.nbytes)


def tar_index(file: str | os.PathLike[str]) -> TarIndex:
    """Index of an archive, read once while the archive stays as it is. `DataError` where it is damaged."""
    index: TarIndex = _kept(_index, os.fspath(file))
    return index


def read_tar(file: str | os.PathLike[str], member: str) -> bytes:
    """One file of an archive."""
    return _read_at(os.fspath(file), *tar_index(file)[member])


def members(file: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Arrays of an ``.npz`` with their shapes, by its headers alone; `DataError` where it is damaged or holds pickles."""
    found = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                with archive.open(entry) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(stream)
                if dtype.hasobject:
                    raise DataError(f"{file}: '{entry}' holds Python objects (a pickle), which are never loaded")
                found[entry.removesuffix(".npy")] = shape
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever they trip over
        raise DataError(f"{file}: not a readable .npz file ({error})") from error
    return found


def member_names(file: str | os.PathLike[str]) -> list[str]:
    """What a container holds: names of arrays, or of columns."""
    name = os.fspath(file)
    return sorted(members(name)) if name.lower().endswith(".npz") else list(tables.read_schema(name).names)


def count_rows(file: str | os.PathLike[str]) -> int:
    """How many rows a table has."""
    return sum(_kept(_group_lengths, os.fspath(file)))


def _kept(read: Callable[..., Any], file: str, *which: Any) -> Any:
    try:
        about = os.stat(file)
        with _lock:
            return read(file, about.st_mtime_ns, about.st_size, *which)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


# ImageNet-21k lies in 21,841 archives, or a few thousand shards, and a random order of its images touches all of them.
@lru_cache(maxsize=1 << 16)
def _index(file: str, _time: int, _size: int) -> TarIndex:
    try:
        with tarfile.open(file, "r:") as archive:
            entries = [(entry.name, entry.offset_data, entry.size) for entry in _entries(archive) if entry.isreg()]
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{file}: not a readable, uncompressed tar archive ({error})") from error
    return TarIndex(*map(list, zip(*entries, strict=True))) if entries else TarIndex([], [], [])


def _entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Those of an archive, of which it remembers none."""
    while (entry := archive.next()) is not None:
        yield entry
        archive.members = []  # type: ignore[attr-defined]  # its own list, which nobody asks for


def _read_at(file: str, offset: int, size: int) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(offset)
            content = stream.read(size)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(content) < size:
        raise DataError(f"{file}: cut short, its last file isn't whole")
    return content


@lru_cache(maxsize=2)
def _array(file: str, _time: int, _size: int, member: str) -> NDArray[Any]:
    shapes = members(file)
    shape = shapes.get(member)
    if shape is None:
        raise DataError(f"{file}: no array '{member}'; there are {', '.join(sorted(shapes))}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(f"{file}: '{member}' is {shape}; expected images (n, h, w) or (n, h, w, 3)")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images: NDArray[Any] = arrays[member]
    except Exception as error:
        raise DataError(f"{file}: '{member}' cannot be read ({error})") from error
    if images.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{file}: '{member}' holds {images.dtype}; expected 8 or 16 bits without sign (uint8, uint16)")
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


@lru_cache(maxsize=8)
def _group_lengths(file: str, _time: int, _size: int) -> tuple[int, ...]:
    return tables.group_lengths(file)


@lru_cache(maxsize=2)
def _column(file: str, _time: int, _size: int, member: str, group: int) -> Any:
    return tables.read_group(file, member, group)
