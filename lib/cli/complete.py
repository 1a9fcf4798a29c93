"""What may come next on the command line: names of instances, their devices, jobs, contexts. Never an error.

A shell asks at each press of Tab, so this asks nobody who could take long, and loads little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Found = Iterable[tuple[str, str]]

# Seconds: who presses Tab waits for it; a node far away that takes longer completes nothing.
_PATIENCE: Final = 1.0
_JOBS: Final = 50  # the newest


def _safe(find: Callable[[click.Context], Found]) -> Completer:
    """What was found and begins as what was typed; nothing where that cannot be found out."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with ctx.scope(cleanup=False):
                found = list(find(ctx))
        except Exception:  # whatever is wrong, a press of Tab is no place to say so
            return []
        return [CompletionItem(name, help=text or None) for name, text in found if name.startswith(incomplete)]

    return complete


def _ask(path: str) -> Any:
    """What the daemon answers; None where there is none."""
    from drover.cli.backend import daemon

    there = daemon()
    return there.call("GET", path, timeout=_PATIENCE) if there.answers() else None


def _instances(ctx: click.Context) -> Found:
    told = _ask("/v1/instances")
    if told is not None:
        return [(row["name"], row["state"]) for row in told["instances"]]
    from drover.kvm.paths import default_paths

    folder = default_paths().instances
    return [(name, "") for name in sorted(each.name for each in folder.iterdir()) if not name.startswith(".")]


def _document(name: str) -> Mapping[str, Any]:
    told = _ask(f"/v1/instances/{quote(name, safe='')}")
    if told is not None:
        document: dict[str, Any] = told["document"]
        return document
    from drover.kvm.paths import default_paths

    kept: dict[str, Any] = json.loads(default_paths().instance(name).document.read_bytes())
    return kept


def _devices(kind: str) -> Callable[[click.Context], Found]:
    def find(ctx: click.Context) -> Found:
        document = _document(ctx.params["name"])
        runtime = document.get("runtime") or {}
        disks = (runtime.get("spec") or document["spec"]).get("disks", ())
        told = {disk["id"]: disk.get("source", "") for disk in disks}
        if kind == "cdrom":
            return [(disk["id"], told[disk["id"]]) for disk in disks if disk.get("kind") == "cdrom"]
        devices = runtime.get("devices", {})
        return [(name, told.get(name, "")) for name, device in devices.items() if device["kind"] == kind]

    return find


def _jobs(ctx: click.Context) -> Found:
    told = _ask(f"/v1/jobs?limit={_JOBS}") or {"jobs": []}
    return [(str(job["id"]), f"{job['kind']} {job['instance']} {job['state']}") for job in told["jobs"]]


def instance_argument(**more: Any) -> Callable[..., Any]:
    """The argument NAME of an instance that there is."""
    return click.argument("name", shell_complete=_safe(_instances), **more)


def device_argument(kind: str) -> Callable[..., Any]:
    """The argument ID of a device that the instance has.

    :param kind: as the record has it, or ``cdrom``
    """
    return click.argument("id", shell_complete=_safe(_devices(kind)))


def job_argument(**more: Any) -> Callable[..., Any]:
    """The argument ID of a job."""
    return click.argument("id", type=int, shell_complete=_safe(_jobs), **more)


def file_argument(name: str, **more: Any) -> Callable[..., Any]:
    """An argument that may be a file, or something else."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]

    return click.argument(name, shell_complete=complete, **more)


def what_to_run(name: str, **more: Any) -> Callable[..., Any]:
    """An argument that is an instance, or a file: the shell completes files where no instance begins so."""
    instances = _safe(_instances)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return instances(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]

    return click.argument(name, shell_complete=complete, **more)
