"""Label tables of the big chest X-ray sets: in the user's folder, or, for labels alone, in the torchxrayvision wheel."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fastxfer.errors import DataError


def find_table(name: str, folder: Path, files: Sequence[str], *, packaged: str | None = None) -> Path:
    """The first of `files` that lies in `folder`, else the table `packaged` inside torchxrayvision.

    name: of the target, for messages. packaged: file name; None where the images are wanted too.
    """
    found = next((folder / file for file in files if (folder / file).is_file()), None)
    if found is not None:
        return found
    if packaged is None:
        raise DataError(f"target '{name}': no {' or '.join(files)} in {folder}; it comes with the data set")
    return packaged_table(name, packaged)


def packaged_table(name: str, file: str) -> Path:
    """A label table that torchxrayvision ships (Cohen et al., MIDL 2022), without importing it (and with it torch)."""
    spec = importlib.util.find_spec("torchxrayvision")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "data" / file).is_file():
            return Path(place) / "data" / file
    have = "the installed torchxrayvision has none" if spec else "torchxrayvision, which has one, is not installed"
    raise DataError(f"target '{name}': no label table in its folder, and {have} ({file}): pip install 'fastxfer[xray]'")
