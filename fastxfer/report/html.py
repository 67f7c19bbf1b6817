"""HTML written so that forgetting to escape is impossible: every string is escaped unless it is `Markup`."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

VOID = frozenset({"meta", "link", "br", "hr", "input"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Any  # Markup, anything with str(), None (nothing), or a list or tuple of these


def escape(value: Any) -> Markup:
    """Text as HTML: `& < > " '` become entities; `Markup` stays."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(*children: Child) -> Markup:
    """Children one after the other, lists flattened, None left out."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        parts.append(join(*child) if isinstance(child, list | tuple) else escape(child))
    return Markup("".join(parts))


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """An element: ``tag("td", "a<b", class_="num")`` → ``<td class="num">a&lt;b</td>``.

    Attribute names lose a trailing "_", other "_" become "-"; True gives a bare attribute, None and False none.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in VOID else f"{opening}{join(*children)}</{name}>")


def embed_json(document: Any) -> Markup:
    """JSON that may stand inside a script element: no "<", ">", "&" and no line separators, whatever the strings hold.

    NaN and infinity are refused (`ValueError`): JSON has none.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def columnar(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """Column by column; text as numbers into its list of distinct values, small however many lines there are."""
    document: dict[str, Any] = {}
    for column in columns if len(frame) else ():
        values = frame[column]
        if pd.api.types.is_numeric_dtype(values):
            document[column] = [_plain(v) for v in values]
        else:
            codes, levels = pd.factorize(values.astype(str))
            document[column] = {"codes": codes.tolist(), "levels": levels.tolist()}
    return document


def _plain(value: Any) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else float(f"{number:.6g}")


def content_policy(*scripts: str) -> Markup:
    """Every script of the page is listed by its hash: whatever else might get in could not run, nor ask the network."""
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    content = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    return tag("meta", http_equiv="Content-Security-Policy", content=content)


def _sha256(text: str) -> str:
    # The parser turns line ends into "\n" before a browser hashes.
    normal = re.sub(r"\r\n?", "\n", text)
    return base64.b64encode(hashlib.sha256(normal.encode()).digest()).decode()


def table(columns: list[Child], rows: list[list[Child]], *, numeric: frozenset[int] = frozenset()) -> Markup:
    """A plain table that scrolls sideways on a narrow screen; `numeric` columns are right-aligned."""

    def cell(kind: str, i: int, child: Child) -> Markup:
        scope = "col" if kind == "th" else None
        return tag(kind, child, class_="num" if i in numeric else None, scope=scope)

    head = tag("thead", tag("tr", [cell("th", i, c) for i, c in enumerate(columns)]))
    body = tag("tbody", [tag("tr", [cell("td", i, c) for i, c in enumerate(row)]) for row in rows])
    return tag("div", tag("table", head, body), class_="scroll", tabindex="0", role="group")
