"""What all commands share: options with one spelling, `--shots 1 5 10` lists, tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import numpy as np

if TYPE_CHECKING:
    from fastxfer.targets.findings import Findings

F = TypeVar("F", bound=Callable[..., Any])


class ManyValues(click.Command):
    """A command whose repeatable options take several values in a row: ``--shots 1 5 10`` = ``--shots 1 --shots 5 …``.

    Only options declared with ``multiple=True`` are concerned; the values end at the next word that starts with ``-``
    (a negative number is a value, not an option).
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {o for p in self.params if isinstance(p, click.Option) and p.multiple for o in p.opts}
        spread: list[str] = []
        current: str | None = None
        first = False
        for word in args:
            if word.startswith("-") and word != "-" and not _is_number(word):
                current, first = (word, True) if word in repeatable else (None, False)
                spread.append(word)
            elif current is not None and not first:
                spread += [current, word]
            else:
                spread.append(word)
                first = False
        return super().parse_args(ctx, spread)


class NumberOrAll(click.ParamType):
    """A number, or the word "all"."""

    name = "N|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["all"] | None:
        if value is None or value == "all":
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor 'all'", param, ctx)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def store_option(f: F) -> F:
    return click.option(
        "--store",
        "store_path",
        default="fastxfer-store",
        envvar="FASTXFER_STORE",
        show_default=True,
        show_envvar=True,
        help="Embedding store (folder or fsspec URL).",
    )(f)


def data_root_option(f: F) -> F:
    return click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        default="fastxfer-data",
        envvar="FASTXFER_DATA_ROOT",
        show_default=True,
        show_envvar=True,
        help="Folder with the data sets, and with the register of those added by `targets add`.",
    )(f)


def same_options(f: F) -> F:
    """`--data-root` where no data is read, so that scripts can give one set of options to every command of the road."""
    return click.option("--data-root", expose_value=False, hidden=True, help="Taken, but not needed here.")(f)


def drop_leaks_option(f: F) -> F:
    """`drop_leaks`: None, "copy" or "patient"; comes with `data_root`, where the findings lie."""
    return click.option(
        "--drop-leaks",
        is_flag=False,
        flag_value="copy",
        type=click.Choice(["copy", "patient"]),
        help="Leave out test images that training has seen, as `targets check --save` found them: copies, or with "
        "`patient` also those of a patient of train or val.",
    )(data_root_option(f))


def open_store(store_path: str, drop_leaks: str | None, data_root: Path, targets: Sequence[str]) -> tuple[Any, Leaks]:
    """The store, without leaking test images if so asked; and what is known of leaks in its targets, which is said, too."""
    from fastxfer.holdings import without_leaks
    from fastxfer.store import EmbeddingStore

    store = EmbeddingStore.open(store_path)
    named = [name for name in dict.fromkeys(targets) if name in store.targets()] or store.targets()
    if drop_leaks:
        store = without_leaks(store, data_root, drop_leaks, named)
    dropped = {name: store.target(name).dropped if drop_leaks else "" for name in named}
    return store, Leaks(dropped, data_root, drop_leaks, store.fingerprint)


class Leaks:
    """What `targets check --save` found in the targets of a command: said as sentences, and as flags of its values.

    said: the sentences, which also go to stderr. dropped: the targets, each with its `Target.dropped`. by: how test images
    were left out (`--drop-leaks`); what is wrong with the others stays.
    """

    def __init__(
        self, dropped: Mapping[str, str], data_root: Path, by: str | None, fingerprint: Callable[[str], str]
    ) -> None:
        from fastxfer.errors import DataError
        from fastxfer.progress import say
        from fastxfer.targets.findings import load_findings

        self.said: list[str] = []
        self._found: dict[str, Findings] = {}
        for target, words in dropped.items():
            if by:
                self.said.append(f"{target}: {int(words.partition(':')[2] or 0):,} test images left out ({by})")
            try:
                findings = load_findings(data_root, target, fingerprint(target))
            except DataError as error:
                self.said.append(str(error))
                continue
            if findings:
                findings = findings.without(by) if by else findings
                self._found[target] = findings
                self.said += [f"{target}: {sentence}" for sentence in findings.sentences()]
        for line in self.said:
            say(line)

    def flags(self, target: str, source: str, split: str) -> list[str]:
        """What is wrong with a value: "copies", "patients", "shortcuts", "source", see `Findings.flags`.

        A source that names the target has seen it, whoever looked for images. Of other splits than test nothing but
        shortcuts is known.
        """
        from fastxfer.targets.findings import contaminated

        found = self._found[target].flags(source) if target in self._found else []
        found = [flag for flag in found if split == "test" or flag == "shortcuts"]
        return list(dict.fromkeys([*found, *(["source"] if contaminated(source, target) else [])]))


def print_flagged(columns: Sequence[str], rows: Sequence[Sequence[Any]], flags: Sequence[Sequence[str]]) -> None:
    """`print_table` with a last column of flags, if there are any."""
    if not any(flags):
        print_table(columns, rows)
    else:
        print_table([*columns, "flags"], [[*row, ", ".join(of)] for row, of in zip(rows, flags, strict=True)])


def episode_options(f: F) -> F:
    """What else an episode can be: `labels`, `query_prior`, `imbalance`, `fewer_queries`."""
    for option in (
        click.option(
            "--fewer-queries",
            is_flag=True,
            help="Where queries are scarce, as many as the scarcest class has; who is in train is no query.",
        ),
        click.option(
            "--imbalance",
            type=float,
            metavar="ALPHA",
            help="Uneven support: one image a class, the rest by Dirichlet(ALPHA) proportions; small is uneven.",
        ),
        click.option(
            "--query-prior",
            type=click.Choice(["balanced", "natural"]),
            default="balanced",
            show_default=True,
            help="Queries: as many of each class, or as many in all, as frequent as they are.",
        ),
        click.option(
            "--labels",
            type=click.Choice(["exactly-one", "per-label"]),
            default="exactly-one",
            show_default=True,
            help="Multi-label targets: images with one positive label, or K positives and K negatives of each label.",
        ),
    ):
        f = option(f)
    return f


def backend_option(f: F) -> F:
    return click.option(
        "--backend",
        type=click.Choice(["auto", "cuda", "cpu", "reference"]),
        default="auto",
        show_default=True,
        help="auto = cuda if built and a device is present, else cpu.",
    )(f)


def seed_option(f: F) -> F:
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")(f)


def json_option(f: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")(f)


def emit_json(document: Any) -> None:
    """Print one JSON document on stdout; NaN and infinity become null, NumPy values become plain ones."""
    click.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a table for people on stdout, numbers right-aligned, and so the columns `right`, which are never wrapped.

    A terminal that is too narrow gets cells wrapped between words, after it has gone without the columns `spare`, the
    first of them first. In a file or a pipe every row is one line, whole and without colour codes.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    cells = [[name, *(_cell(row[i]) for row in rows)] for i, name in enumerate(columns)]
    widths = [max(map(cell_len, column)) for column in cells]
    shown = list(range(len(columns)))
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        least = [max(cell_len(word) for cell in column for word in cell.split(" ")) for column in cells]
        least = [w if name in right else m for name, w, m in zip(columns, widths, least, strict=True)]
        for name in spare:
            if sum(least[i] + _GAP for i in shown) - _GAP > room:
                shown.remove(columns.index(name))
        excess = sum(widths[i] + _GAP for i in shown) - _GAP - room
        for i in sorted(shown, key=lambda i: least[i] - widths[i]):
            taken = max(0, min(excess, widths[i] - least[i]))
            widths[i] -= taken
            excess -= taken

    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold"
    )
    for i in shown:
        numbers = bool(rows) and all(isinstance(row[i], int | float | np.number) for row in rows)
        side: Literal["left", "right"] = "right" if numbers or columns[i] in right else "left"
        table.add_column(Text(columns[i]), justify=side, width=widths[i])
    for row in zip(*(cells[i][1:] for i in shown), strict=True):
        table.add_row(*map(Text, row))
    # As wide as the table needs: what doesn't fit into the terminal goes over its edge, and isn't lost.
    console = Console(file=sys.stdout, width=sum(widths) + _GAP * len(widths), highlight=False)
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        click.echo(line.rstrip())


_GAP = 2  # blanks between columns


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).splitlines())


def size_words(count: float) -> str:
    """Bytes, for people: "12.3 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def percent_done(done: int, of: int, *, bar: bool = False) -> str:
    """ "41 %", with `bar` "▰▰▱▱▱ 41 %" for what isn't whole; "100 %" only of what is."""
    if done >= of:
        return "100 %"
    share = done / of
    return f"{'▰' * int(5 * share):▱<5} {int(100 * share)} %" if bar else f"{int(100 * share)} %"


def results_option(f: F) -> F:
    return click.option(
        "--results",
        envvar="FASTXFER_RESULTS",
        show_envvar=True,
        help="Folder of the result rows [default: beside the store, <store>-results].",
    )(f)


def command_line() -> str:
    """The command as it was typed, with program path reduced to its name."""
    return shlex.join(["fastxfer", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    names = ("fastxfer", "numpy", "torch", "timm", "zarr", "scikit-learn", "faiss-cpu")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
