"""Block nodes: the tree that they make, and how one is opened, changed and removed.

Where the edges of the tree come from: from the ``children`` of ``query-named-block-nodes``
where QEMU tells them (10.1 and later), and before that from ``x-debug-query-block-graph``.
That one is named unstable, but is the only one to tell: file names and backing files in
what else there is do not say which node stands under which. Both 7.2 and 10.0 have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..errors import ArgumentError, NotSupported
from .bitmaps import Bitmap, bitmaps_of
from .inventory import PERIPHERAL, QUERY_NODES, query_block_nodes
from .nbd import check_nbd_nodes
from .port import Port

_GRAPH: Final = "x-debug-query-block-graph"
# Formats whose header can name a backing file, which QEMU would open, and whose format it would probe.
COW_FORMATS: Final = frozenset({"qcow", "qcow2", "qed", "vmdk"})

Edges = dict[str, dict[str, str]]


class BlockNode(Struct, frozen=True, kw_only=True):
    """A block node and what it stands on. Bytes, unless said otherwise.

    :ivar driver: a format, a protocol, or a filter such as ``throttle``, ``mirror_top``
    :ivar filename: as QEMU writes it; ``json:…`` where no name says it all
    :ivar size: as the guest sees it
    :ivar allocated: what it takes of its storage; None where that is not known
    :ivar children: what it stands on, by role: ``file``, ``backing``, ``children.0``, ...
    :ivar devices: who uses it directly: ids of devices, or QOM paths of those that have none
    :ivar exports: ids of block exports that give it out
    :ivar snapshots: tags of the snapshots inside of its image
    :ivar throttle_group: of a node of driver ``throttle``
    :ivar active: False while another QEMU owns the image (QEMU 10.0 and later); None where that is not told
    """

    name: str
    driver: str
    filename: str
    read_only: bool
    size: int
    allocated: int | None = None
    children: "dict[str, BlockNode]" = {}
    devices: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()
    snapshots: tuple[str, ...] = ()
    throttle_group: str | None = None
    active: bool | None = None

    @property
    def backing(self) -> "BlockNode | None":
        """The older image that this one stands on."""
        return self.children.get("backing")

    def walk(self) -> "Iterator[BlockNode]":
        """This node and all that it stands on, each before what it stands on itself; shared ones once."""
        order: dict[str, BlockNode] = {}

        def visit(node: BlockNode) -> None:
            for child in reversed(node.children.values()):
                if child.name not in order:
                    visit(child)
            order[node.name] = node

        visit(self)
        return reversed(order.values())


class BlockTree(Struct, frozen=True):
    """All block nodes.

    :ivar nodes: by name
    :ivar roots: those that no other node stands on
    """

    nodes: dict[str, BlockNode]
    roots: tuple[BlockNode, ...]

    def of_device(self, device: str) -> BlockNode | None:
        """The topmost node under a device, filters that a job put there not counted."""
        return next((node for node in self.nodes.values() if device in node.devices), None)

    def parents(self, name: str) -> list[BlockNode]:
        """The nodes that stand directly on this one."""
        return [node for node in self.nodes.values() if any(child.name == name for child in node.children.values())]


async def query_block_tree(port: Port) -> BlockTree:
    """Return the block nodes as a tree, with who uses them.

    QEMU is asked by ``query-named-block-nodes``, ``query-block``, ``query-block-exports`` and, before 10.1,
    ``x-debug-query-block-graph``. A node that several stand on is under each of them.

    :raises NotSupported: this QEMU tells nothing of how its nodes hang together
    """
    others = ("query-block", "query-block-exports")
    queries: list[tuple[str, dict[str, Any] | None]] = [QUERY_NODES, *((name, None) for name in others)]
    told = (await port.schema()).has_result_member(QUERY_NODES[0], "children.child")
    if not told:
        if _GRAPH not in await port.supported_commands():
            raise NotSupported("the tree of block nodes", "QEMU 4.0 or later")
        queries.append((_GRAPH, None))
    nodes, devices, exports, *graph = await port.execute_many(queries)
    entries = {node["node-name"]: node for node in nodes}
    edges = _edges_of_graph(graph[0]) if graph else _edges_of_nodes(nodes)
    return _build(entries, edges, _devices(devices), _exports(exports))


def _edges_of_nodes(nodes: Sequence[Mapping[str, Any]]) -> Edges:
    return {node["node-name"]: {it["child"]: it["node-name"] for it in node["children"]} for node in nodes}


def _edges_of_graph(graph: Mapping[str, Any]) -> Edges:
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    edges: Edges = {}
    for edge in graph["edges"]:
        parent, child = names.get(edge["parent"]), names.get(edge["child"])
        if parent is not None and child is not None:
            edges.setdefault(parent, {})[edge["name"]] = child
    return edges


def _devices(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        name = entry.get("qdev") or entry["device"]
        if entry.get("inserted") and name:
            found.setdefault(entry["inserted"]["node-name"], []).append(_short(name))
    return found


def _short(path: str) -> str:
    """A device's id, from the path of itself or of its virtio backend."""
    name = path.removeprefix(f"{PERIPHERAL}/").removesuffix("/virtio-backend")
    return path if "/" in name else name


def _exports(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry["node-name"], []).append(entry["id"])
    return found


def _build(
    entries: Mapping[str, Mapping[str, Any]], edges: Edges, devices: dict[str, list[str]], exports: dict[str, list[str]]
) -> BlockTree:
    built: dict[str, BlockNode] = {}

    def build(name: str) -> BlockNode:
        if name not in built:
            # a node that came or went between the queries has no entry
            children = {role: build(child) for role, child in edges.get(name, {}).items() if child in entries}
            users = tuple(devices.get(name, ())), tuple(exports.get(name, ()))
            built[name] = _node(name, entries[name], children, *users)
        return built[name]

    for name in entries:
        build(name)
    beneath = {child for children in edges.values() for child in children.values()}
    return BlockTree(built, tuple(node for name, node in built.items() if name not in beneath))


def _node(
    name: str,
    entry: Mapping[str, Any],
    children: dict[str, BlockNode],
    devices: tuple[str, ...],
    exports: tuple[str, ...],
) -> BlockNode:
    image = entry["image"]
    return BlockNode(
        name=name,
        driver=entry["drv"],
        filename=entry["file"],
        read_only=entry["ro"],
        size=image["virtual-size"],
        allocated=image.get("actual-size"),
        children=children,
        devices=devices,
        exports=exports,
        bitmaps=bitmaps_of(entry),
        snapshots=tuple(each["name"] for each in image.get("snapshots", ())),
        throttle_group=_throttle_group(entry),
        active=entry.get("active"),
    )


def _throttle_group(entry: Mapping[str, Any]) -> str | None:
    """Told nowhere but in the options that QEMU writes as such a node's file name."""
    if entry["drv"] != "throttle" or not entry["file"].startswith("json:"):
        return None
    options = msgspec.json.decode(entry["file"].removeprefix("json:"), type=dict[str, Any])
    group: str | None = options.get("throttle-group")
    return group


# -- changes ---------------------------------------------------------------------------------------------------------


async def blockdev_add(port: Port, options: Mapping[str, Any]) -> None:
    """Open an image or make a filter, as a node (``blockdev-add``).

    :param options: as QEMU has them, with ``driver`` and ``node-name``. A format that can have a backing file must
        say ``backing``, a node or None: left out, QEMU would open the file that the image names, and guess its format
    :raises ArgumentError: something is left to be guessed
    :raises NbdError: it is on an NBD server that is of no use: QEMU would hang, or refuse, and was not told of it
    :raises CommandError: QEMU cannot open it
    """
    if "node-name" not in options:
        raise ArgumentError("options", dict(options), "with a node-name")
    _check_said(options)
    await check_nbd_nodes(port, options)
    await port.execute("blockdev-add", options)


async def blockdev_reopen(port: Port, *options: Mapping[str, Any]) -> None:
    """Change the options of nodes, of all of them or of none (``blockdev-reopen``, QEMU 6.1 and later).

    :param options: of each node all that it was opened with, changed; children as names of nodes
    :raises ArgumentError: something is left to be guessed
    :raises CommandError: QEMU refuses; all is as it was
    """
    for node in options:
        _check_said(node)
    await port.execute("blockdev-reopen", {"options": list(options)})


def _check_said(options: Mapping[str, Any]) -> None:
    if "driver" not in options:
        raise ArgumentError("options", dict(options), "with the driver: a format is said, never probed")
    if options["driver"] in COW_FORMATS and "backing" not in options:
        raise ArgumentError("options", dict(options), "with backing: the name of a node, its options, or None")
    for value in options.values():
        if isinstance(value, Mapping) and "driver" in value:
            _check_said(value)


async def blockdev_del(port: Port, node: str) -> None:
    """Remove a node, and with it what QEMU opened for it alone (``blockdev-del``). What it held back is written out.

    :raises CommandError: there is no such node, it is in use, or was not made by the monitor
    """
    await port.execute("blockdev-del", {"node-name": node})


async def remove_chain(port: Port, node: str) -> list[str]:
    """Remove a node and all that it stands on, but for what others use.

    Needed after snapshots: there each image has a node of its own, which stays when the one above goes. May be
    repeated: it goes on where it stopped.

    :returns: names of the nodes that are gone, topmost first
    :raises ArgumentError: there is no such node
    :raises CommandError: the topmost node is in use; nothing was removed
    """
    tree = await query_block_tree(port)
    if node not in tree.nodes:
        raise ArgumentError("node", node, "the name of a block node")
    gone: list[str] = []
    left = set(tree.nodes)
    for found in tree.nodes[node].walk():
        held = found.devices or found.exports or any(it.name not in gone for it in tree.parents(found.name))
        if held and found.name != node:
            continue
        if found.name in left:
            await blockdev_del(port, found.name)
            left = {it["node-name"] for it in await query_block_nodes(port)}
        gone.append(found.name)
    return gone
