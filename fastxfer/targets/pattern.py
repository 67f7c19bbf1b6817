"""What paths say: ``{split}/{label}/{patient}_*.jpg``, a glob in which names in braces stand for parts of a path."""

from __future__ import annotations

import re
from pathlib import Path

from fastxfer.errors import DataError, UsageError, nearest
from fastxfer.targets.files import walk_images
from fastxfer.targets.leftout import LeftOut, some
from fastxfer.targets.listing import SPLIT_WORDS, Listing
from fastxfer.targets.table import ABOUT

NAMES = ("label", "split", *ABOUT)
_TOKENS = re.compile(r"(\*\*/|\*\*|\*|\?|\{[^{}]*\})")
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_SPLITS = f"(?i:{'|'.join(SPLIT_WORDS)})"


def read_pattern(root: Path, pattern: str) -> Listing:
    """List the images below `root` whose path (relative to it, "/" between folders) is as `pattern` says.

    ``*`` and ``?`` stay inside a folder's or file's name, ``**`` doesn't; {label}, {split}, {patient}, {study}, {view}
    and {source} are the shortest parts of one name that fit; a split must be called as one (train, val, testing …).
    Other images are counted in the notes, the first few named. `UsageError` for a pattern without {label}.
    """
    matches = compile_pattern(pattern).fullmatch
    found = walk_images(root)
    image_id: list[str] = []
    values: dict[str, list[str]] = {}
    strays: list[str] = []
    for path in found.images:
        match = matches(path)
        if match is None:
            strays.append(path)
            continue
        image_id.append(path)
        for name, value in match.groupdict().items():
            values.setdefault(name, []).append(value)
    if not image_id:
        raise DataError(
            f"{root}: of {len(strays):,} images none is as --pattern '{pattern}' says{': ' * bool(strays)}{some(strays)}"
        )
    split = values.pop("split", None)
    if split is not None:
        split = [SPLIT_WORDS[word.lower()] for word in split]
    listing = Listing(root, image_id, values.pop("label"), split, lambda i: str(root / image_id[i]), values)
    if strays:
        listing.left_out.append(LeftOut("images that aren't as the pattern says", str(root), paths=strays))
        listing.notes.append(listing.left_out[-1].note)
    return listing


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression; `UsageError` for names that there aren't, or twice, or without {label}."""
    parts = []
    seen: list[str] = []
    for token in _TOKENS.split(pattern):
        if token.startswith("{") and token.endswith("}"):
            name = token[1:-1]
            if name not in NAMES:
                known = ", ".join(f"{{{n}}}" for n in NAMES)
                raise UsageError(f"--pattern '{pattern}': '{token}' is none of {known}.{nearest(name, NAMES)}")
            if name in seen:
                raise UsageError(f"--pattern '{pattern}': '{token}' occurs twice")
            seen.append(name)
            parts.append(f"(?P<{name}>{_SPLITS if name == 'split' else '[^/]+?'})")
        else:
            parts.append(_WILD.get(token) or re.escape(token))
    if "label" not in seen:
        raise UsageError(f"--pattern '{pattern}': expected {{label}} in it, as in '{{label}}/**/*.jpg'")
    return re.compile("".join(parts), re.DOTALL)
