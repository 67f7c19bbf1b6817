"""`fastxfer doctor` reads the installation, not a list of its own, and tells missing from broken."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastxfer import backend, doctor
from fastxfer.cli import main


def states(store: Path | str = "nowhere") -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(store)}


def test_this_machine_is_well(tmp_path: Path):
    result = CliRunner().invoke(main, ["doctor", "--store", str(tmp_path / "a" / "b"), "--json"])
    assert result.exit_code == 0
    found = {line["what"]: line for line in json.loads(result.stdout)}
    assert not [line for line in found.values() if line["state"] == doctor.BROKEN]
    assert "GiB free" in found["store"]["found"]
    assert found["episodes on the CPU"]["found"].split(", ")[1] in ("baseline", "avx2", "avx512")
    assert found["episodes on a GPU"]["state"] == doctor.OK or found["episodes on a GPU"]["how"]


def test_every_extra_is_told_of_and_has_a_purpose():
    extras = set(metadata.metadata("fastxfer").get_all("Provides-Extra") or []) - doctor.NOT_FOR_USERS
    assert extras == set(doctor.PURPOSES)
    assert {f"extra {extra}" for extra in extras} >= {what for what in states() if what.startswith("extra ")}


def test_what_is_missing_or_too_old_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    version = metadata.version

    def another(name: str) -> str:
        if name == "submitit":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name in ("numpy", "obstore") else version(name)

    monkeypatch.setattr(metadata, "version", another)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = states()
    assert found["packages"].state == doctor.BROKEN
    assert "numpy is 0.1, wanted >=2.0" in found["packages"].found
    assert found["extra cluster"] == doctor.Finding(
        "extra cluster", doctor.MISSING, "--slurm: submitit is not installed", "pip install 'fastxfer[cluster]'"
    )
    assert "obstore is 0.1" in found["extra s3"].found
    assert found["g++"].how == "apt-get install g++"
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 1


def test_an_installation_without_its_compiled_module_is_broken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "compiled", None)
    found = states("s3://bucket/store")
    assert found["episodes on the CPU"].state == doctor.BROKEN
    assert "C++20 compiler" in found["episodes on the CPU"].how
    assert "not looked at" in found["store"].found


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert states("/somewhere")["store"].state == doctor.BROKEN
