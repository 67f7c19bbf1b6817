"""`fastxfer compare`: which of two, surely; ranks; and where learning curves cross."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import (
    ManyValues,
    emit_json,
    json_option,
    print_table,
    results_option,
    same_options,
    store_option,
)

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = (".csv", ".parquet", ".md", ".tex")


@click.command(cls=ManyValues)
@click.option("--target", multiple=True, metavar="T…", help="Targets [default: all].")
@click.option("--backbone", multiple=True, metavar="B…", help="Backbones [default: all].")
@click.option("--ways", multiple=True, metavar="N…", help="Ways [default: all].")
@click.option("--shots", multiple=True, metavar="K…", help='Shots, or "full" [default: all].')
@click.option("--probe", multiple=True, metavar="P…", help="Probes [default: all].")
@click.option("--params", multiple=True, metavar="TEXT…", help="Settings of probes, as the rows have them [default: the best "
              "on validation rows, else the middle of the grid].")  # fmt: skip
@click.option("--metric", multiple=True, metavar="M…", help="Metrics [default: each target's first].")
@click.option("--split", help="Where queries come from [default: test, where there is any].")
@click.option(
    "--between",
    type=click.Choice(["backbone", "probe", "shots"]),
    default="backbone",
    show_default=True,
    help="What the two of a pair differ in; all else is alike.",
)
@click.option(
    "--over",
    type=click.Choice(["images", "episodes"]),
    default="images",
    show_default=True,
    help="What a verdict speaks of: new test images, too, where the results know of images; or other draws from these alone.",
)
@click.option("--margin", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="POINTS",
              help="A difference within this counts as none.")  # fmt: skip
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True, help="Of all intervals and "
              "tests.")  # fmt: skip
@click.option(
    "--ranks", is_flag=True, help="Ranks with the sets of ranks left open, and critical differences over targets."
)
@click.option("--crossings", is_flag=True, help="From which number of shots on another backbone is the better one.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write what is shown: .csv or .parquet; .md or .tex: a table of the cells, for a page or a paper.")  # fmt: skip
@store_option
@same_options
@results_option
@json_option
def compare(
    between: str, over: str, margin: float, level: float, split: str | None, ranks: bool, crossings: bool, out: Path | None,
    store_path: str, results: str | None, as_json: bool, **asked: tuple[str, ...],
) -> None:  # fmt: skip
    """Compare backbones pair by pair on the episodes that both saw: difference, intervals, and a verdict.

    The verdict speaks of new test images, too, where the results know of images, else of other draws from these. Tests are
    corrected for all pairs that are shown (Holm), so ask for what you want to know.

    \b
    Examples:
      fastxfer compare --target pets --shots 5 --probe logistic
      fastxfer compare --shots 5 --ranks
      fastxfer compare --probe logistic --crossings
      fastxfer compare --shots 5 --probe logistic --out table.tex
    """
    from fastxfer.comparing import contests
    from fastxfer.errors import UsageError
    from fastxfer.progress import say
    from fastxfer.results import ResultStore, results_path

    if (ranks or crossings) and between != "backbone":
        raise UsageError("--ranks and --crossings are about backbones: leave --between out")
    if ranks and crossings:
        raise UsageError("--ranks and --crossings are two answers: ask for one at a time")
    if out is not None and out.suffix not in _FORMATS:
        raise UsageError(f"--out {out}: one of {', '.join(_FORMATS)} is needed")
    if out is not None and out.suffix in (".md", ".tex") and (ranks or crossings):
        raise UsageError(f"--out {out}: ranks and crossings are written as .csv or .parquet")
    rows = ResultStore.open(results or results_path(store_path))
    found, notes = contests(
        rows.read(),
        rows.read_images if over == "images" else None,
        between=("backbone", "shots") if crossings else (between,),
        only={**asked, "split": (split,) if split else ()},
    )
    if not found:
        raise UsageError(f"nothing to compare: no two {between}s share a setting.{''.join(f' {n}.' for n in notes)}")
    for note in notes:
        say(note)
    show = _show_crossings if crossings else _show_ranks if ranks else _show_pairs
    document = show(found, margin, level, out, as_json)
    if as_json:
        emit_json({**document, "notes": notes, "results": str(rows.path)})


def _show_pairs(found: list[Any], margin: float, level: float, out: Path | None, as_json: bool) -> dict[str, Any]:
    from fastxfer.comparing import cell_table, latex, markdown
    from fastxfer.comparing import compare as compare_pairs
    from fastxfer.files import write_whole
    from fastxfer.progress import say

    table = compare_pairs(found, margin=margin, level=level)
    if out is not None and out.suffix in (".md", ".tex"):
        cells = cell_table(found, table, level=level)
        write_whole(out, (markdown(cells) if out.suffix == ".md" else latex(cells)).encode())
    else:
        _write(table, out)
    if as_json:
        return {"pairs": table.to_dict("records")}
    setting, words = _differing(table, list(found[0].setting))
    print_table(
        [*words, "a", "b", "a less b, points", f"{100 * level:g} %", "over", "p (Holm)", "verdict"],
        [
            [
                *(line[column] for column in setting),
                line["a"],
                line["b"],
                f"{line['difference']:+.2f}",
                _interval(line),
                line["over"],
                _p(line["p_holm"]),
                _verdict(line),
            ]
            for line in table.to_dict("records")
        ],
        right=["a less b, points", "p (Holm)"],
        spare=["over"],
    )
    say(f"{len(table):,} pairs, corrected together; equivalent: no difference above {margin:g} points")
    return {}


def _show_ranks(found: list[Any], margin: float, level: float, out: Path | None, as_json: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from fastxfer.comparing import critical_differences, rank
    from fastxfer.progress import say

    table = rank(found, level=level)
    critical = critical_differences(found, level=level)
    _write(table, out)
    if as_json:
        frames = ("ranks", "pairs", "groups")
        return {
            "ranks": table.to_dict("records"),
            "critical": [
                {**asdict(c), **{name: getattr(c, name).to_dict("records") for name in frames}} for c in critical
            ],
        }
    setting, words = _differing(table, list(found[0].setting))
    print_table(
        [*words, "backbone", "mean, points", "rank", "ranks left open", "over"],
        [
            [
                *(line[column] for column in setting),
                line["name"],
                f"{line['mean']:.2f}",
                line["rank"],
                f"{line['low']} … {line['high']}",
                line["over"],
            ]
            for line in table.to_dict("records")
        ],
        right=["mean, points", "ranks left open"],
        spare=["over"],
    )
    for c in critical:
        say(_critical_words(c))
    return {}


def _critical_words(critical: Any) -> str:
    from fastxfer.comparing.contests import words_of

    setting = words_of({name: value for name, value in critical.setting.items() if name != "target"})
    ranks = ", ".join(f"{line.name} {line.mean_rank:.2f}" for line in critical.ranks.itertuples(index=False))
    groups = "; ".join(", ".join(names) for names in critical.groups["names"]) or "none"
    few = " (which fewer than 6 targets cannot tell apart at 95 %)" if critical.targets < 6 else ""
    return (
        f"other targets like these {critical.targets} ({setting}): mean ranks {ranks}; critical difference (Nemenyi) "
        f"{critical.difference:.2f}; not told apart by Wilcoxon's test{few}: {groups}"
    )


def _show_crossings(found: list[Any], margin: float, level: float, out: Path | None, as_json: bool) -> dict[str, Any]:
    from fastxfer.comparing import crossings
    from fastxfer.errors import DataError

    table = crossings(found, level=level)
    if table.empty:
        raise DataError("no two backbones have episodes at the same two or more numbers of shots: nothing can cross")
    _write(table, out)
    if as_json:
        return {"crossings": table.to_dict("records")}
    setting, words = _differing(table, list(found[0].setting))
    print_table(
        [*words, "a", "b", "crossing at", f"{100 * level:g} %", "over", "answer"],
        [
            [*(line[column] for column in setting), line["a"], line["b"], _shots(line["crossing"]),
             _stretch(line), line["over"], line["answer"]]
            for line in table.to_dict("records")
        ],
        right=["crossing at"],
        spare=["over"],
    )  # fmt: skip
    return {}


def _write(table: pd.DataFrame, out: Path | None) -> None:
    from fastxfer.files import write_whole

    if out is not None:
        content = table.to_csv(index=False).encode() if out.suffix == ".csv" else table.to_parquet(index=False)
        write_whole(out, content)


def _differing(table: pd.DataFrame, setting: list[str]) -> tuple[list[str], list[str]]:
    """Columns of the setting in which lines differ, and their headings; what is common to all is said."""
    from fastxfer.comparing.contests import words_of
    from fastxfer.progress import say

    differ = [column for column in setting if table[column].nunique() > 1]
    common = {column: str(table[column].iloc[0]) for column in setting if column not in differ}
    if common:
        say(words_of(common))
    return differ, ["backbone" if column == "label" else column for column in differ]


def _interval(line: dict[str, Any]) -> str:
    wide = line["low_images"] == line["low_images"]  # not NaN
    low, high = (line["low_images"], line["high_images"]) if wide else (line["low"], line["high"])
    return f"{low:+.2f} … {high:+.2f}" if low == low else ""


def _p(p: float) -> str:
    return "" if p != p else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _verdict(line: dict[str, Any]) -> str:
    return {"a better": f"{line['a']} better", "b better": f"{line['b']} better"}.get(line["verdict"], line["verdict"])


def _shots(value: float) -> str:
    return "" if value != value else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _stretch(line: dict[str, Any]) -> str:
    low, high = line["low"], line["high"]
    if low != low:
        return ""
    return f"{_shots(low) if low > 0 else '<' + str(line['from'])} … {_shots(high) if high < 1e9 else '>' + str(line['to'])}"
