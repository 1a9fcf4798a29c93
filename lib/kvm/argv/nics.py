"""Network cards: a back end with our descriptors, and the device on it."""

from typing import Any

from ..spec import Nic
from .launch import Writer
from .places import Places


def write_nics(out: Writer, places: Places) -> None:
    """All network cards."""
    for nic in out.spec.nics:
        out.json("-netdev", _netdev(out, nic))
        virtio = nic.model == "virtio-net-pci"
        # a vector for each queue of each pair, one for the control queue, one for the configuration
        several = {"mq": True, "vectors": 2 * nic.queues + 2} if nic.queues > 1 else {}
        out.device(
            nic.model, id=nic.id, netdev=nic.id, mac=nic.mac or None, bootindex=nic.boot_index,
            host_mtu=nic.mtu if virtio else None,
            # what is not booted from needs no ROM, whose size two nodes would have to agree on
            romfile=None if nic.boot_index is not None else "",
            **several, **places.of(nic.id),
        )  # fmt: skip
        place = places.of(nic.id)
        out.note("nic", nic.id, place["bus"], place["addr"])


def user_backend(nic: Nic) -> dict[str, Any]:
    """QEMU's own network, as ``netdev_add`` takes it, but for its id."""
    return {"type": "user", **({"hostfwd": [{"str": each} for each in nic.forwards]} if nic.forwards else {})}


def _netdev(out: Writer, nic: Nic) -> dict[str, Any]:
    if nic.mode == "user":
        return {"type": "user", "id": nic.id} | user_backend(nic)
    netdev: dict[str, Any] = {"type": "tap", "id": nic.id, **_descriptors(out, "fd", "nic", nic)}
    if nic.vhost:
        # without vhostforce QEMU 7.2 only warns when a descriptor is no good, and then aborts over it
        netdev |= {"vhost": True, "vhostforce": True, **_descriptors(out, "vhostfd", "vhost", nic)}
    return netdev


def _descriptors(out: Writer, key: str, kind: str, nic: Nic) -> dict[str, str]:
    """One for each pair of queues; QEMU has another key for several."""
    fds = [out.fd(f"{kind}.{nic.id}.{n}") for n in range(nic.queues)]
    return {key: fds[0]} if nic.queues == 1 else {f"{key}s": ":".join(fds)}
