"""How far jobs are, on a terminal: for each its step, a bar with rate and time to go where it tells how far it is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from drover.cli.text import harmless


@contextmanager
def showing(*jobs: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows a job as it was last told, until it has ended; nothing where standard error is no terminal.

    What is printed meanwhile stands above. Any thread may show one.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda job: None
        return
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("[dim]Ctrl-C leaves it to go on[/dim]"),
    ]
    both = sys.stdout.isatty()  # else what is printed is for a file, and is not to be taken from it
    with Progress(*columns, console=console, transient=True, redirect_stdout=both) as progress:
        tasks: dict[int, TaskID] = {}

        def show(job: dict[str, Any]) -> None:
            far, number = job.get("progress") or {}, job["id"]
            if number not in tasks:
                tasks[number] = progress.add_task(_what(job), total=None, told="")
            progress.update(
                tasks[number], description=_what(job), completed=far.get("done", 0), total=far.get("of") or None,
                told=told(far), visible=not job.get("ended"),
            )  # fmt: skip

        for job in jobs:
            show(job)
        yield show


def told(far: dict[str, Any]) -> str:
    """How far, how fast, and how long still, as far as that is known."""
    if not far:
        return ""
    amount = decimal if far.get("unit") == "bytes" else lambda number: f"{number}"
    parts = [f"{amount(int(far['done']))} of {amount(int(far['of']))}" if far.get("of") else amount(int(far["done"]))]
    if far.get("rate") is not None:
        parts.append(f"{amount(int(far['rate']))}/s")
    if far.get("eta") is not None:
        parts.append(f"{timedelta(seconds=round(far['eta']))} to go")
    if far.get("detail"):
        parts.append(harmless(far["detail"]))
    return ", ".join(parts)


def _what(job: dict[str, Any]) -> str:
    words = f"{job['id']} {job['kind']} {job['instance']}"
    step = job["steps"][-1]["name"] if job.get("steps") else job["state"]
    return harmless(words if step == job["kind"] else f"{words}: {step}")
