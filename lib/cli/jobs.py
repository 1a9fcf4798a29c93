"""`drover jobs`: what the node daemon does and has done, to wait for it and to cancel it."""

from datetime import datetime
from typing import Any, Final

import click

from drover.cli.backend import daemon
from drover.cli.clerk import ENDED, Told, cancel, described, followed, look, outcome
from drover.cli.complete import job_argument
from drover.cli.output import answer, coloured, data, for_people, output_option, table
from drover.cli.text import harmless
from drover.errors import CallFailed
from drover.node.client import Daemon

STATES: Final = ("queued", "running", "done", "failed", "cancelled", "lost")


def _daemon() -> Daemon:
    there = daemon()
    if not there.answers():
        text = f"no node daemon answers at {there.where}: without one there are no jobs"
        raise CallFailed("no-daemon", text)
    return there


@click.command("list")
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only those in this state; may be said again.")
@click.option("--instance", metavar="NAME", help="Only those of this instance.")
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True, help="So many of the newest.")
@output_option
def list_(state: tuple[str, ...], instance: str | None, limit: int, output: str) -> None:
    """Show jobs, the newest first."""
    from urllib.parse import urlencode

    query: list[tuple[str, Any]] = [("limit", limit), *(("state", each) for each in state)]
    query += [("instance", instance)] if instance is not None else []
    jobs = _daemon().call("GET", f"/v1/jobs?{urlencode(query)}")["jobs"]
    if not for_people(output):
        data(output, jobs, indent=1)
        return
    table(output, [_row(job) for job in jobs], ("id", "job", "state", "began", "took", "detail"), ("by", "steps"))


@click.command
@job_argument()
@output_option
def show(id: int, output: str) -> None:
    """Show a job: what it does, how far it is, and what came of it."""
    _show(look(_daemon(), id, 0), output)


@click.command
@job_argument()
@output_option
def wait(id: int, output: str) -> None:
    """Wait for the end of a job. It exits as the command would have that began it."""
    there = _daemon()
    job = followed(there, look(there, id, 0))
    if for_people(output):
        outcome(job)
        click.echo(f"Job {id}, {described(job)}, is done.")
        return
    _show(job, output)
    outcome(job)


@click.command
@job_argument()
@output_option
def stop(id: int, output: str) -> None:
    """Have a job end without having done what it was to do, where it can still do so well."""
    job = cancel(_daemon(), id)
    text = f"Job {id}, {described(job)}, is {job['state']}"
    if job["state"] in ENDED and job["state"] != "cancelled":
        raise CallFailed("job-wrong-state", f"job {id}, {described(job)}, has ended already: it is {job['state']}")
    answer(output, f"{text}." if job["state"] in ENDED else f"{text}; it ends as soon as it can.", job)


def _show(job: Told, output: str) -> None:
    if not for_people(output):
        data(output, job, indent=1)
        return
    row = _row(job)
    for name in ("id", "job", "state", "began", "took", "by", "detail"):
        if row[name]:
            click.echo(f"{name + ':':8} {coloured(harmless(str(row[name])))}")
    for step in job["steps"]:
        click.echo(f"{_when(step['at'])}  {harmless(step['name'])}")


def _row(job: Told) -> dict[str, Any]:
    error = job.get("error") or {}
    far = job.get("progress")
    detail = error.get("message", "")
    if far and job["state"] == "running":
        from drover.cli.bar import told

        detail = told(far)
    return {
        "id": job["id"],
        "job": described(job),
        "state": job["state"],
        "began": _when(job["started"] or job["created"]),
        "took": f"{job['ended'] - job['started']:.1f} s" if job["ended"] and job["started"] else "",
        "detail": detail,
        "by": job["caller"]["who"],
        "steps": ", ".join(step["name"] for step in job["steps"]),
    }


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
