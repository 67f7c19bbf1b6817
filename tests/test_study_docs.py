"""docs/study-file.md: its table has every key, and its example runs, from images to the report."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from click.testing import CliRunner

from fastxfer.cli import main
from fastxfer.study.keys import TABLES
from fastxfer.study.reading import kind_words

PAGE = Path(__file__).parents[1] / "docs" / "study-file.md"


def key_lines() -> list[str]:
    """The table of the page, a line a key."""
    lines = []
    for table, kind in TABLES.items():
        hints = get_type_hints(kind)
        for f in fields(kind):
            default = {} if f.default is MISSING else f.default
            plain = isinstance(default, str | int | float) and default != ""
            shown = f"`{json.dumps(default)}`" if plain else ""
            if isinstance(default, tuple) and default:
                shown = f"`{json.dumps([getattr(d, 'name', d) for d in default])}`"
            where = f"`{table}`" if table else ""
            means = re.sub(r"(?<!`)`(?!`)", "`", f.metadata["help"]).replace("|", "\\|")
            hashed = "" if f.metadata.get("how") else "yes"
            lines.append(f"| {where} | `{f.name}` | {kind_words(hints[f.name])} | {shown} | {hashed} | {means} |")
    return lines


def test_the_page_has_every_key_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8").splitlines()
    there = [line for line in page if re.match(r"\| (`.+`)? ?\| `\w+` \|", line)]
    assert there == key_lines(), "write it anew: python tests/test_study_docs.py"


def example() -> str:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


def invoke(*words: Any) -> Any:
    got = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert got.exit_code == 0, got.output
    return json.loads(got.stdout)


@pytest.mark.slow
def test_the_example_of_the_page_runs_from_images_to_the_report(tmp_path: Path, one_thread: None) -> None:
    from digits import write_digits

    from fastxfer.results import ResultStore
    from pretrain.loop import pretrain
    from pretrain.recipe import Recipe
    from tests.together import photos

    write_digits(tmp_path / "images" / "digits", n_train=110, n_test=50, size=16)
    source = photos(tmp_path / "source")
    for name, channels in (("small", [32]), ("large", [64])):
        recipe = Recipe(arch_args={"channels": channels, "stem_chs": 32, "bottle_ratio": 1.0}, image_size=32)
        pretrain(recipe, source, tmp_path / "weights" / f"{name}.pt", untrained=True)
    text = example()
    for old, new in (
        ("episodes = 1000", "episodes = 10"),
        ("steps = 200", "steps = 2"),
        ("batch_size = 64", "batch_size = 8"),
        ("image_size = 32", "image_size = 16"),
    ):
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "study.toml"
    file.write_text(text, encoding="utf-8")
    asked = tomllib.loads(text)

    plan = {line["stage"]: line for line in invoke("study", "run", file, "--plan")["stages"]}
    assert plan["embed"]["left"] == 2 * 160
    assert plan["embed"]["seconds"] > 0
    assert plan["embed"]["bytes"] > 0
    assert plan["finetune"]["left"] == asked["select"]["budget"]
    assert plan["finetune"]["images"] == 2 * 8 * asked["select"]["budget"]
    assert not list(tmp_path.glob("digits-store*"))

    told = invoke("study", "run", file)
    assert [one["stage"] for one in told["done"]] == [
        "embed",
        "fewshot",
        "probe",
        "knn",
        "select",
        "finetune",
        "report",
    ]
    assert all(done == there > 0 for done, there in told["stages"].values())
    rows = ResultStore.open(Path(told["results"])).read()
    assert set(rows["probe"]) == {"ridge", "prototype", "knn", "logistic", "finetune"}
    assert (rows["probe"] == "finetune").any()
    assert f"hash {told['hash']}" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

    again = invoke("study", "run", file)
    assert all(one["units"] == one["rows"] == 0 for one in again["done"])


if __name__ == "__main__":
    head, table, tail = re.split(
        r"(?<=test_study_docs.py -->\n)|(?=<!-- end of keys)", PAGE.read_text(encoding="utf-8")
    )
    top = "| table | key | kind | default | in the hash | meaning |\n|---|---|---|---|---|---|\n"
    PAGE.write_text(head + top + "\n".join(key_lines()) + "\n" + tail, encoding="utf-8")
