"""What the human monitor prints, as data."""

import re
from collections.abc import Iterable
from typing import Any, Final

NODES: Final = re.compile(r"^([0-9]+) nodes$", re.MULTILINE)
NODE_INFO: Final = re.compile(r"^node ([0-9]+) (cpus|size): (.*)$", re.MULTILINE)
_JOB: Final = re.compile(
    r"^(?:Type (?P<type>\S+), device|(?P<old>Streaming) device|\S.*? device) (?P<device>\S+): "
    r"Completed (?P<offset>\d+) of (?P<len>\d+) bytes, speed limit (?P<speed>\d+)",
    re.MULTILINE,
)
_BACKING_OLD: Final = re.compile(r"\bbacking_file=(\S*)")
_BACKING: Final = re.compile(r"^\s+Backing file:\s+(.*) \(chain depth: \d+\)$", re.MULTILINE)
_EMPTY: Final = "[not inserted]"


def numa(text: str) -> list[tuple[int, set[int]]]:
    """Each node's MiB of memory and its CPUs, from ``info numa``."""
    found = NODES.search(text)
    if found is None:
        raise Exception("Couldn't get number of nodes from 'info numa' output")
    count = int(found[1])
    sizes, cpus = [0] * count, [set[int]() for _ in range(count)]
    for number, field, value in NODE_INFO.findall(text):
        node = int(number)
        if node >= count:
            raise Exception(f"Invalid node number on 'info numa' output: {node}")
        if field == "cpus":
            cpus[node] = {int(cpu) for cpu in value.split()}
        elif value.endswith(" MB"):
            sizes[node] = int(value[:-3])
        else:
            raise Exception(f"Unexpected size value: {value}")
    return list(zip(sizes, cpus, strict=True))


def block_old(text: str) -> dict[str, dict[str, Any]]:
    """``info block`` of QEMU before 1.5: all of a device is on its line.

    :raises ValueError: this is a later one's
    """
    blocks: dict[str, dict[str, Any]] = {}
    for line in filter(str.strip, text.split("\n")):
        name, rest = (part.strip() for part in line.split(":", 1))
        block = blocks[name] = dict[str, Any]()
        if rest.endswith(_EMPTY):
            block["not-inserted"] = 1
            rest = rest.removesuffix(_EMPTY).strip()
        for item in rest.split(" "):
            key, value = item.split("=", 1)
            block[key] = int(value) if value.isdigit() else value
    return blocks


def block_1_5(text: str) -> dict[str, dict[str, Any]]:
    """``info block`` of QEMU since 1.5: a paragraph for each device."""
    blocks: dict[str, dict[str, Any]] = {}
    block: dict[str, Any] = {}
    for line in filter(str.strip, text.split("\n")):
        if not line.startswith(" "):
            head, rest = line.split(":", 1)
            block = blocks[head.split(" ", 1)[0]] = {}
            _image(block, rest.strip())
        elif ":" in line:
            key, value = (part.strip() for part in line.split(":", 1))
            _detail(block, key, value)
    return blocks


def _image(block: dict[str, Any], text: str) -> None:
    if text == _EMPTY:
        block["not-inserted"] = 1
        return
    name, bracket, options = text.rpartition(" (")
    block["file"] = name if bracket else text
    if not bracket:
        return
    driver, *rest = (option.strip() for option in options[:-1].split(","))
    block["drv"] = driver
    for option in rest:
        key = {"read-only": "ro", "encrypted": "encrypted"}.get(option)
        if key is None:
            raise NotImplementedError(f"'info block' has the option '{option}', which nothing is known of")
        block[key] = 1


def _detail(block: dict[str, Any], key: str, value: str) -> None:
    if key == "Backing file":
        name, depth, rest = value.rpartition(" (chain depth: ")
        block["backing_file"] = name if depth else value
        if depth and rest[:-1].isdigit():
            block["backing_file_depth"] = int(rest[:-1])
    elif key == "Removable device":
        block["removable"] = 1
        if "not locked" not in value:
            block["locked"] = 1
        if "try open" in value:
            block["try-open"] = 1


def block_qmp(info: Iterable[dict[str, Any]], by_node: bool) -> dict[str, dict[str, Any]]:
    """``query-block``, by the names of the devices; or by those of their nodes, where there is a medium.

    :raises ValueError: one has no name at all
    """
    blocks: dict[str, dict[str, Any]] = {}
    for item in info:
        inserted = item.get("inserted")
        name = (inserted or {}).get("node-name") if by_node else item.get("device")
        if not name and by_node and inserted is None:
            name = item.get("device") or item.get("qdev")  # an empty drive has no node to be called by
        if not name:
            raise ValueError(f"Incorrect QMP response, device or node-name not set in info block: {info}")
        block = {"not-inserted": True} if inserted is None else dict(inserted)
        block |= {key: value for key, value in item.items() if key != "inserted" and (by_node or key != "device")}
        blocks[name] = block
    return blocks


def block_job(text: str, device: str) -> dict[str, Any]:
    """The job on `device` in ``info block-jobs``; empty where there is none."""
    for found in _JOB.finditer(text):
        if found["device"] == device:
            kind = "stream" if found["old"] else found["type"] or "mirror"
            numbers = {key: int(found[key]) for key in ("offset", "len", "speed")}
            return {"type": kind, "device": device, **numbers}
    return {}


def backing_file(text: str, device: str) -> str | None:
    """The backing file of `device` in ``info block``; None where there is none."""
    paragraph = re.search(rf"^{re.escape(device)}(?: \(#block\d+\))?:.*(?:\n[ \t]+.*)*", text, re.MULTILINE)
    if paragraph is None:
        return None
    found = _BACKING_OLD.search(paragraph[0]) or _BACKING.search(paragraph[0])
    return None if found is None else found[1]
