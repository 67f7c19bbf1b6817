"""Where the bytes lie: a local folder (every write whole, or not at all) or any fsspec URL, behind Zarr's store API."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import zarr.storage
from zarr.abc.store import Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from fastxfer.errors import DataError
from fastxfer.files import PARTIAL, write_whole

T = TypeVar("T")
TRASH = ".trash-"


class DurableStore(zarr.storage.LocalStore):
    """A local Zarr store whose writes survive a kill, a full disk and a power cut.

    zarr-python 3.1 writes a temporary file and renames it, which covers the first two; a rename can still reach the
    disk before the bytes it names, so here the bytes are synced first. One sync a row block costs milliseconds.
    """

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self._put, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._put(key, value)

    def _put(self, key: str, value: Buffer) -> None:
        self._check_writable()
        write_whole(self.root / key, value.to_bytes())


def is_url(path: str | Path) -> bool:
    return "://" in str(path)


def open_files(path: str | Path, *, read_only: bool) -> Store:
    """The Zarr store at a folder or an fsspec URL (``memory://x``, ``s3://bucket/x`` if s3fs is installed)."""
    if not is_url(path):
        return DurableStore(Path(path).expanduser().absolute(), read_only=read_only)
    try:
        return zarr.storage.FsspecStore.from_url(str(path), read_only=read_only)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"store '{path}': cannot open this URL ({error}); a folder, or a URL whose fsspec package is installed"
        ) from None


def run(awaitable: Awaitable[T]) -> T:
    async def wrapper() -> T:
        return await awaitable

    return sync(wrapper())


def names(store: Store, prefix: str) -> list[str]:
    """Names of files and folders directly under `prefix`, sorted; empty if there is no such folder."""

    async def collect(found: AsyncIterator[str]) -> list[str]:
        return sorted({name async for name in found})

    # Not list_prefix: in zarr-python 3.1.6 LocalStore's cuts every occurrence of the root's name out of its keys.
    return run(collect(store.list_dir(prefix)))


def exists(store: Store, key: str) -> bool:
    return run(store.exists(key))


def read(store: Store, key: str) -> bytes | None:
    buffer = run(store.get(key, default_buffer_prototype()))
    return None if buffer is None else buffer.to_bytes()


def size(store: Store, prefix: str) -> int:
    """Bytes on disk under `prefix`."""
    if isinstance(store, zarr.storage.LocalStore):
        return sum(f.stat().st_size for f in (store.root / prefix).rglob("*") if f.is_file())
    return int(run(store.getsize_prefix(prefix)))


def delete_tree(store: Store, prefix: str) -> None:
    """Remove everything under `prefix`; a local folder vanishes under its name at once, even if killed midway."""
    if isinstance(store, zarr.storage.LocalStore):
        folder = store.root / prefix
        trash = folder.with_name(f"{TRASH}{uuid.uuid4().hex}")
        folder.rename(trash)
        shutil.rmtree(trash)
    else:
        run(store.delete_dir(prefix))


def sweep(store: Store, prefix: str) -> None:
    """Remove what killed writers left directly under `prefix`; call it only while holding its lock."""
    if not isinstance(store, zarr.storage.LocalStore):
        return
    for leftover in (store.root / prefix).glob(f"*{PARTIAL}"):
        leftover.unlink(missing_ok=True)
    for leftover in (store.root / prefix).glob(f"{TRASH}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def local_root(store: Store) -> Path | None:
    return store.root if isinstance(store, zarr.storage.LocalStore) else None


def as_json(value: Any) -> Any:
    """`value` as JSON keeps it (tuples become lists, paths strings): stored and fresh attributes compare equal."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
