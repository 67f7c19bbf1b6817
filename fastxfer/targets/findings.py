"""What `targets check --save` found, kept for those who evaluate: ``<data root>/targets/leaks/NAME.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastxfer.errors import DataError
from fastxfer.files import parsed, write_whole
from fastxfer.targets.families import FAMILIES
from fastxfer.targets.register import check_name, register_folder
from fastxfer.targets.table import Target

FORMAT = 1


@dataclass(frozen=True)
class Findings:
    """Of one target's table (`fingerprint`): the test images that training has seen, and traits that tell the label.

    copies, patients: image ids, see `test_leaks`; patients is None where nobody knows them
    shortcuts:        what `find_shortcuts` has flagged
    sources:          name of a data set that backbones are trained on -> test images that it contains (equal or nearly)
    """

    target: str
    fingerprint: str
    test_images: int
    copies: list[str]
    patients: list[str] | None
    shortcuts: list[dict[str, Any]]
    sources: dict[str, list[str]] = field(default_factory=dict)

    def leaking(self, by: str) -> set[str]:
        """Test images to leave out: `by` "copy", or "patient", which means copies, too."""
        return set(self.copies) | (set(self.patients or ()) if by == "patient" else set())

    def without(self, by: str) -> Findings:
        """What still holds once the test images `leaking(by)` are left out."""
        gone = self.leaking(by)

        def left(images: list[str]) -> list[str]:
            return [image for image in images if image not in gone]

        return replace(
            self,
            test_images=self.test_images - len(gone),
            copies=left(self.copies),
            patients=None if self.patients is None else left(self.patients),
            sources={name: left(images) for name, images in self.sources.items()},
        )

    def flags(self, source: str) -> list[str]:
        """What is wrong with a value measured on the test split by a backbone trained on `source`, a word each:
        "copies", "patients", "shortcuts", "source" (which contains test images)."""
        found = {
            "copies": self.copies,
            "patients": self.patients,
            "shortcuts": self.shortcuts,
            "source": any(images and contaminated(source, name) for name, images in self.sources.items()),
        }
        return [word for word, of in found.items() if of]

    def sentences(self) -> list[str]:
        """What a reader of results on this target should know; empty where nothing was found. Names no image."""
        said = []
        for what, images in (
            ("are copies of images of train or val.", self.copies),
            ("show patients of train or val.", self.patients),
            *(
                (f"are images of '{name}' or copies of such: backbones trained on it have seen them.", images)
                for name, images in self.sources.items()
            ),
        ):
            if images:
                share = len(images) / self.test_images
                said.append(f"{len(images):,} of {self.test_images:,} test images ({share:.1%}) {what}")
        if self.shortcuts:
            strongest = max(self.shortcuts, key=lambda flag: flag["auc"])
            traits = ", ".join(
                dict.fromkeys("all together" if f["trait"] == "all" else f["trait"] for f in self.shortcuts)
            )
            said.append(
                f"What the images are not about predicts their labels ({traits}; AUC up to {strongest['auc']:.2f})."
            )
        return said


def contaminated(source: str, target: str) -> bool:
    """Whether a source names the target, a data set in it, or classes of it, among its parts.

    "ImageNet, then Kermany" on "kermany"; "digits[0,1,2]" on "digits"; "padchest" on "padchest-cl" and "nih14+padchest".
    """

    def plain(text: str) -> str:
        # Variants of a built-in target read the same images.
        family = FAMILIES.find(text)
        shared = family.shares if family else ""
        return re.sub(r"[^a-z0-9]", "", shared or text.lower())

    parts = re.split(r"[,+;&/]|\bthen\b|\band\b", re.sub(r"\[[^\]]*\]", "", source.lower()))
    of_target = {target, *target.removeprefix("union=").split("+")}
    return bool({plain(part) for part in of_target} & {plain(part.strip()) for part in parts} - {""})


def leaking_images(data_root: Path | str, name: str, fingerprint: str, by: str) -> set[str]:
    """Test images that `--drop-leaks` leaves out, see `Findings.leaking`.

    `DataError` for a target that was not checked, has changed since, or, by patient, knows none.
    """
    findings = load_findings(data_root, name, fingerprint)
    if findings is None:
        raise DataError(
            f"--drop-leaks: target '{name}' was not checked for leaks: "
            f"fastxfer targets check {name} --save --data-root {data_root}"
        )
    if by == "patient" and findings.patients is None:
        raise DataError(
            f"--drop-leaks patient: nobody knows the patients of target '{name}'; ask for `--drop-leaks copy`, or "
            "name targets that know theirs"
        )
    return findings.leaking(by)


def without_leaks(target: Target, data_root: Path | str, by: str) -> Target:
    """The target without its `leaking_images`; its `dropped` says how many."""
    keep = np.flatnonzero(
        ~np.isin(target.image_id, sorted(leaking_images(data_root, target.name, target.fingerprint, by)))
    )
    gone = target.n_images - len(keep)
    return replace(target.take(keep), dropped=f"{by}:{gone}") if gone else target


def save_findings(data_root: Path | str, targets: Sequence[Target], report: dict[str, Any]) -> list[Path]:
    """Write what `check_targets` reported, a file a target, whole or not at all; returns the files.

    What earlier checks of the same table found in other sources is kept.
    """
    files = []
    for target, leaks, shortcuts in zip(targets, report["leaks"], report["shortcut_auc"], strict=True):
        sources: dict[str, list[str]] = {}
        with suppress(DataError):  # findings of another table, or damaged ones, are replaced
            earlier = load_findings(data_root, target.name, target.fingerprint)
            sources = dict(earlier.sources) if earlier else {}
        if "source" in report:
            seen = (i for i in report["source_images"] if i["target"] == target.name and i["split"] == "test")
            sources[report["source"]] = [image["image"] for image in seen]
        findings = Findings(
            target=target.name,
            fingerprint=target.fingerprint,
            test_images=leaks["test_images"],
            copies=leaks["copy"]["images"],
            patients=leaks["patient"] and leaks["patient"]["images"],
            shortcuts=shortcuts["flagged"],
            sources=sources,
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
        content = parsed(json.loads, file.read_bytes())
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
