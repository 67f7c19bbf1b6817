"""Plotly figures as pictures, drawn by kaleido (extra `images`) in a Chrome or Chromium without a window."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastxfer.errors import UsageError, first_line
from fastxfer.progress import progress

KINDS = ("svg", "png", "pdf")
# The size of a desk's window: figures are as wide as there.
_WINDOW = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}


def pictures(figures: Sequence[dict[str, Any]], kind: str, instead: str) -> list[bytes]:
    """Each figure (Plotly's data and layout, plain values) as svg, pdf or png, the last at twice the size for fine screens.

    instead: what there is without a picture, for the `UsageError` where kaleido or a browser is missing
    """
    options = {"format": kind, "scale": 2 if kind == "png" else 1}

    async def draw(browser: Any) -> list[bytes]:
        drawn = []
        with progress(f"drawing .{kind}", len(figures), "figures") as advance:
            for figure in figures:
                drawn.append(await browser.calc_fig(figure, opts=options))
                advance(1)
        return drawn

    return _in_browser(draw, f"a .{kind}", instead)


def figures_of(page: str, instead: str) -> list[dict[str, Any]]:
    """The figures that a page of HTML draws, as its `window.figures()` gives them; needs and raises as `pictures`."""

    async def read(browser: Any) -> list[dict[str, Any]]:
        tab = await browser.create_tab()
        frame = (await tab.send_command("Page.getFrameTree"))["result"]["frameTree"]["frame"]["id"]
        await tab.send_command("Emulation.setDeviceMetricsOverride", params=_WINDOW)
        await tab.send_command("Page.setDocumentContent", params={"frameId": frame, "html": page})
        asked = {"expression": "JSON.stringify(figures())", "returnByValue": True}
        answer = (await tab.send_command("Runtime.evaluate", params=asked))["result"]
        if "exceptionDetails" in answer:
            raise RuntimeError(
                answer["exceptionDetails"].get("exception", {}).get("description", "the page's script failed")
            )
        return list(json.loads(answer["result"]["value"]))

    return _in_browser(read, "a picture", instead)


def _in_browser(act: Callable[[Any], Awaitable[Any]], what: str, instead: str) -> Any:
    try:
        from kaleido import Kaleido
    except ImportError:
        raise UsageError(
            f"{what} is drawn by kaleido, which is not installed: pip install kaleido, or fastxfer[images]; {instead}"
        ) from None

    async def run() -> Any:
        async with Kaleido(mathjax=False) as browser:  # the default would fetch a script for formulas
            return await act(browser)

    try:
        # In a thread of its own, since the caller may be in an event loop already, as notebooks are.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()
    except Exception as error:
        raise UsageError(
            f"kaleido could not draw {what} ({first_line(error)}): is Chrome or Chromium installed? {instead[0].upper()}{instead[1:]}"
        ) from error
