"""A data set in its official layout: images/KIND_NUMBER.png, and test.txt with the names of those in test."""

from pathlib import Path

from fastxfer.targets import Family, Listing, Target, build_target


def read(folder: Path, name: str, reverse: bool = False) -> Target:
    test = set((folder / "test.txt").read_text(encoding="utf-8").split())
    files = sorted(path.name for path in (folder / "images").glob("*.png"))
    listing = Listing(
        root=folder,
        image_id=[f"images/{file}" for file in files],
        labels=[file.split("_")[0] for file in files],
        split=["test" if (file in test) != reverse else "train" for file in files],
        where=lambda i: files[i],
    )
    return build_target(listing, name)


STRIPES = Family("stripes", read, expects="images/ and test.txt", source="drawn by the tests of fastxfer")
