"""Stores in S3 buckets, by obstore: one request a block, its own retries, credentials from the usual environment.

An object is there whole or not at all, so a block needs no temporary name. It is one PUT, never a multipart upload: a
killed one would leave parts that nobody lists and somebody pays for.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
import zarr.storage
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store
from zarr.core.buffer import Buffer

from fastxfer.errors import DataError, first_line
from fastxfer.store.files import METADATA, Sealing, copy_of
from fastxfer.store.layout import BLOCK_FILE

# Server errors, throttling and lost connections are tried again by the library, after pauses that double.
_RETRIES, _PATIENCE = 10, timedelta(minutes=2)
_BROKEN = 3  # times that an answer may break off
# A request takes as long as its block needs on a slow line; a connection, only a moment.
_REQUEST, _CONNECTION = timedelta(minutes=10), timedelta(seconds=5)

T = TypeVar("T")


class BucketStore(Sealing, zarr.storage.ObjectStore[Any]):
    """A Zarr store below a prefix of an S3 bucket. What the bucket's server refuses or fails to do is an OSError."""

    has_claims = True

    async def get(self, *args: Any, **options: Any) -> Buffer | None:
        return await _ask(lambda: zarr.storage.ObjectStore.get(self, *args, **options))

    async def exists(self, key: str) -> bool:
        return await _ask(lambda: zarr.storage.ObjectStore.exists(self, key))

    async def set_plain(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await _ask(lambda: obstore.put_async(self.store, key, value.to_bytes(), use_multipart=False))

    async def get_version(self, key: str) -> tuple[bytes | None, Any]:
        async def get() -> tuple[bytes, Any]:
            found = await obstore.get_async(self.store, key)
            return bytes(await found.bytes_async()), {"e_tag": found.meta["e_tag"]}

        try:
            return await _ask(get)
        except FileNotFoundError:
            return None, None

    async def create(self, key: str, content: bytes) -> bool:
        """Write an object if there is none; whether there was none."""
        self._check_writable()
        try:
            await _ask(lambda: obstore.put_async(self.store, key, content, mode="create", use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    async def swap(self, key: str, content: bytes, version: Any) -> bool:
        self._check_writable()
        try:
            await _ask(lambda: obstore.put_async(self.store, key, content, mode=version, use_multipart=False))
        except PreconditionError:
            return False
        return True

    async def delete(self, key: str) -> None:
        await _ask(lambda: zarr.storage.ObjectStore.delete(self, key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove all below `prefix`, a thousand objects a request, in an order that a kill may cut anywhere.

        An array's blocks go before its zarr.json: what stays of it is an array that lacks rows, never rows that the next
        array of this name would take for its own. A table's columns go after its zarr.json: what stays counts as absent.
        """
        self._check_writable()
        found = [path async for path, _ in self.sizes(prefix)]
        own = [copy_of(f"{prefix}/{METADATA}"), f"{prefix}/{METADATA}"]
        blocks = [path for path in found if BLOCK_FILE.fullmatch(path.split("/")[-1])]
        rest = [path for path in found if path not in {*own, *blocks}]
        for paths in (blocks, *([path] for path in own if path in found), rest):
            if paths:
                await _ask(partial(obstore.delete_async, self.store, paths))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        async def collect() -> list[str]:
            return [name async for name in zarr.storage.ObjectStore.list_dir(self, prefix)]

        for name in await _ask(collect):
            yield name

    async def sizes(self, prefix: str) -> AsyncGenerator[tuple[str, int], None]:
        """(key, bytes) of each object below `prefix`: a thousand a request."""
        for found in await _ask(lambda: obstore.list(self.store, f"{prefix}/" if prefix else None).collect_async()):
            yield found["path"], found["size"]


async def _ask(request: Callable[[], Awaitable[T]]) -> T:
    """Do a request; what the server refuses or fails to do is an OSError with its words.

    obstore sends a request again, but does not when the connection is cut while the answer is being read.
    """
    for tries_left in range(_BROKEN, -1, -1):
        try:
            return await request()
        except (FileNotFoundError, AlreadyExistsError, PreconditionError):  # answers
            raise
        except BaseError as error:
            if "response body" in str(error) and tries_left:
                continue
            refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
            raise OSError(errno.EACCES if refused else errno.EIO, f"object store: {_words(error)}") from error
    raise AssertionError


def _words(error: Exception) -> str:
    """What the server said, of all that obstore says, or the first line of that."""
    said = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", str(error), re.DOTALL)
    if said:
        return f"{said[1]}: {said[2]}"
    return first_line(error)


def open_bucket(url: str, *, read_only: bool) -> BucketStore:
    """The store at ``s3://bucket/prefix``. DataError if the URL names no bucket."""
    parts = urlsplit(url)
    if not parts.netloc:
        raise DataError(f"store '{url}': expected s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    bucket = S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config={"endpoint": endpoint} if endpoint else None,
        client_options={
            "timeout": _REQUEST,
            "connect_timeout": _CONNECTION,
            "allow_http": (endpoint or "").startswith("http://"),
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _PATIENCE},
    )
    return BucketStore(bucket, read_only=read_only)
