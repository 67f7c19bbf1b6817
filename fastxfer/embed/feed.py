"""A target's images as pixels for one or several networks: every file is opened once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastxfer.backbones import Preprocessing
from fastxfer.embed.cache import CachedPixels
from fastxfer.embed.checks import is_lost, path_of
from fastxfer.embed.jobs import CONTENT, DIGEST_BYTES
from fastxfer.embed.reuse import digest_of
from fastxfer.errors import DataError
from fastxfer.images import decode_content, read_content
from fastxfer.targets.table import Target

Pixels = dict[str, NDArray[np.uint8]]


class Feed:
    """Decodes rows of a target for the geometries of several preprocessings.

    skip_bad: note images that cannot be decoded, instead of raising;  known_bad: rows not to try again
    cached: pixels that need no decoding, by geometry
    """

    def __init__(
        self,
        target: Target,
        preprocessings: Sequence[Preprocessing],
        known_bad: Collection[int],
        skip_bad: bool,
        cached: Mapping[str, CachedPixels],
    ) -> None:
        self.target = target
        self.cached = cached
        self.known_bad = set(known_bad)
        self.skip_bad = skip_bad
        self._of: Mapping[str, Preprocessing] = {p.geometry_key: p for p in preprocessings}
        self._apply = {key: p.geometry() for key, p in self._of.items()}

    def pixels(self, rows: range, wanted: Collection[str], batch: int) -> tuple[Pixels, dict[int, str]]:
        """For each geometry (batch, c, h, w) uint8, black where there is no image; and row -> why it is undecodable.

        With CONTENT among those wanted, (batch, DIGEST_BYTES) digests of the images' bytes under that name, too.
        """
        geometries = [key for key in wanted if key != CONTENT]
        out = {key: np.zeros((batch, *self._of[key].input_size), np.uint8) for key in geometries}
        if CONTENT in wanted:
            out[CONTENT] = np.zeros((batch, DIGEST_BYTES), np.uint8)
        wrong: dict[int, str] = {}
        fresh = []
        for key in geometries:
            kept = self.cached[key].read(rows) if key in self.cached else None
            if kept is None:
                fresh.append(key)
            else:
                out[key][: len(rows)] = kept
        # What a network sees does not depend on which others are fed beside it, so one decoding serves those that ask alike.
        by_size: dict[int, list[str]] = {}
        for key in fresh:
            by_size.setdefault(self._of[key].enough, []).append(key)
        for i, row in enumerate(rows if fresh or CONTENT in out else ()):
            if row in self.known_bad:
                continue
            path = path_of(self.target, row)
            try:
                content = read_content(path)
                if CONTENT in out:
                    out[CONTENT][i] = digest_of(content)
                if not fresh:
                    continue
                for enough, keys in by_size.items():
                    image = decode_content(content, path, pixels=self.target.pixels, at_least=enough)
                    for key in keys:
                        out[key][i] = self._apply[key](image)
            except DataError as error:
                if not self.skip_bad or is_lost(self.target, row, error):
                    raise
                wrong[row] = str(error)
        return out, wrong
