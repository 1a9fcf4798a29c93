"""`drover verify NAME`: specification, record and QEMU side by side."""

from typing import Any

import click
from msgspec import to_builtins

from drover.cli.backend import connected
from drover.cli.complete import instance_argument
from drover.cli.output import answer, for_people, notice, output_option, table
from drover.kvm.verify import Report

_COLUMNS = ("differs", "what", "specification", "record", "qemu", "repair")


@click.command
@instance_argument()
@click.option("--repair", is_flag=True, help="Do what is safe about what differs, and look again. No disk is touched.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for QEMU to answer.")
@output_option
@click.pass_context
def verify(context: click.Context, name: str, repair: bool, timeout: float, output: str) -> None:
    """Show specification, record and QEMU side by side, and what differs.

    The exit code is 0 where all agree, and 1 where something differs.
    """
    instance = connected().instance(name)
    report, done = instance.verify(timeout=timeout), list[str]()
    before = None
    if repair and not report.agrees:
        if for_people(output):
            _show(output, report)
        before = report
        done = instance.repair(timeout=timeout)
        report = instance.verify(timeout=timeout)
    if not for_people(output):
        said = _data(report) | {"done": done}
        answer(output, "", said | ({"before": _data(before)} if before else {}))
    else:
        for text in done:
            notice(text)
        _show(output, report)
    context.exit(0 if report.agrees else 1)


def _data(report: Report) -> dict[str, Any]:
    data: dict[str, Any] = to_builtins(report)
    return data | {"agrees": report.agrees}


def _show(output: str, report: Report) -> None:
    rows = []
    for fact in report.facts:
        row = {name: getattr(fact, name) for name in ("what", "specification", "record", "qemu")}
        said = {name: "-" if value is None else value for name, value in row.items()}
        rows.append(said | {"differs": "!" if fact.differs else "", "repair": fact.remedy})
    table(output, rows, _COLUMNS)
    count = sum(fact.differs for fact in report.facts)
    state = f"{report.name} ({report.state})"
    click.echo(f"{state}: all agree." if report.agrees else f"{state}: {count} of {len(report.facts)} differ.")
