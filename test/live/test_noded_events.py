"""Events through the node daemon: its own and those of machines, over its death, to many, to one who is slow."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from drover.events.journal import Journal
from drover.kvm.node import Node
from drover.qmp.messages import Event
from heard import Reader, get
from instances import bare
from kvmd import journal, running, wait_event
from noded import Noded, UnixConnection
from noded import running as noded_running
from waiting import wait_for


def prefill(node: Node, count: int, size: int) -> None:
    """Have a ring on disk before the daemon is there."""
    ring = Journal(node.host.paths.feed)
    for _ in range(0, count, 100):
        ring.extend([Event("old", {"text": "x" * size}, -1, 0)] * 100, 0, time.time())
        ring.commit(ring.take())
    ring.close()


def states(reader: Reader) -> list[str]:
    return [event["summary"]["state"] for event in reader.events if event["kind"] == "instance"]


# -- the node's own ----------------------------------------------------------------------------------------------------


def test_killed_in_the_middle(node: Node, noded: Noded) -> None:
    """Who reads comes back each time, and has all that came to disk, in order, once; and the death is told."""
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    reader = Reader(noded.socket, "/v1/events")
    heard = []
    for round_ in range(4):
        for verb in ("pause", "resume", "pause", "resume"):
            noded.do(verb, "a")
        reader.wait(lambda it: states(it).count("paused") >= 2)
        if round_ % 2:
            noded.end(signal.SIGTERM)
        else:
            noded.kill()
        reader.join(20)
        assert not reader.is_alive()
        heard += reader.events
        number = reader.last
        noded.start()
        reader = Reader(noded.socket, "/v1/events", number)
        reader.wait(lambda it: "began" in it.kinds)
        missed = [event["reason"] for event in reader.events if event["kind"] == "missed"]
        assert missed == ([] if round_ % 2 else ["killed"])
        assert next(event for event in reader.events if event["kind"] == "began")["instances"] == ["a"]
    heard += reader.events
    reader.close()
    numbers = [event["number"] for event in heard]
    assert numbers == sorted(set(numbers))
    kept = {event["number"] for event in get(noded.socket, "/v1/events?follow=0")}
    assert {number for number in kept if numbers[0] <= number <= numbers[-1]} <= set(numbers)
    for before, after in itertools.pairwise(heard):  # what was heard and did not come to disk was the last of its run
        if before["number"] not in kept:
            assert after["number"] not in kept or after["kind"] == "missed"


def test_two_hundred_readers(node: Node, tmp_path: Path) -> None:
    """All get the same, in the same order, by either way; and the daemon goes on answering."""
    with noded_running(node.host.paths, tmp_path / "log", "--limit", "streams_per_caller=300") as noded:
        found = both_ways(noded)
    assert len(found) == 200
    assert len(found[0]) >= 41
    assert all(each == found[0] for each in found)


def both_ways(noded: Noded) -> list[list[bytes]]:
    """What 200 readers heard of a machine that is paused and resumed twenty times."""
    noded.create(bare("7.2", "a"))
    noded.do("start", "a")
    since = get(noded.socket, "/v1/events?follow=0")[-1]["number"]

    async def read_on(http: aiohttp.ClientSession) -> list[bytes]:
        found = []
        async with http.get(f"http://x/v1/events?kind=instance&after={since}") as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    found.append(line[6:].strip())
                    if b'"state":"stopped"' in line:
                        break
        return found

    async def read_messages(http: aiohttp.ClientSession) -> list[bytes]:
        found = []
        async with http.ws_connect(f"http://x/v1/events?kind=instance&after={since}") as messages:
            async for message in messages:
                found.append(message.data.encode())
                if '"state":"stopped"' in message.data:
                    break
        return found

    async def all_of_them() -> list[list[bytes]]:
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.UnixConnector(str(noded.socket), limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            return await asyncio.gather(
                *(read_on(http) for _ in range(100)), *(read_messages(http) for _ in range(100))
            )

    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.extend(asyncio.run(all_of_them())))
    thread.start()
    for _ in range(20):
        noded.do("pause", "a")
        noded.do("resume", "a")
    noded.do("kill", "a")
    thread.join(60)
    return found


def figures(noded: Noded) -> str:
    """Prometheus', without what they mean."""
    connection = UnixConnection(noded.socket, 20)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("#"))
    finally:
        connection.close()


def test_one_who_does_not_read(node: Node, tmp_path: Path) -> None:
    """It is cut off after half a minute, and has held up nobody, also while it lags far behind memory."""
    prefill(node, 8000, 1000)
    with noded_running(node.host.paths, tmp_path / "log") as noded, socket.socket(socket.AF_UNIX) as slow:
        noded.create(bare("7.2", "a"))
        slow.connect(str(noded.socket))
        slow.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: b"200 OK" in slow.recv(1000, socket.MSG_PEEK))
        reader = Reader(noded.socket, "/v1/events?after=0")
        reader.wait(lambda it: len(it.events) > 8000)
        assert len(get(noded.socket, "/v1/events?follow=0&kind=old")) == 8000
        wait_for(lambda: any("too slowly" in line["text"] for line in noded.log), 60)
        assert "drover_event_readers 1.0\ndrover_event_readers_cut 1.0\n" in figures(noded)
        noded.do("start", "a")
        reader.wait(lambda it: "running" in states(it))
        slow.settimeout(20)
        size = 0
        with contextlib.suppress(ConnectionError):
            while data := slow.recv(1 << 20):
                size += len(data)
        assert size < 1 << 20
        reader.close()


def test_it_stops_at_once_with_readers(noded: Noded) -> None:
    """They are let go: it does not wait for those who would read for ever."""
    readers = [Reader(noded.socket, "/v1/events") for _ in range(3)]
    since = time.monotonic()
    assert noded.end(signal.SIGTERM) == 0
    assert time.monotonic() - since < 8  # before it would cut them off
    for reader in readers:
        reader.join(5)
        assert not reader.is_alive()


def test_one_who_has_gone_is_missed_at_once(noded: Noded) -> None:
    """Also where nothing happens that could not be sent to it; what it took is free again."""

    def streams() -> int:
        count: int = noded.call("GET", "/v1/node")[1]["connections"]["streams"]
        return count

    for _ in range(3):
        readers = [Reader(noded.socket, "/v1/events") for _ in range(100)]
        assert streams() == 100
        for reader in readers:
            reader.close()
        wait_for(lambda: streams() == 0, 5)
    assert not [line for line in noded.log if "traceback" in line]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_disk_full(node: Node, tmp_path: Path) -> None:
    """Who reads misses nothing; who comes back is told what could not be kept; no number comes twice."""
    folder = node.host.paths.state / "events"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", str(folder)], check=True)
    try:
        with noded_running(node.host.paths, tmp_path / "log") as noded:
            noded.create(bare("7.2", "a"))
            noded.do("start", "a")
            reader = Reader(noded.socket, "/v1/events?after=0")
            while len(reader.events) < 150:
                noded.do("pause", "a")
                noded.do("resume", "a")
            assert "missed" not in reader.kinds
            assert any("No space" in line["text"] for line in noded.log)
            noded.kill()
            reader.join(10)
            noded.start()
            again = Reader(noded.socket, "/v1/events", reader.last)
            noded.do("pause", "a")
            again.wait(lambda it: "paused" in states(it))
            assert again.kinds[0] == "missed"
            assert min(again.numbers[1:]) > reader.last
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)

            def told() -> list[str]:
                found = get(noded.socket, f"/v1/events?follow=0&after={reader.numbers[3]}")
                return [event["reason"] for event in found if event["kind"] == "missed"]

            while not any("is kept again" in line["text"] for line in noded.log):
                noded.do("resume", "a")
                noded.do("pause", "a")
            noded.end(signal.SIGTERM)
            noded.start()
            assert any("No space" in reason for reason in told())
            kept = get(noded.socket, "/v1/events?follow=0")
            numbers = [event["number"] for event in kept]
            assert numbers == sorted(set(numbers))
            assert again.last in numbers
            again.close()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# -- a machine's -------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(node: Node, tmp_path: Path) -> Iterator[None]:
    """There is an event daemon."""
    with running(node.host.paths, tmp_path / "kvmd-log"):
        yield


def test_what_a_machine_says(node: Node, noded: Noded, heard: None, version: str) -> None:
    """As its journal has it, to who follows before the first event, to who comes back, and over WebSocket."""
    noded.create(bare(version, "a"))
    path = "/v1/instances/a/events"
    reader = Reader(noded.socket, path)  # before there is a journal
    noded.do("start", "a")
    reader.wait(lambda it: "RESUME" in it.kinds)
    for _ in range(5):
        noded.do("pause", "a")
        noded.do("resume", "a")
    noded.do("kill", "a")
    reader.wait(lambda it: "ended" in it.kinds)
    vm = node.instance("a")
    kept = [(it.number, it.name, it.data, it.generation) for it in journal(vm)]
    heard_ = [(it["number"], it["kind"], it["data"], it["generation"]) for it in reader.events]
    assert heard_ == kept
    assert "kvmd-absent" not in reader.kinds
    assert get(noded.socket, f"{path}?follow=0") == reader.events
    third = reader.numbers[3]
    assert get(noded.socket, f"{path}?follow=0&after={third}") == reader.events[4:]
    stops = get(noded.socket, f"{path}?follow=0&kind=STOP&kind=ended")
    assert [it["kind"] for it in stops] == ["STOP"] * 5 + ["ended"]
    assert stops[0]["stamp"] <= stops[0]["at"]

    async def messages() -> list[object]:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(noded.socket))) as http:
            async with http.ws_connect(f"http://x{path}?after={third}&follow=0") as found:
                return [message.json() async for message in found]

    assert asyncio.run(messages()) == reader.events[4:]
    reader.close()
    again = Reader(noded.socket, path, third)
    noded.do("start", "a")
    again.wait(lambda it: it.kinds.count("RESUME") > reader.kinds[4:].count("RESUME"))
    assert again.events[: len(reader.events) - 4] == reader.events[4:]
    again.close()


def test_renamed_and_deleted_while_somebody_reads(node: Node, noded: Noded, heard: None) -> None:
    """The machine is followed under its new name, and its end as an instance is the end."""
    noded.create(bare("7.2", "a"))
    noded.create(bare("7.2", "other"))
    reader, silent = Reader(noded.socket, "/v1/instances/a/events"), Reader(noded.socket, "/v1/instances/other/events")
    noded.do("start", "a")
    reader.wait(lambda it: "RESUME" in it.kinds)
    noded.do("kill", "a")
    noded.do("rename", "a", to="b")
    noded.do("start", "b")
    reader.wait(lambda it: it.kinds.count("RESUME") == 2)
    noded.do("kill", "b")
    reader.wait(lambda it: it.kinds.count("ended") == 2)
    assert get(noded.socket, "/v1/instances/b/events?follow=0") == reader.events
    assert noded.call("GET", "/v1/instances/a/events")[0] == 404
    time.sleep(1.5)  # longer than it waits for another name
    assert reader.is_alive()
    for name, each in (("b", reader), ("other", silent)):
        assert noded.call("DELETE", f"/v1/instances/{name}")[0] == 200
        each.join(10)
        assert not each.is_alive()
        assert (each.events[-1]["kind"], each.events[-1]["instance"]) == ("gone", name)
    assert "missed" not in reader.kinds


def test_without_an_event_daemon(node: Node, noded: Noded, tmp_path: Path) -> None:
    """That is said, once, and what there is can be read; when it comes, its events come, and what was lost is told."""
    noded.create(bare("7.2", "a"))
    with running(node.host.paths, tmp_path / "kvmd-log") as kvmd:
        noded.do("start", "a")
        wait_event(node.instance("a"), "RESUME")
        kvmd.kill()
        found = get(noded.socket, "/v1/instances/a/events?follow=0")
        assert [it["kind"] for it in found] == ["kvmd-absent", "RESUME"]
        reader = Reader(noded.socket, "/v1/instances/a/events?after=0&kind=STOP")
        kvmd.start()
        noded.do("pause", "a")
        reader.wait(lambda it: "STOP" in it.kinds)
        assert reader.kinds == ["kvmd-absent", "lost", "STOP"]
        assert reader.events[1]["data"]["reason"] == "killed"
        reader.close()


def test_what_is_kept_no_more(node: Node, noded: Noded, tmp_path: Path) -> None:
    """Who comes back with the number of an event that has gone is told so; who is there loses none at a rotation."""
    noded.create(bare("7.2", "a"))
    with running(node.host.paths, tmp_path / "kvmd-log", "--journal-size", "64KiB"):
        noded.do("start", "a")
        vm = node.instance("a")
        wait_event(vm, "RESUME")
        reader = Reader(noded.socket, "/v1/instances/a/events?after=0")
        for _ in range(600):
            noded.do("qmp", "a", execute="stop")
            noded.do("qmp", "a", execute="cont")
        assert (first := journal(vm)[0].number) > 100
        reader.wait(lambda it: len(it.events) > 1200)
        assert reader.numbers == list(range(1, len(reader.events) + 1))
        reader.close()
        path = "/v1/instances/a/events?follow=0&after=7"
        wait_for(lambda: get(noded.socket, path)[0]["kind"] == "missed")  # while somebody reads, memory has more
        found = get(noded.socket, path)
        assert (found[0]["kind"], found[0].get("reason"), found[0]["number"]) == ("missed", "too-old", first - 1)
        assert found[1]["number"] == first
