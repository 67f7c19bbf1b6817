"""Options of commands that read built-in targets: which policy, which views, which images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

# `fastxfer.images.Pixels`
_PIXELS = (
    click.option(
        "--grey16",
        type=click.Choice(["full", "range"]),
        help="White of 16-bit grey images: 65,535, or each image's largest value.  [default: full]",
    ),
    click.option(
        "--dicom",
        type=click.Choice(["window", "range"]),
        help="Grey of DICOM images: through their own window, or over each image's range.  [default: window]",
    ),
)
# How built-in targets and merges are read; a reader says which of these it has.
_READING = (
    click.option(
        "--policy", help="How a built-in target reads uncertain labels, e.g. ignore, ones, zeros, blank-zeros."
    ),
    click.option(
        "--soft-labels",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="For policy self-trained: a table with path and a column a label, 0 to 1.",
    ),
    click.option("--labeler", help="Whose labels of mimic-cxr: chexpert or negbio."),
    click.option("--view", "views", multiple=True, help="Views of a built-in X-ray target, e.g. AP PA."),
    click.option("--ages", type=float, nargs=2, metavar="LOW HIGH", help="Ages of a built-in X-ray target, in years."),
    click.option(
        "--first-of", type=click.Choice(["study", "patient"]), help="Only the first image of each study or patient."
    ),
    click.option("--exactly-one", is_flag=True, help="Only images with exactly one positive label: as classes."),
    click.option(
        "--labels",
        type=click.Choice(["intersection", "union"]),
        help="Of a merge A+B: labels that all have, or all of them.  [default: intersection]",
    ),
    click.option("--species", is_flag=True, help="Of pets: cat or dog instead of the breed."),
)


def reading_options(f: F) -> F:
    """Add the options of built-in targets and merges to a command; `given` picks those that were used."""
    for option in reversed((*_READING, *_PIXELS)):
        f = option(f)
    return f


def pixel_options(f: F) -> F:
    """Add the options of `Pixels` alone."""
    for option in reversed(_PIXELS):
        f = option(f)
    return f


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; what wasn't said is the reader's to decide."""
    return {option: value for option, value in options.items() if value not in (None, (), False)}
