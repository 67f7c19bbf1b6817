"""`fastxfer doctor`: what this machine can do, what is missing, how to get it."""

from __future__ import annotations

import click

from fastxfer.cli.common import emit_json, json_option, print_table, same_options, store_option


@click.command()
@store_option
@same_options
@json_option
@click.pass_context
def doctor(context: click.Context, store_path: str, as_json: bool) -> None:
    """Say what this machine and installation can do, what is missing, and how to get it.

    Exit code 1 if something is broken that every command needs; an extra that is missing is none.

    \b
    Example:
      fastxfer doctor
    """
    from dataclasses import asdict

    from fastxfer.doctor import BROKEN, examine

    found = examine(store_path)
    if as_json:
        emit_json([asdict(finding) for finding in found])
    else:
        print_table(["", "what", "found", "to get it"], [[f.state, f.what, f.found, f.how] for f in found])
    if any(finding.state == BROKEN for finding in found):
        context.exit(1)
