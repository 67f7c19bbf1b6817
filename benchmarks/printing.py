"""Entries for people: what was timed, and what was counted."""

from __future__ import annotations

from typing import Any

from benchmarks.goals import judged

Entry = dict[str, Any]


def print_times(entries: list[Entry]) -> None:
    """Ours beside a peer."""
    print(f"{'':<26}{'ours':>12}{'peer':>12}{'ratio':>9}{'a core':>9}  checked  {'goal':<34}peer")
    for e in entries:
        print(
            f"{e['name']:<26}{e['ours_ms']:>9.3f} ms{e['peer_ms']:>9.2f} ms{e['ratio']:>8.3g}x{e['ratio_per_core']:>8.3g}x"
            f"  {checked(e):<7}  {goals(e):<34}{e.get('peer_is', e['peer'])}"
        )


def print_slopes(entries: list[Entry]) -> None:
    """How time grows, beside how the work does."""
    print(f"{'':<22}{'slope':>7}{'of work':>9}  checked  goal")
    for e in entries:
        print(f"{e['name']:<22}{e['slope']:>7.2f}{e['expected_slope']:>9.2f}  {checked(e):<7}  {goals(e)}")


def print_rates(entries: list[Entry]) -> None:
    """How often something came to pass in worlds whose truth is known, beside how often it may."""
    print(f"{'':<38}{'rate':>8}{'promised':>16}{'error':>8}  checked  of")
    for e in entries:
        print(
            f"{e['name']:<38}{e['rate']:>8.4f}{'{:g} … {:g}'.format(*e['promised']):>16}{e['error']:>8.4f}"
            f"  {checked(e):<7}  {e['what']}, {e['repetitions']:,} worlds"
        )


def print_coverage(entries: list[Entry]) -> None:
    """Shares of worlds, an entry a line."""
    for e in entries:
        rates = [f"{name} {e[name]:.1%}" for name in ("coverage", "naive", "offered", "miss_rate") if name in e]
        print(f"{e['name']:<54}{e.get('metric', ''):<19}{checked(e):<4}{', '.join(rates)}")


def print_selection(entries: list[Entry]) -> None:
    """The table of docs/selection.md."""
    print("| | saved: runs | GPU-hours | regret: mean | worst | beyond noise: mean | worst | replays |")
    print("|---|---|---|---|---|---|---|---|")
    for e in entries:
        beyond = [e.get(f"{which}_regret_beyond_noise_points") for which in ("mean", "worst")]
        print(
            f"| {e['name'].removeprefix('selection/')} | {100 * e['saved']:.1f} % | {100 * e['saved_gpu_hours']:.1f} % | "
            f"{e['mean_regret_points']:.2f} | {e['worst_regret_points']:.2f} | "
            f"{' | '.join('–' if b is None else f'{b:.2f}' for b in beyond)} | {e['seeds']} |"
        )


def print_where(entries: list[Entry]) -> None:
    """On which machine, at which commit."""
    e = entries[0]
    on = f"{e['threads']} thread(s), {e['embeddings']}, " if "embeddings" in e else ""
    print(f"\n{e['device']}, {on}commit {e['commit'][:9]}, {e['date']}")


def goals(entry: Entry) -> str:
    """The entry's goals, and whether each is met."""
    return ", ".join(f"{goal.limit} {goal.words}: {'met' if met else 'MISSED'}" for goal, _, met in judged(entry))


def checked(entry: Entry) -> str:
    return "yes" if entry["checked"] else "NO"
