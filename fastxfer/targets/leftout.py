"""What a reader left out, each row or path under its reason: notes count them and name a few, JSON lists all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 5


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table or list, or paths below a folder, that were left out for one reason.

    reason: what they are, in the words of a note ("images without a label")
    file:   the table or list that the rows are of, or the folder that the paths start from
    rows:   their numbers as a spreadsheet counts, the header of a table being row 1
    paths:  of images (or other files), where no table has them
    """

    reason: str
    file: str
    rows: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) or len(self.paths)

    @property
    def note(self) -> str:
        """The reason with how many there are, and the first few."""
        first = some(self.paths) if self.paths else f"{self.file}, row {some(list(map(str, self.rows[: SHOWN + 1])))}"
        return f"left out {len(self):,} {self.reason}: {first}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; `LeftOut(**…)` reads it."""
        return asdict(self)


def some(things: Sequence[str]) -> str:
    """The first few of what was left out, for notes."""
    return ", ".join(things[:SHOWN]) + (", …" if len(things) > SHOWN else "")
