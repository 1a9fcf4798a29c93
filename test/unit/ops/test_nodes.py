"""The tree of block nodes as QEMU 10.1 and later tell it: by the ``children`` of each node."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest

from drover.errors import NotSupported
from drover.monitor.drive import drive
from drover.ops.nodes import query_block_tree
from drover.ops.port import Arguments
from drover.qmp.schema import Schema
from drover.testing.model import QemuModel
from drover.testing.recorded import recorded_schema
from drover.testing.scripted import ScriptedPort


def node(name: str, driver: str, **children: str) -> dict[str, Any]:
    return {
        "node-name": name,
        "drv": driver,
        "file": f"/images/{name}",
        "ro": False,
        "image": {"virtual-size": 1024},
        "children": [{"child": role, "node-name": child} for role, child in children.items()],
    }


REPLIES = {
    "query-named-block-nodes": [
        node("base", "raw", file="base-file"),
        node("top", "qcow2", file="gone-meanwhile", backing="base"),
        node("base-file", "file"),
    ],
    "query-block": [{"device": "", "qdev": "/machine/peripheral/vd0/virtio-backend", "inserted": {"node-name": "top"}}],
    "query-block-exports": [{"id": "e0", "node-name": "base"}],
}


class NewPort(ScriptedPort):
    """A QEMU that tells the children, or one that tells nothing at all."""

    told = True

    async def schema(self) -> Schema:
        entities = copy.deepcopy(list(recorded_schema("10.0")))
        types = {entity["name"]: entity for entity in entities}
        info = types[types[types["query-named-block-nodes"]["ret-type"]]["element-type"]]
        if self.told:
            child = {"name": "child", "type": "str"}
            types["str"] = {"name": "str", "meta-type": "builtin", "json-type": "string"}
            entities.append({"name": "BlockdevChild", "meta-type": "object", "members": [child]})
            entities.append({"name": "[BlockdevChild]", "meta-type": "array", "element-type": "BlockdevChild"})
            info["members"].append({"name": "children", "type": "[BlockdevChild]"})
        return Schema(entities)

    async def supported_commands(self) -> frozenset[str]:
        return await super().supported_commands() - {"x-debug-query-block-graph"}

    async def execute_many(self, commands: Iterable[tuple[str, Arguments | None]], timeout: Any = None) -> list[Any]:
        return [REPLIES[command] for command, _ in commands]


def test_the_children_that_qemu_tells() -> None:
    tree = drive(query_block_tree(NewPort(QemuModel(version="10.0"))))
    assert [found.name for found in tree.roots] == ["top"]
    top = tree.of_device("vd0")
    assert top is not None
    assert top.backing is tree.nodes["base"]
    assert set(top.children) == {"backing"}  # what went between two of the queries is left out
    assert [found.name for found in top.walk()] == ["top", "base", "base-file"]
    assert tree.nodes["base"].exports == ("e0",)
    assert tree.nodes["base"].allocated is None


def test_a_qemu_that_tells_nothing() -> None:
    port = NewPort(QemuModel(version="10.0"))
    port.told = False
    with pytest.raises(NotSupported, match=r"QEMU 4\.0 or later"):
        drive(query_block_tree(port))
