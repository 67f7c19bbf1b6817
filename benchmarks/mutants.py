"""Whether the tests see a wrong line: `python -m benchmarks.mutants --seed 0 --count 100 [--minutes N] [--part NAME…]`.

A mutant is the source with one small thing changed: a comparison turned, an operator swapped, a number moved, a `not`
dropped. Each is run, in a copy of the tree, against the tests of its part, fastest first, until one fails; what outlives them
meets the tests of others that go through the part. Of Python the places come from its syntax tree, of C++ from its tokens;
a C++ mutant that does not compile is no mutant, and the next is drawn. Parts take turns, so that the first n of a seed are
a fair sample of all. Results go to benchmarks/results; a `note` beside a survivor there, and `now` ("same": it means the
same; "killed": by a test that was added), are a person's.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.embeddings import REAL
from benchmarks.machine import ROOT, machine
from benchmarks.records import RESULTS


class Part(NamedTuple):
    """A room of the code: its files, its own tests, fastest first, and others' tests that go through it."""

    files: str
    tests: list[str]
    others: list[str]


PARTS = {
    "statistics": Part(
        "fastxfer/statistics/*.py",
        ["test_statistics", "test_until", "test_comparing"],
        ["test_evaluation", "test_cli_compare", "test_study_until", "test_report_comparisons", "test_report_sections"],
    ),
    "selection": Part(
        "fastxfer/selection/*.py",
        ["test_selection", "test_selection_policies", "test_selection_model", "test_selection_foretold",
         "test_selection_replay", "test_selection_loop"],
        ["test_plugins", "test_study_rounds", "test_study_docs"],
    ),
    "episodes": Part(
        "fastxfer/episodes/*.py",
        ["test_episodes", "test_episode_modes", "test_cli_episodes"],
        ["test_evaluation", "test_influence", "test_cli_fewshot", "test_choosing", "test_presets", "test_finetune_tasks"],
    ),
    "store": Part(
        "fastxfer/store/*.py",
        ["test_store", "test_store_blocks", "test_store_tables", "test_store_verify", "test_store_upkeep", "test_arrow",
         "test_store_places", "test_projector", "test_cli_store", "test_drop_leaks", "test_left_out", "test_store_s3"],
        ["test_evaluation", "test_embed", "test_embed_again", "test_ranks", "test_study"],
    ),
    "core": Part(
        "csrc/core/*.h",
        ["test_preconditioner", "test_ops", "test_ops_awkward", "test_ridge_path", "test_path"],
        ["test_influence", "test_estimators", "test_presets", "test_ops_full", "test_cpp"],
    ),
}  # fmt: skip
SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
# What is allowed for the tests of a part where nobody has timed them.
CHECKED_SECONDS = 200.0
# A binary operator or comparison stands between blanks, a template's brackets don't; a number is no part of a name.
CPP_SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "/", "/": "*", "&&": "||",
    "||": "&&", "+=": "-=", "-=": "+=", "*=": "/=", "%": "*",
}  # fmt: skip
CPP_OPERATOR = re.compile(r"(?<= )(<=|>=|==|!=|&&|\|\||[-+*]=|[-+*/%<>])(?= )")
CPP_NUMBER = re.compile(r"(?<![\w.])\d+(\.\d+)?(e-?\d+)?(?![\w.])")
CPP_NOT = re.compile(r"!(?=[\w(])")


@dataclass(frozen=True)
class Mutant:
    """A file with the characters start … end of a line (from 1) replaced."""

    part: str
    file: str
    line: int
    start: int
    end: int
    text: str

    def lines(self, source: str) -> tuple[str, str]:
        """The line before and after."""
        before = source.splitlines()[self.line - 1]
        return before, before[: self.start] + self.text + before[self.end :]

    def apply(self, source: str) -> str:
        """The whole file, changed."""
        lines = source.splitlines(keepends=True)
        line = lines[self.line - 1]
        lines[self.line - 1] = line[: self.start] + self.text + line[self.end :]
        return "".join(lines)


# -- places ------------------------------------------------------------------------------------------------------------


def of_python(part: str, file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a file; places that span lines, annotations and text are left alone."""
    lines = source.splitlines()

    def at(line: int, start: int, end: int, text: str) -> Mutant:
        return Mutant(part, file, line, start, end, text)

    def chars(line: int, offset: int) -> int:  # ast counts bytes
        return len(lines[line - 1].encode()[:offset].decode())

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Mutant]:
        before, after = SWAPS.get(type(operator), ("", ""))
        if before and left.end_lineno == right.lineno and left.end_col_offset is not None:
            start = chars(right.lineno, left.end_col_offset)
            gap = lines[right.lineno - 1][start : chars(right.lineno, right.col_offset)]
            found = re.search(rf"(?<![\w*/<>=]){re.escape(before)}(?![\w*/<>=])", gap)
            if found:
                yield at(right.lineno, start + found.start(), start + found.end(), after)

    for node in code(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                yield from between(left, right, operator)
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, node.op)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(left, right, node.op)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and node.lineno == node.operand.lineno:
            start = chars(node.lineno, node.col_offset)
            yield at(node.lineno, start, start + len("not "), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = node.value
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value or 1.0
            start, end = chars(node.lineno, node.col_offset), chars(node.lineno, node.end_col_offset or 0)
            yield at(node.lineno, start, end, repr(other))
        elif isinstance(node, ast.Name) and node.id in ("min", "max"):
            start = chars(node.lineno, node.col_offset)
            yield at(node.lineno, start, start + 3, {"min": "max", "max": "min"}[node.id])


def code(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes that run: no annotations, nothing for type checkers, no options of a compiler, no `strict=` of a zip,
    which only asserts."""
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.AST):
                yield from code(child)


def of_cpp(part: str, file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a header; comments, preprocessor lines and assertions at compile time are left alone."""
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.split("//")[0]
        if text.lstrip().startswith(("#", "static_assert", "template", "using", "*")) or '"' in text:
            continue
        for found in CPP_OPERATOR.finditer(text):
            yield Mutant(part, file, number, found.start(), found.end(), CPP_SWAPS[found.group()])
        for found in CPP_NUMBER.finditer(text):
            value = found.group()
            other = str(int(value) + 1) if value.isdigit() else repr(2 * float(value) or 1.0)
            yield Mutant(part, file, number, found.start(), found.end(), other)
        for found in CPP_NOT.finditer(text):
            yield Mutant(part, file, number, found.start(), found.end(), "")


def drawn(seed: int, parts: list[str], root: Path = ROOT) -> Iterator[Mutant]:
    """All mutants of the parts in a seeded order, one of each part in turn."""
    queues = []
    for part in parts:
        every = [
            mutant
            for path in sorted(root.glob(PARTS[part].files))
            for mutant in (of_cpp if path.suffix == ".h" else of_python)(
                part, path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            )
        ]
        random.Random(f"{seed} {part}").shuffle(every)
        queues.append(every)
    while any(queues):
        for queue in queues:
            if queue:
                yield queue.pop()


# -- trying them -------------------------------------------------------------------------------------------------------


class Tree:
    """A copy of the tree in which mutants are tried. Nothing else is ever written to."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "main"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        for module in (ROOT / "fastxfer").glob("_C*.so"):
            shutil.copy2(module, self.root / "fastxfer")
        self.environment = os.environ | {
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            "FASTXFER_REAL": str(REAL),
            "NUMBA_CACHE_DIR": str(folder / "numba"),
        }
        self.seconds: dict[str, float] = {}

    def call(self, command: list[str], seconds: float) -> tuple[bool, str]:
        """(whether it ended well in time, its last words)."""
        process = subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            told, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return False, "no end within the time"
        return process.returncode == 0, told[-2000:]

    def tests(self, names: list[str], seconds: float, but: str = "slow or browser or gpu") -> tuple[bool, str]:
        """(whether the tests of these files pass, the test that failed)."""
        files = [f"tests/{name}.py" for name in names]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", f"not ({but})", "--timeout=300"]
        options += [
            "--deselect",
            "tests/test_ops.py::test_every_instruction_set_that_this_processor_has",
        ]  # see `compile`
        good, told = self.call([sys.executable, "-m", "pytest", *options, *files], seconds)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE)
        return good, failed.group(1) if failed else told.strip().splitlines()[-1][:100] if told.strip() else ""

    def check(self, part: str) -> None:
        """That the tests of a part pass as things are; how long they take is the measure for its mutants."""
        started = time.monotonic()
        if part == "core":
            self.compile()
            good, told = self.core_test(600)
            assert good, told
        good, told = self.tests(PARTS[part].tests, 1800)
        assert good, f"the tests of {part} fail without any mutant: {told}"
        self.seconds[part] = time.monotonic() - started
        good, told = self.tests(PARTS[part].others, 1800, "browser or gpu")
        assert good, f"tests of others than {part} fail without any mutant: {told}"
        print(f"{part}: {self.seconds[part]:.0f} s without a mutant", file=sys.stderr, flush=True)

    def try_out(self, mutant: Mutant) -> dict[str, Any] | None:
        """How the tests took it; None for what does not compile."""
        path = self.root / mutant.file
        source = path.read_text(encoding="utf-8")
        before, after = mutant.lines(source)
        limit = 120 + 5 * self.seconds[mutant.part]
        started = time.monotonic()
        path.write_text(mutant.apply(source), encoding="utf-8")
        try:
            if mutant.part == "core":
                good, told = self.core_test(limit)
                if not good and told.startswith("did not compile"):
                    return None
                if good:
                    self.compile()
            else:
                good = True
            if good:
                good, told = self.tests(PARTS[mutant.part].tests, limit)
            if good:
                good, told = self.tests(PARTS[mutant.part].others, 1800, "browser or gpu")
        finally:
            path.write_text(source, encoding="utf-8")
        seconds = time.monotonic() - started
        return {**asdict(mutant), "before": before, "after": after, "killed": not good, "by": "" if good else told,
                "seconds": round(seconds, 1)}  # fmt: skip

    def core_test(self, seconds: float) -> tuple[bool, str]:
        """Build the program of tests/test_cpp.py and run it."""
        program = self.root / "core_test"
        flags = ["-std=c++20", "-O0", "-pthread"]
        good, told = self.call(["g++", *flags, "tests/cpp/core_test.cpp", "-o", str(program)], 900)
        if not good:
            return False, f"did not compile: {told}"
        good, told = self.call([str(program)], seconds)
        return good, f"tests/cpp/core_test.cpp: {told.strip().splitlines()[0][:80] if told.strip() else 'died'}"

    def compile(self) -> None:
        """The extension module with one instruction set, lightly optimised: a minute less than the real one."""
        import sysconfig

        import pybind11

        build = self.root / "build"
        build.mkdir(exist_ok=True)
        flags = ["-std=c++20", "-O1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi"]
        kernels = ["-DFX_NAMESPACE=fastxfer_baseline", "-DFX_REGISTER_BYTES=16", "-DFX_KERNELS=baseline"]
        include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
        objects = []
        for source, more in (
            ("csrc/cpu/kernels.cpp", kernels),
            ("csrc/cpu/run.cpp", []),
            ("csrc/bindings.cpp", include),
        ):
            made = build / f"{Path(source).stem}.o"
            objects.append(str(made))
            if source != "csrc/bindings.cpp" or not made.exists():  # no line of core/ is in the bindings
                good, told = self.call(["g++", *flags, *more, "-c", source, "-o", str(made)], 1800)
                assert good, told
        (module,) = (self.root / "fastxfer").glob("_C*.so")
        good, told = self.call(["g++", "-shared", "-fopenmp", *objects, "-o", str(module)], 600)
        assert good, told


def run(
    seed: int, count: int, parts: list[str], minutes: float, checked: bool, tell: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Try mutants until there are `count`, or the time is up; `tell` hears of all so far after each."""
    deadline, found, still = time.monotonic() + 60 * minutes, [], 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        for part in parts:
            if checked:
                tree.seconds[part] = CHECKED_SECONDS
            else:
                tree.check(part)
        for mutant in drawn(seed, parts):
            if len(found) == count or time.monotonic() > deadline:
                break
            told = tree.try_out(mutant)
            if told is None:
                still += 1
                continue
            found.append({"name": f"mutant/{mutant.part}", "seed": seed, "not_compiled": still, **told})
            word = "killed" if told["killed"] else "SURVIVED"
            print(f"{len(found)}/{count} {mutant.file}:{mutant.line} {word} in {told['seconds']} s: "
                  f"{told['after'].strip()} [{told['by']}]", file=sys.stderr, flush=True)  # fmt: skip
            tell(found)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutants", description="Whether the tests see a wrong line."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="how many mutants (default 100)")
    parser.add_argument("--minutes", type=float, default=600, help="begin no mutant after so long (default 600)")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all, in turn")
    parser.add_argument(
        "--checked", action="store_true", help="the tests are known to pass as things are: don't run them first"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/mutants-DATE-COMMIT.json")
    given = parser.parse_args(arguments)
    where = machine()
    out = given.out or RESULTS / f"mutants-{where['date'][:10]}-{where['commit'][:9]}.json"

    def tell(found: list[dict[str, Any]]) -> None:
        out.write_text(json.dumps([entry | where for entry in found], indent=1) + "\n", encoding="utf-8")

    found = run(given.seed, given.count, given.part, given.minutes, given.checked, tell)
    killed = sum(entry["killed"] for entry in found)
    print(f"{killed} of {len(found)} mutants killed; {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
