"""From plain values, as TOML gives them, to a class of keys; what does not fit is noted, with where it stands."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastxfer.errors import nearest
from fastxfer.study.keys import ProbeKeys, TargetKeys

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}
_BAD = object()  # stands for a value that is a problem


class Reader:
    """Turns plain values into keys, and notes what does not fit."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def table(self, kind: Any, raw: dict[str, Any], at: str) -> Any:
        """An instance of a class of keys, bad ones at their default."""
        kinds, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
        found = {}
        for word, value in raw.items():
            where = f"{at}.{word}" if at else word
            if word not in known:
                self.problems.append(f"{where}: unknown key.{nearest(word, known) or ' Known: ' + ', '.join(known)}")
                continue
            read = self.value(kinds[word], value, where)
            if read is not _BAD and self._large_enough(read, known[word], where):
                found[word] = read
        return kind(**found)

    def value(self, kind: Any, raw: Any, at: str) -> Any:
        """`raw` as a key of this kind has it, or `_BAD`."""
        for one in _alternatives(kind):
            if is_dataclass(one):
                if isinstance(raw, str) and one in (ProbeKeys, TargetKeys):
                    raw = _of_text(one, raw)
                if isinstance(raw, dict):
                    return self.table(one, raw, at)
            elif get_origin(one) is tuple:
                items = raw if isinstance(raw, list) else [raw]
                (item, _) = get_args(one)
                read = [
                    self.value(item, v, f"{at}[{i}]" if isinstance(raw, list) else at) for i, v in enumerate(items, 1)
                ]
                return tuple(v for v in read if v is not _BAD)
            elif (value := _plain(one, raw)) is not _BAD:
                return value
        choices = [word for one in _alternatives(kind) if get_origin(one) is Literal for word in get_args(one)]
        hint = nearest(raw, choices) if isinstance(raw, str) else ""
        self.problems.append(f"{at} = {raw!r}: expected {kind_words(kind)}.{hint}")
        return _BAD

    def _large_enough(self, value: Any, key: Field[Any], at: str) -> bool:
        least = key.metadata.get("least")
        small = [
            v
            for v in (value if isinstance(value, tuple) else (value,))
            if isinstance(v, int) and least is not None and v < least
        ]
        if small:
            self.problems.append(f"{at} = {small[0]}: expected {least} or more")
        return not small


def kind_words(kind: Any) -> str:
    """ "a whole number", "a list of texts or tables" …"""
    words = []
    for one in _alternatives(kind):
        if get_origin(one) is Literal:
            words += [f'"{word}"' for word in get_args(one)]
        elif get_origin(one) is tuple:
            words.append(f"a list, each {kind_words(get_args(one)[0])}")
        elif is_dataclass(one):
            words.append("a text or a table" if one in (ProbeKeys, TargetKeys) else "a table")
        else:
            words.append(_WORDS[get_origin(one) or one])
    return " or ".join(words)


def _alternatives(kind: Any) -> list[Any]:
    union = get_origin(kind) in (Union, UnionType)
    return [one for one in get_args(kind) if one is not NoneType] if union else [kind]


def _plain(kind: Any, raw: Any) -> Any:
    if get_origin(kind) is Literal:
        return raw if isinstance(raw, str) and raw in get_args(kind) else _BAD
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    plain = get_origin(kind) or kind
    return raw if isinstance(raw, plain) and isinstance(raw, bool) == (plain is bool) else _BAD


def _of_text(kind: Any, text: str) -> dict[str, Any]:
    """What a table would say in place of a text."""
    return {"folder": text} if kind is TargetKeys and "/" in text else {"name": text}
