"""What deserves a fine-tuning: chosen from validation rows only, within a budget, each choice with its reason.

`select` makes a plan of results by a policy; `POLICIES` are those with a name. A policy sees what is believed of every configuration
(`belief`: of values and runs, jointly; `model`: how results foretell it) and ranks the runs that are worth making; one file a
family. `replay` plays policies again on fine-tunings that have all been made.
"""

from collections.abc import Callable

from fastxfer.errors import UsageError, nearest
from fastxfer.plugins import Catalogue
from fastxfer.selection.bound import UpperBound
from fastxfer.selection.frame import Random
from fastxfer.selection.gradient import KnowledgeGradient
from fastxfer.selection.halving import Halving
from fastxfer.selection.improvement import ExpectedImprovement
from fastxfer.selection.plan import Plan, select
from fastxfer.selection.policy import Choice, Policy, Situation, with_rest
from fastxfer.selection.rows import FINETUNED
from fastxfer.selection.top import TopK


def _wrong(name: str, thing: object) -> str:
    good = isinstance(thing, type) and issubclass(thing, Policy)
    return "" if good else f"it is {thing!r}, expected a subclass of fastxfer.selection.Policy"


POLICIES: Catalogue[Callable[[], Policy]] = Catalogue(
    "policies",
    {
        "top": TopK,
        "halving": Halving,
        "ucb": UpperBound,
        "ei": ExpectedImprovement,
        "kg": KnowledgeGradient,
        "random": Random,
    },
    _wrong,
)


def policy_named(name: str) -> Policy:
    """A policy by its name; `UsageError` for an unknown one, nearest named."""
    if name not in POLICIES:
        raise UsageError(f"unknown policy '{name}'.{nearest(name, POLICIES)} There are {', '.join(POLICIES)}")
    return POLICIES[name]()


__all__ = ["FINETUNED", "POLICIES", "Choice", "Plan", "Policy", "Situation", "policy_named", "select", "with_rest"]
