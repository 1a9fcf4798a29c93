"""What machines use, as the node daemon tells it: beside /proc, QEMU's own answer, and what a guest is known to do."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from commands import host_with
from drover import QmpConnection
from drover.kvm.node import Node
from drover.node.client import UnixConnection
from instances import Guest, bare, bootable, temporary_node, wait_for_shell
from netns import ip, own_network
from noded import Noded, running
from waiting import wait_for

pytestmark = pytest.mark.live

MIB = 1 << 20


def stats(noded: Noded, name: str) -> dict[str, Any]:
    """Of one machine, when there is some; of a sample that was begun after the call."""
    asked = time.time()
    found: list[dict[str, Any]] = []

    def is_new() -> bool:
        status, answer = noded.call("GET", f"/v1/instances/{name}/stats")
        assert status == 200, answer
        found[:] = [answer["stats"]]
        return bool(answer["stats"]) and answer["stats"]["told_at"] > asked

    wait_for(is_new)
    return found[0]


def metrics(noded: Noded) -> dict[tuple[str, str, str], float]:
    """All of /metrics, by name, instance and device, as Prometheus' own parser reads it."""
    connection = UnixConnection(noded.socket, 30)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == http.client.OK
        assert "text/plain" in (response.getheader("Content-Type") or "")
    finally:
        connection.close()
    found: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name != "instance"}
            found[sample.name, sample.labels.get("instance", ""), ",".join(own.values())] = sample.value
    return found


def test_what_a_guest_writes(node: Node, noded: Noded, version: str, tmp_path: Path) -> None:
    """A known amount of bytes, by the guest's own account, is what QEMU, the daemon and Prometheus tell."""
    image = tmp_path / "a.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    disk = {"id": "data", "source": str(image), "format": "raw"}
    noded.create(bootable(version, "a", disks=[disk]))
    noded.do("start", "a")
    guest = Guest(node.instance("a"))
    before = stats(noded, "a")["disks"][0]
    guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=20 conv=fsync")
    guest.run("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=7 iflag=direct")
    told = stats(noded, "a")
    after = told["disks"][0]
    assert after["id"] == "data"
    assert after["written_bytes"] - before["written_bytes"] == 20 * MIB
    assert after["read_bytes"] - before["read_bytes"] == 7 * MIB
    assert after["flush_ops"] > before["flush_ops"]
    assert after["write_ops"] > before["write_ops"]
    with QmpConnection(node.host.paths.instance("a").socket("people")) as vm:
        (own,) = vm.query_disk_counters()
        assert vm.query_balloon() == told["balloon"]
    assert {name: after[name] for name in ("read_bytes", "written_bytes", "flush_ops", "write_ops")} == {
        name: getattr(own, name) for name in ("read_bytes", "written_bytes", "flush_ops", "write_ops")
    }
    figures = metrics(noded)
    assert figures["drover_disk_written_bytes_total", "a", "data"] == after["written_bytes"]
    assert figures["drover_disk_reads_total", "a", "data"] == after["read_ops"]
    guest.close()
    noded.do("kill", "a")
    assert noded.call("GET", "/v1/instances/a/stats")[1]["stats"] is None
    assert noded.call("GET", "/v1/stats")[1]["stats"] == []
    assert ("drover_disk_written_bytes_total", "a", "data") not in metrics(noded)


def test_processor_and_memory(noded: Noded, version: str) -> None:
    """They are those of /proc, the machine's and each vCPU's; one that spins takes a processor."""
    noded.create(bare(version, "a", cpu={"count": 2}))
    noded.do("start", "a")  # its firmware waits for something to boot, and takes what it gets
    pid = noded.rows()["a"]["pid"]
    first = stats(noded, "a")
    seconds, _ = of_process(pid)
    second = stats(noded, "a")
    assert first["cpu_seconds"] <= seconds <= second["cpu_seconds"]
    assert second["at"] > first["at"]
    assert [vcpu["index"] for vcpu in second["vcpus"]] == [0, 1]
    assert sum(vcpu["cpu_seconds"] for vcpu in second["vcpus"]) <= second["cpu_seconds"] + 0.05
    assert 0 <= second["cpu_percent"] <= 100 * (os.cpu_count() or 1)
    figures = metrics(noded)
    assert figures["drover_instance_cpu_seconds_total", "a", ""] >= second["cpu_seconds"]
    assert figures["drover_vcpu_seconds_total", "a", "1"] >= second["vcpus"][1]["cpu_seconds"]
    assert figures["drover_instances", "", "running"] == 1
    noded.do("pause", "a")  # its memory stays as it is
    resident = stats(noded, "a")["resident"]
    assert abs(resident - of_process(pid)[1]) < MIB  # the kernel counts each thread's last pages late
    noded.do("kill", "a")


def of_process(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), resident


def test_one_that_hangs(noded: Noded) -> None:
    """It keeps what it told last, with its age; the kernel's figures go on, and those of others are as new as ever."""
    for name in ("stuck", "well"):
        noded.create(bare("7.2", name))
        noded.do("start", name)
    before = stats(noded, "stuck")
    pid = noded.rows()["stuck"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert stats(noded, "well")["told_at"] > before["told_at"]
        wait_for(lambda: noded.call("GET", "/v1/instances/stuck/stats")[1]["stats"]["at"] > before["at"] + 2)
        begun = time.monotonic()
        answer = noded.call("GET", "/v1/stats")[1]
        assert time.monotonic() - begun < 1  # not of the time that it may take to answer, 5 s
        assert [each["name"] for each in answer["stats"]] == ["stuck", "well"]
        assert answer["stats"][0]["told_at"] < answer["now"] - 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stats(noded, "stuck")["balloon"] == 64 * MIB


def test_a_new_run_counts_from_nothing(node: Node, noded: Noded) -> None:
    noded.create(bare("10.0", "a"))
    noded.do("start", "a")
    first = stats(noded, "a")
    noded.do("kill", "a")
    noded.do("start", "a")
    second = stats(noded, "a")
    assert (first["generation"], second["generation"]) == (1, 2)
    assert noded.call("GET", "/v1/instances/none/stats")[0] == 404
    vm = node.instance("a")
    for _ in range(10):  # a connection that was let go of is not made anew by who asks for figures
        vm.pause()
        vm.resume()
    assert stats(noded, "a")["generation"] == 2


def test_the_command() -> None:
    with host_with(daemon=True) as host:
        host("create", host.write(bare("10.0", "a")))
        head = "NAME  CPU  MEMORY  GUEST  READ/S  WRITTEN/S  RECEIVED/S  SENT/S  MIGRATION  AGE"
        assert host("stats") == f"{head}\n"
        host("start", "a", "--paused")
        (host.top / "d.raw").write_bytes(bytes(1 << 20))
        host("attach", "disk", "a", str(host.top / "d.raw"), "--format", "raw", "--id", "data")
        wait_for(lambda: json.loads(host("stats", "-o", "json"))[0]["cpu_percent"] is not None)
        head, line = host("stats").splitlines()
        assert line[head.index("GUEST") :].startswith("64.0 MiB")
        wait_for(lambda: "data" in host("stats", "a").splitlines()[-1])
        missing = host.run("stats", "none")
        assert (missing.returncode, "none" in missing.stderr) == (3, True)
    with host_with(daemon=False) as host:
        alone = host.run("stats")
        assert (alone.returncode, "drover daemon start starts one" in alone.stderr) == (1, True)


def test_a_card(version: str, tmp_path: Path) -> None:
    """What the guest says that it received and sent."""
    with own_network(), temporary_node() as node, running(node.host.paths, tmp_path / "log") as noded:
        ip("link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0")
        ip("address add 10.9.0.1/24 dev br0")
        ip("link set br0 addrgenmode none")  # else the host itself has IPv6 to say, which such a guest does not hear
        ip("link set br0 up")
        # each knows the other's address, and does not ask for it at a time of its own
        ip("neighbour add 10.9.0.2 lladdr 52:54:00:00:00:01 dev br0 nud permanent")
        nic = {"id": "nic0", "mode": "bridge", "link": "br0", "mac": "52:54:00:00:00:01"}
        nics = [nic, {"id": "nic1", "mode": "user"}]
        noded.create(bootable(version, "a", nics=nics))
        noded.do("start", "a")
        guest = Guest(node.instance("a"))
        guest.run("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip address add 10.9.0.2/24 dev eth0")
        guest.run("ip link set eth0 up; arp -s 10.9.0.1 02:00:00:00:00:01; ping -c 1 10.9.0.1")
        before, after = settled(noded, guest)
        guest.run("ping -c 3 -s 1000 10.9.0.1")
        own, card = settled(noded, guest)
        for of in ("received_packets", "sent_packets"):
            assert card[of] - after[of] == own[of] - before[of] >= 3
        assert card["id"] == "nic0"
        assert min(card["received_bytes"], card["sent_bytes"]) >= 3 * 1042  # Ethernet, IP and ICMP, and their load
        assert card["receive_rate"] is not None
        figures = metrics(noded)
        assert figures["drover_nic_received_packets_total", "a", "nic0"] == card["received_packets"]
        assert figures["drover_nic_sent_bytes_total", "a", "nic0"] >= card["sent_bytes"]
        guest.close()
        noded.do("kill", "a")


def settled(noded: Noded, guest: Guest) -> tuple[dict[str, int], dict[str, Any]]:
    """What guest and daemon tell of the card when nothing passes any more: figures are a second old at most."""
    seen: list[Any] = []
    while True:
        (card,) = stats(noded, "a")["nics"]
        packets = guest_packets(guest)
        seen.append((packets, {of: card[of] for of in packets}))
        if len(seen) > 1 and seen[-1] == seen[-2]:
            return packets, card  # of the same moment: since the guest told the same before, nothing has passed
        assert len(seen) < 20
        time.sleep(1.5)


def guest_packets(guest: Guest) -> dict[str, int]:
    """By its own account."""
    told = guest.run("cd /sys/class/net/eth0/statistics; cat rx_packets tx_packets").split()
    received, sent = (int(word) for word in told if word.isdecimal())
    return {"received_packets": received, "sent_packets": sent}


def test_what_a_guest_tells_of_its_memory(node: Node, noded: Noded, version: str) -> None:
    noded.create(bootable(version, "a", memory={"size": "256MiB", "guest_stats": 1}))
    noded.do("start", "a")
    guest = Guest(node.instance("a"))
    wait_for(lambda: stats(noded, "a")["guest"] is not None)
    told = stats(noded, "a")["guest"]
    own = dict(line.split()[:2] for line in guest.run("cat /proc/meminfo").splitlines() if "kB" in line)
    assert told["total_memory"] == int(own["MemTotal:"]) << 10
    assert abs(told["free_memory"] - (int(own["MemFree:"]) << 10)) < 16 * MIB
    assert metrics(noded)["drover_guest_memory_total_bytes", "a", ""] == told["total_memory"]
    guest.close()
    noded.do("kill", "a")


def test_a_migration(node: Node, noded: Noded, version: str) -> None:
    """One that somebody has begun, and nobody follows."""
    noded.create(bootable(version, "a"))  # an empty memory is sent in no time
    noded.do("start", "a")
    wait_for_shell(node.instance("a"))
    assert stats(noded, "a")["migration"] is None
    with socket.create_server(("127.0.0.1", 0)) as sink:
        noded.do("qmp", "a", execute="migrate-set-parameters", arguments={"max-bandwidth": 10_000})
        uri = f"tcp:127.0.0.1:{sink.getsockname()[1]}"
        noded.do("qmp", "a", execute="migrate", arguments={"uri": uri})
        target, _ = sink.accept()
        reader = threading.Thread(target=lambda: [None for _ in iter(lambda: target.recv(1 << 16), b"")])
        reader.start()
        wait_for(lambda: (stats(noded, "a")["migration"] or {}).get("transferred", 0) > 0)
        first, second = (stats(noded, "a")["migration"] for _ in range(2))
        assert (first["status"], first["total"] >= 256 * MIB) == ("active", True)
        assert first["transferred"] <= second["transferred"]
        assert second["remaining"] + second["transferred"] > 0
        assert metrics(noded)["drover_migration_status", "a", "active"] == 1
        noded.do("qmp", "a", execute="migrate_cancel")
        wait_for(lambda: stats(noded, "a")["migration"]["status"] == "cancelled")
        target.close()
        reader.join()
    noded.do("kill", "a")


def test_of_the_daemon_itself(noded: Noded) -> None:
    """How long calls, monitors and events took, and that no caller can make a label."""
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    noded.do("qmp", "a", execute="stop")  # behind the daemon's back: it hears of it
    wait_for(lambda: noded.rows()["a"]["state"] == "paused")
    for verb in ("cont", "stop") * 10:  # whose calls each have it look again, and it hears all the same
        noded.do("qmp", "a", execute=verb)
    noded.call("GET", "/v1/instances/a")
    noded.call("GET", "/v1/instances/none")
    noded.call("GET", "/surprise/" + "x" * 50)
    # where another question's answer was sooner in the row, the event is counted a moment after that
    wait_for(lambda: metrics(noded)["drover_event_lag_seconds_count", "", ""] >= 21)
    figures = metrics(noded)
    assert figures["drover_event_lag_seconds_count", "", ""] == 21
    assert 0 <= figures["drover_event_lag_seconds_sum", "", ""] < 5
    assert figures["drover_monitor_round_trip_seconds_count", "", ""] >= 2
    assert figures["drover_request_seconds_count", "", "GET,/v1/instances/{name}"] == 2
    assert figures["drover_request_seconds_count", "", "GET,none"] == 1
    assert figures["drover_work_threads_busy", "", ""] >= 1  # the one that reads this
    for name in ("drover_work_queued_calls", "drover_work_waiting_calls", "drover_open_jobs"):
        assert figures[name, "", ""] == 0
    assert figures["process_resident_memory_bytes", "", ""] > 10 * MIB
    assert not [labels for _, _, labels in figures if "surprise" in labels or "/none" in labels]
    noded.do("kill", "a")
