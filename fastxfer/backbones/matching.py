"""Do these weights fit this network? By name; by names that timm knows to translate; by order and shape; or not."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fastxfer.errors import DataError

COUNTER = "num_batches_tracked"  # of batch norm; used in training only, and older files lack it
_SHOWN = 4


@dataclass
class Fit:
    """`state`: the body's tensors under the network's names; `notes`: how they got there, for people."""

    state: dict[str, Tensor]
    notes: list[str]


def fit_weights(
    state: Mapping[str, Tensor], network: nn.Module, heads: Sequence[str], what: str, *, ordered: bool
) -> Fit:
    """Find every tensor of the network's body in a checkpoint. A head may be missing or of another width.

    ordered: the file keeps the order its tensors were written in, so that it may stand in for the names.
    Raises DataError naming the first tensors that are missing, left over or of another shape.
    """
    body = {n: v for n, v in network.state_dict().items() if not _under(n, heads) and not n.endswith(COUNTER)}
    given = {n: v for n, v in state.items() if not n.endswith(COUNTER)}
    wrong = _mismatches(given, body, heads)
    if not wrong:
        return Fit({n: given[n] for n in body}, _left_out(given, body, heads))

    translated = _translate(given, network)
    if translated is not None and not _mismatches(translated, body, heads):
        return Fit({n: translated[n] for n in body}, ["names translated by timm's own rules"])

    if ordered:
        by_order = _by_order(given, body)
        if by_order is not None:
            first_given, first_body = next(iter(given)), next(iter(body))
            note = f"other names but the same order and shapes: taken in order ({first_given} = {first_body}, …)"
            return Fit(by_order, [note])

    listed = "; ".join(wrong[:_SHOWN])
    more = f"; and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
    raise DataError(
        f"{what}: {len(wrong):,} tensors do not fit its body of {len(body):,}: {listed}{more}. "
        f"Is it another architecture (--arch), or one with other arguments (--arch-arg)?"
    )


def _under(name: str, heads: Sequence[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _mismatches(given: Mapping[str, Tensor], body: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    wrong = []
    for name, value in body.items():
        if name not in given:
            wrong.append(f"{name} {tuple(value.shape)} is missing in the file")
        elif given[name].shape != value.shape:
            wrong.append(f"{name} is {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the network")
    # What the file has besides is a head if it lies apart from the body (fc, linear, classifier …), else a deeper body.
    rooms = {name.split(".")[0] for name in body}
    for name, value in given.items():
        if name not in body and not _under(name, heads) and name.split(".")[0] in rooms:
            wrong.append(f"{name} {tuple(value.shape)} is in the file, not in the network")
    return wrong


def _left_out(given: Mapping[str, Tensor], body: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    extra = dict.fromkeys(n.split(".")[0] for n in given if n not in body and not _under(n, heads))
    return [f"left out, not part of the body: {', '.join(extra)}"] if extra else []


def _translate(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    rules = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rules is None:
        return None
    try:
        translated = rules(dict(given), network)
    except Exception:  # rules written for other files: then they don't apply
        return None
    return {n: v for n, v in translated.items() if isinstance(v, Tensor) and not n.endswith(COUNTER)}


def _by_order(given: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The first len(body) tensors of the file if shapes and kinds (weight, bias, running_mean …) agree one by one.

    The kind matters: scale, shift, mean and variance of a batch norm have one shape. At most a head may follow.
    """
    names = list(given)
    rest = names[len(body) :]
    if len(names) < len(body) or len(rest) > 2 or any(_kind(n) not in ("weight", "bias") for n in rest):
        return None
    found = {}
    for name, (wanted, value) in zip(names, body.items(), strict=False):
        if given[name].shape != value.shape or _kind(name) != _kind(wanted):
            return None
        found[wanted] = given[name]
    return found


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
