"""What `targets check --save` found, kept for those who evaluate: ``<data root>/targets/leaks/NAME.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastxfer.errors import DataError
from fastxfer.files import write_whole
from fastxfer.targets.register import check_name, register_folder
from fastxfer.targets.table import Target

FORMAT = 1


@dataclass(frozen=True)
class Findings:
    """Of one target's table (`fingerprint`): the test images that training has seen, and traits that tell the label.

    copies, patients: image ids, see `test_leaks`; patients is None where nobody knows them
    shortcuts:        what `find_shortcuts` has flagged
    """

    target: str
    fingerprint: str
    test_images: int
    copies: list[str]
    patients: list[str] | None
    shortcuts: list[dict[str, Any]]

    def leaking(self, by: str) -> set[str]:
        """Test images to leave out: `by` "copy", or "patient", which means copies, too."""
        return set(self.copies) | (set(self.patients or ()) if by == "patient" else set())

    def sentences(self) -> list[str]:
        """What a reader of results on this target should know; empty where nothing was found. Names no image."""
        said = []
        for what, images in (("are copies of images", self.copies), ("show patients", self.patients)):
            if images:
                share = len(images) / self.test_images
                said.append(
                    f"{len(images):,} of {self.test_images:,} test images ({share:.1%}) {what} of train or val."
                )
        if self.shortcuts:
            strongest = max(self.shortcuts, key=lambda flag: flag["auc"])
            traits = ", ".join(
                dict.fromkeys("all together" if f["trait"] == "all" else f["trait"] for f in self.shortcuts)
            )
            said.append(
                f"What the images are not about predicts their labels ({traits}; AUC up to {strongest['auc']:.2f})."
            )
        return said


def save_findings(data_root: Path | str, targets: Sequence[Target], report: dict[str, Any]) -> list[Path]:
    """Write what `check_targets` reported, a file a target, whole or not at all; returns the files."""
    files = []
    for target, leaks, shortcuts in zip(targets, report["leaks"], report["shortcut_auc"], strict=True):
        findings = Findings(
            target=target.name,
            fingerprint=target.fingerprint,
            test_images=leaks["test_images"],
            copies=leaks["copy"]["images"],
            patients=leaks["patient"] and leaks["patient"]["images"],
            shortcuts=shortcuts["flagged"],
        )
        content = json.dumps({"format": FORMAT, **asdict(findings)}, indent=1, ensure_ascii=False) + "\n"
        files.append(_file(data_root, target.name))
        write_whole(files[-1], content.encode())
    return files


def load_findings(data_root: Path | str, name: str, fingerprint: str) -> Findings | None:
    """What was found in a target with this table; None where it was never checked.

    `DataError` for findings of another table, or a damaged file.
    """
    file = _file(data_root, name)
    again = f"`fastxfer targets check {name} --save --data-root {data_root}` makes them anew"
    try:
        content = json.loads(file.read_bytes())
        if content.pop("format") != FORMAT:
            raise DataError(f"{file}: findings of another version of fastxfer; {again}")
        findings = Findings(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: damaged ({error}); {again}") from None
    if findings.fingerprint != fingerprint:
        raise DataError(
            f"{file}: findings of another table of target '{name}' (fingerprint {findings.fingerprint[:12]}, now "
            f"{fingerprint[:12]}): its images, labels or splits have changed since; {again}"
        )
    return findings


def _file(data_root: Path | str, name: str) -> Path:
    check_name(name)
    # A folder of their own: beside the register's entries, NAME.leaks.json would be the entry of a target "NAME.leaks".
    return register_folder(data_root) / "leaks" / f"{name}.json"
