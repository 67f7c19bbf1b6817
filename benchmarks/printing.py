"""Entries for people: what was timed, and what was counted. Benchmarks whose entries are of another kind print them themselves."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]


def print_times(entries: list[Entry]) -> None:
    """Ours beside a peer."""
    print(f"{'':<22}{'ours':>12}{'peer':>12}{'ratio':>9}{'a core':>9}  checked  peer")
    for e in entries:
        print(
            f"{e['name']:<22}{e['ours_ms']:>9.3f} ms{e['peer_ms']:>9.2f} ms{e['ratio']:>8.3g}x{e['ratio_per_core']:>8.3g}x"
            f"  {checked(e):<7}  {e.get('peer_is', e['peer'])}"
        )


def print_rates(entries: list[Entry]) -> None:
    """How often something came to pass in worlds whose truth is known, beside how often it may."""
    print(f"{'':<38}{'rate':>8}{'promised':>16}{'error':>8}  checked  of")
    for e in entries:
        print(
            f"{e['name']:<38}{e['rate']:>8.4f}{'{:g} … {:g}'.format(*e['promised']):>16}{e['error']:>8.4f}"
            f"  {checked(e):<7}  {e['what']}, {e['repetitions']:,} worlds"
        )


def print_where(entries: list[Entry]) -> None:
    """On which machine, at which commit."""
    e = entries[0]
    on = f"{e['threads']} thread(s), {e['embeddings']}, " if "embeddings" in e else ""
    print(f"\n{e['device']}, {on}commit {e['commit'][:9]}, {e['date']}")


def checked(entry: Entry) -> str:
    return "yes" if entry["checked"] else "NO"
