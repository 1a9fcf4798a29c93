"""The steps of an instance's passage between nodes, as operations: for `lib/migration`, or who does it by hand."""

from typing import Any

import msgspec
from msgspec import to_builtins

from ..errors import ArgumentError, NotSupported
from ..kvm.handover import Settings
from ..kvm.node import Node
from ..kvm.parcel import Parcel
from . import parameters as p


def accept(node: Node, name: str, params: p.Accept) -> Any:
    """Have a QEMU wait for it."""
    try:
        parcel = msgspec.convert(params.parcel, Parcel, strict=False)
    except msgspec.ValidationError as error:
        raise ArgumentError("parcel", "<not shown>", f"what the other node tells ({error})") from None
    if parcel.spec.name != name:
        raise ArgumentError("parcel.spec.name", parcel.spec.name, f"{name}, as in the path")
    arrival = node.accept(
        parcel, params.uri, epoch=params.epoch, other=params.other, settings=_settings(params),
        emulator=params.emulator,
    )  # fmt: skip
    return to_builtins(arrival)


def by_the_daemon(_: Node, name: str, __: p.Move) -> None:
    """What :class:`.departures.Departures` does, with all that a daemon has."""
    raise NotSupported(f"migrate {name}", by="anybody but a node daemon")


def send(node: Node, name: str, params: p.Migrate) -> None:
    """Begin to send it."""
    node.instance(name).send(params.uri, epoch=params.epoch, other=params.other, settings=_settings(params))


def switch_over(node: Node, name: str, params: p.Passage) -> None:
    """Let it go over."""
    node.instance(name).switch_over(epoch=params.epoch)


def finish(node: Node, name: str, params: p.Passage) -> Any:
    """Let it run, or end its QEMU."""
    return {"stop": to_builtins(node.instance(name).finish_passage(epoch=params.epoch))}


def abort(node: Node, name: str, params: p.Passage) -> Any:
    """End its passage."""
    return {"migration": node.abort_passage(name, epoch=params.epoch)}


def _settings(params: p.Accept | p.Migrate) -> Settings:
    return Settings(capabilities=params.capabilities, parameters=params.parameters)
