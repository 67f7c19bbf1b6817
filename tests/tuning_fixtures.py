"""The small world of `tuning` as fixtures, one world a test file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tuning import embed_world, make_world, one_thread

from fastxfer.results import ResultStore
from fastxfer.store import EmbeddingStore
from fastxfer.targets import Target


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def digits(root: Path) -> Target:
    return make_world(root)


@pytest.fixture(scope="module")
def store(root: Path, digits: Target) -> EmbeddingStore:
    return embed_world(root, digits)


@pytest.fixture
def results(tmp_path: Path) -> ResultStore:
    return ResultStore.open(tmp_path / "results")
