"""Mutants are one small change each, that parses, the same for the same seed; and the tree that tries them is a copy."""

from __future__ import annotations

import ast
from itertools import islice

import pytest

from benchmarks.machine import ROOT
from benchmarks.mutants import PARTS, drawn, of_cpp, of_python

PYTHON = '''
"""A page with 1 < 2."""
@njit(cache=True)
def between(x: int = 3, low: "0" = 0) -> bool:
    """Not 1."""
    both = zip(x, low, strict=True)
    return not (x <= low + 1.5) and x is not None or max(x, 2) == True
'''
CPP = """
#include <a 1>
template <int N = 2> void f(const float* x) {  // 3 < 4
    for (int i = 0; i < N; ++i) y += x[i] * 0.5;
    if (!done && std::max<int>(1, 2)) return;
}
"""


def changed(mutants, source: str) -> list[str]:
    return [mutant.lines(source)[1].strip() for mutant in mutants]


def test_what_is_changed_in_python() -> None:
    got = changed(of_python("", "", PYTHON), PYTHON)
    line = "return not (x <= low + 1.5) and x is not None or max(x, 2) == True"
    assert sorted(got) == sorted(
        [
            'def between(x: int = 4, low: "0" = 0) -> bool:',
            'def between(x: int = 3, low: "0" = 1) -> bool:',
            line.replace("not (", "("),
            line.replace("<=", "<"),
            line.replace("+", "-"),
            line.replace("1.5", "3.0"),
            line.replace(" and ", " or "),
            line.replace("is not", "is"),
            line.replace(" or ", " and "),
            line.replace("max", "min"),
            line.replace("2", "3"),
            line.replace("==", "!="),
            line.replace("True", "False"),
        ]
    )


def test_what_is_changed_in_cpp() -> None:
    loop, branch = CPP.strip().splitlines()[2:4]
    assert changed(of_cpp("", "", CPP), CPP) == [
        loop.strip().replace(old, new)
        for old, new in ((" < ", " <= "), ("+=", "-="), (" * ", " / "), ("= 0", "= 1"), ("0.5", "1.0"))
    ] + [
        branch.strip().replace(old, new)
        for old, new in (("&&", "||"), ("(1,", "(2,"), (" 2)", " 3)"), ("!done", "done"))
    ]


def test_a_seed_names_its_mutants_and_parts_take_turns() -> None:
    first = list(islice(drawn(0, list(PARTS)), 100))
    assert first == list(islice(drawn(0, list(PARTS)), 100))
    assert first != list(islice(drawn(1, list(PARTS)), 100))
    assert [m.part for m in first[:10]] == [*PARTS, *PARTS]
    assert len(set(first)) == 100
    for mutant in first:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.apply(source) != source
        if mutant.file.endswith(".py"):
            ast.parse(mutant.apply(source))


@pytest.mark.parametrize("part", PARTS)
def test_the_tests_of_a_part_are_there(part: str) -> None:
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in PARTS[part].tests + PARTS[part].others)
