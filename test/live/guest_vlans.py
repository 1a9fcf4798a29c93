"""Runs in a guest whose kernel filters VLANs, as the host's may not: what a tap in a VLAN sends and gets."""

import ctypes
import os
import select
import socket
import struct
import time
from pathlib import Path

from pyroute2 import IPRoute

from drover.errors import NetworkError
from drover.kvm import net, netlink
from drover.kvm.spec import Nic

UUID = "6e7e5d9c-9d6f-4c39-8a4e-0d8ff1d1a6a1"
MAC = "52:54:00:12:34:56"
HEADER = 10  # bytes of struct virtio_net_hdr before each packet of a tap
TAGGED, TESTED = 0x8100, 0x88B5  # EtherTypes: of a VLAN's tag, and for local experiments
AUXDATA, WITH_AUXDATA, ALL = 8, 263, 3  # PACKET_AUXDATA, SOL_PACKET, ETH_P_ALL
SOON = 1.0  # s


def make_bridge(netlink: IPRoute) -> None:
    """A bridge that filters, with two uplinks; one of them is in VLAN 7, tagged."""
    netlink.link("add", ifname="br0", kind="bridge", br_vlan_filtering=1)
    bridge = netlink.link_lookup(ifname="br0")[0]
    netlink.link("set", index=bridge, state="up")
    for number in (0, 1):
        netlink.link("add", ifname=f"port{number}", kind="veth", peer=f"wire{number}")
        port, wire = (netlink.link_lookup(ifname=f"{name}{number}")[0] for name in ("port", "wire"))
        netlink.link("set", index=wire, state="up")
        netlink.link("set", index=port, master=bridge, state="up")
    port = netlink.link_lookup(ifname="port0")[0]
    netlink.vlan_filter("add", index=port, vlan_info={"vid": 7})


def vlans_of(netlink: IPRoute, name: str) -> list[tuple[int, int]]:
    """The VLANs of a port, with their flags."""
    index = netlink.link_lookup(ifname=name)[0]
    found = []
    for link in netlink.get_vlans(index=index):
        for _, vlan in link.get("af_spec").get("attrs", ()):
            found.append((vlan["vid"], vlan["flags"]))
    return found


def listen(name: str) -> socket.socket:
    """Whatever comes on an interface."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    sock.setsockopt(WITH_AUXDATA, AUXDATA, 1)
    sock.bind((name, 0))
    return sock


def heard(sock: socket.socket) -> list[int]:
    """The VLANs, 0 for none, of our packets that come within a short time."""
    found, deadline = [], time.monotonic() + SOON
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data, more, _, _ = sock.recvmsg(2048, 256)
        except TimeoutError:
            break
        kind = struct.unpack_from(">H", data, 12)[0]
        tag = 0
        for _, _, aux in more:  # struct tpacket_auxdata: the kernel takes the tag out of the packet
            tag = struct.unpack_from("H", aux, 16)[0] & 0xFFF
        if kind == TAGGED:
            tag, kind = struct.unpack_from(">HH", data, 14)
        if kind == TESTED:
            found.append(tag)
    return found


def packet(tag: int | None) -> bytes:
    """For everybody, with or without a VLAN's tag."""
    addresses = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", ""))
    inside = struct.pack(">H", TESTED) + bytes(64)
    return addresses + (b"" if tag is None else struct.pack(">HH", TAGGED, tag)) + inside


def main() -> None:
    """Print what was found, a line each."""
    nic = Nic(id="nic0", mode="bridge", link="br0", mac=MAC, vlan=7)
    with IPRoute() as ours:
        make_bridge(ours)
        print("filters", netlink.filters_vlans("br0"))
        with net.plug(nic, "web1", uuid=UUID, index=0) as plugged:
            print("vlans", vlans_of(ours, plugged.name))
            with listen("wire0") as inside, listen("wire1") as outside:
                os.write(plugged.tap_fds[0], bytes(HEADER) + packet(None))
                print("sent", heard(inside), heard(outside))
                inside.send(packet(7))
                inside.send(packet(8))
                inside.send(packet(None))
                outside.send(packet(7))
                outside.send(packet(None))
                print("got", got(plugged.tap_fds[0]))
        with net.plug(Nic(id="nic0", mode="bridge", link="br0", mac=MAC), "web1", uuid=UUID, index=0) as plugged:
            print("default", vlans_of(ours, plugged.name))
    print("vhost", vhost())
    insert_modules("vhost_iotlb", "vhost", "tap", "vhost_net")
    print("vhost", vhost())


def got(tap: int) -> list[bool]:
    """Which packets the guest got: whether they are whole and without a tag."""
    found = []
    while select.select([tap], [], [], SOON)[0]:
        data = os.read(tap, 2048)[HEADER:]
        if struct.unpack_from(">H", data, 12)[0] in (TAGGED, TESTED):
            found.append(data[12:] == packet(None)[12:])
    return found


def vhost() -> str:
    """What becomes of a NIC with vhost."""
    nic = Nic(id="nic0", mode="bridge", link="br0", mac=MAC, vhost=True, queues=2)
    try:
        with net.plug(nic, "web1", uuid=UUID, index=0) as plugged:
            return f"{len(plugged.vhost_fds)} descriptors"
    except NetworkError as error:
        return str(error)


def insert_modules(*names: str) -> None:
    """Load modules of the kernel, those that are there as files."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in names:
        path = Path(f"/modules/{name}.ko")
        if path.exists():
            fd = os.open(path, os.O_RDONLY)
            if libc.syscall(313, fd, b"", 0):  # finit_module, of x86-64
                raise OSError(ctypes.get_errno(), name)
            os.close(fd)


if __name__ == "__main__":
    insert_modules("llc", "stp", "bridge", "veth", "tun")
    main()
