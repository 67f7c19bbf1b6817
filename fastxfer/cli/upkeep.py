"""`fastxfer store verify|repair|gc|cp|merge|migrate`: looking after stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastxfer.cli.common import data_root_option, emit_json, json_option, print_table, size_words, store_option
from fastxfer.errors import FastxferError, UsageError

if TYPE_CHECKING:
    from fastxfer.store import Problem
    from fastxfer.targets import Target

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def one_or_all(backbone: str | None, target: str | None, everything: bool) -> None:
    if (backbone is None) != (target is None) or (everything and backbone is not None):
        raise UsageError("name BACKBONE TARGET, or --all")


def _print_problems(problems: Sequence[Problem]) -> None:
    rows = [
        (
            f"{p.backbone or '-'}",
            p.target or "-",
            f"{p.rows.start:,} to {p.rows.stop - 1:,}" if p.rows else "-",
            p.path,
            p.why,
        )
        for p in problems
    ]
    print_table(["backbone", "target", "rows", "file", "what is wrong"], rows)


@click.command()
@click.argument("backbone", required=False)
@click.argument("target", required=False)
@click.option("--all", "everything", is_flag=True, help="The whole store (as without BACKBONE TARGET).")
@store_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, backbone: str | None, target: str | None, everything: bool, store_path: str, as_json: bool
) -> None:
    """Look at every byte: checksums, seals, digests, what is cut, gone or in another's place. Exit code 1 if any is wrong.

    \b
    Examples:
      fastxfer store verify
      fastxfer store verify resnet50 photos --json
    """
    from fastxfer.progress import say
    from fastxfer.store import verify as look

    one_or_all(backbone, target, everything)
    report = look(store_path, backbone, target)
    if as_json:
        emit_json(
            {
                "store": store_path,
                "sound": not report.problems,
                "problems": [p.as_dict() for p in report.problems],
                "incomplete": [
                    {"backbone": b, "target": t, "missing_rows": n} for (b, t), n in report.incomplete.items()
                ],
                "arrays": report.arrays,
                "blocks": report.blocks,
                "bytes": report.bytes,
            }
        )
    else:
        if report.problems:
            _print_problems(report.problems)
        for (b, t), n in report.incomplete.items():
            say(f"{b} on {t}: {n:,} rows were never written (no damage): the same `fastxfer embed` does them")
        seen = f"{report.arrays:,} arrays, {report.blocks:,} blocks, {size_words(report.bytes)}"
        if report.problems:
            say(f"{len(report.problems):,} problems in {seen}: `fastxfer store repair --store {store_path}`")
        else:
            say(f"sound: {seen}")
    if report.problems:
        ctx.exit(1)


@click.command()
@click.argument("backbone", required=False)
@click.argument("target", required=False)
@click.option("--all", "everything", is_flag=True, help="The whole store (as without BACKBONE TARGET).")
@click.option("--ckpt", metavar="FILE|NAME", help="Weights to compute lost rows with [default: those recorded].")
@click.option("--arch", metavar="NAME", help="Architecture, if it is code: it runs only when it is named.")
@click.option("--no-embed", is_flag=True, help="Compute nothing: leave lost rows to the next `fastxfer embed`.")
@yes_option
@store_option
@data_root_option
@json_option
@click.pass_context
def repair(
    ctx: click.Context,
    backbone: str | None,
    target: str | None,
    everything: bool,
    ckpt: str | None,
    arch: str | None,
    no_embed: bool,
    yes: bool,
    store_path: str,
    data_root: Path,
    as_json: bool,
) -> None:
    """Restore what can be restored, remove exactly the damaged blocks, and compute exactly their rows anew.

    Rows are computed where checkpoint and images are still at hand, else left to the same `fastxfer embed`.

    \b
    Examples:
      fastxfer store repair
      fastxfer store repair resnet50 photos --ckpt resnet50.pt --yes
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore
    from fastxfer.store import repair as put_right
    from fastxfer.store import verify as look

    one_or_all(backbone, target, everything)
    problems = look(store_path, backbone, target).problems
    if problems and not as_json:
        _print_problems(problems)
    blocks = [p for p in problems if p.kind == "block"]
    rows = sum(len(p.rows) for p in blocks if p.rows)
    question = f"Remove {len(blocks)} damaged blocks ({rows:,} embeddings, to be computed anew)?"
    if blocks and not yes and not click.confirm(question, err=True):
        raise UsageError("nothing was changed")
    out = put_right(store_path, backbone, target, load=lambda name: _registered(name, data_root))
    for sentence in out.done:
        say(sentence)
    embedded, refused = [], []
    for (name, on), lost in out.lost.items():
        n = sum(len(r) for r in lost)
        try:
            if no_embed:
                raise UsageError("--no-embed")
            from fastxfer.embed import embed_again
            from fastxfer.registered import files_of, find_registered
            from fastxfer.targets import load_target

            store = EmbeddingStore.open(store_path, mode="a")
            # A backbone that is registered under its name in the store needs no words.
            word = ckpt or (name if find_registered(name, data_root) else None)
            file, code = files_of(word, data_root, arch) if word else (None, arch)
            embedded.append(embed_again(store, name, load_target(on, data_root), ckpt=file, arch=code).as_dict())
        except FastxferError as error:
            refused.append({"backbone": name, "target": on, "rows": n, "why": str(error)})
            say(f"{name} on {on}: {n:,} rows are to be computed by the same `fastxfer embed` again ({error})")
    for problem in out.left:
        say(f"not repaired: {problem}")
    if as_json:
        emit_json(
            {
                "store": store_path,
                "problems": [p.as_dict() for p in problems],
                "done": out.done,
                "left": [p.as_dict() for p in out.left],
                "embedded": embedded,
                "to_embed": refused,
            }
        )
    elif not problems:
        say("sound: nothing to repair")
    if out.left:
        ctx.exit(1)


def _registered(name: str, data_root: Path) -> Target | None:
    from fastxfer.targets import load_target

    try:
        return load_target(name, data_root)
    except FastxferError:
        return None


@click.command()
@yes_option
@store_option
@json_option
def gc(yes: bool, store_path: str, as_json: bool) -> None:
    """Show what nobody needs: half-written files, removals cut short, stale locks, tables without embeddings; --yes removes it.

    \b
    Examples:
      fastxfer store gc
      fastxfer store gc --yes
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore
    from fastxfer.store.upkeep import leftovers, remove_leftovers

    found = leftovers(EmbeddingStore.open(store_path))
    if as_json:
        emit_json({"removed": yes, "leftovers": [vars(f) for f in found]})
    elif found:
        print_table(["what", "why", "size"], [(f.path, f.why, size_words(f.bytes)) for f in found])
    if yes and found:
        remove_leftovers(EmbeddingStore.open(store_path, mode="a"), found)
    total = size_words(sum(f.bytes for f in found))
    if not found:
        say("nothing is left over")
    else:
        say(f"removed {len(found)}, {total}" if yes else f"{len(found)} could go, {total}: add --yes to remove them")


@click.command()
@click.argument("backbone")
@click.argument("target")
@click.option("--to", "to", required=True, metavar="STORE", help="Store to copy to; made if it isn't there.")
@store_option
@json_option
def cp(backbone: str, target: str, to: str, store_path: str, as_json: bool) -> None:
    """Copy BACKBONE's embeddings of TARGET, with its table, to another store; what is there already stays.

    \b
    Example:
      fastxfer store cp resnet50 photos --to /shared/store
    """
    from fastxfer.progress import say
    from fastxfer.store import EmbeddingStore
    from fastxfer.store.upkeep import copy

    source = EmbeddingStore.open(store_path)
    source.attributes(backbone, target)  # before the other store is made
    written = copy(source, backbone, target, EmbeddingStore.open(to, mode="a"))
    if as_json:
        emit_json({"backbone": backbone, "target": target, "to": to, "rows": written})
    else:
        say(f"copied {backbone} on {target} to {to}: {written:,} rows that were not there")


@click.command()
@click.argument("other")
@store_option
@json_option
def merge(other: str, store_path: str, as_json: bool) -> None:
    """Unite OTHER, somebody else's store, with this one: arrays and blocks that are missing here are taken from there.

    Nothing is merged if anything doesn't belong together (another backbone under a name, a changed target).

    \b
    Example:
      fastxfer store merge /home/ada/fastxfer-store
    """
    from fastxfer.store import EmbeddingStore
    from fastxfer.store.upkeep import merge as unite

    done = unite(EmbeddingStore.open(other), EmbeddingStore.open(store_path, mode="a"))
    if as_json:
        emit_json([{"backbone": b, "target": t, "rows": n} for b, t, n in done])
    else:
        print_table(["backbone", "target", "rows taken"], done)


@click.command()
@store_option
@json_option
def migrate(store_path: str, as_json: bool) -> None:
    """Bring a store of an older format up to date, in place; nothing is computed, and a kill loses nothing.

    \b
    Example:
      fastxfer store migrate --store old-store
    """
    from fastxfer.progress import say
    from fastxfer.store.layout import FORMAT
    from fastxfer.store.upkeep import migrate as renew

    written = renew(store_path)
    if as_json:
        emit_json({"store": store_path, "format": FORMAT, "blocks": written})
    elif not written:
        say(f"store '{store_path}' has format {FORMAT}; nothing was to do")


COMMANDS: list[Any] = [verify, repair, gc, cp, merge, migrate]
