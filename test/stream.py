"""A stream of numbered packets to a guest, each of which its kernel answers, and what of it was lost."""

import os
import socket
import struct
import threading
import time
from typing import Self

from netns import Network

_ECHO, _ANSWER = 8, 0
_RARP = 0x8035
_SO_RCVBUFFORCE = 33  # socket(7); Python has no name for it
_HEADER = struct.Struct("!BBHHH")


class Stream:
    """Echo requests, one after the other.

    :ivar sent: when each was sent, by its number; seconds since the epoch
    :ivar answered: when its answer came
    :ivar lost: the numbers of those without one
    :param network: from where
    :param address: of the guest
    :param pause: seconds between two
    """

    def __init__(self, network: Network, address: str, pause: float) -> None:
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self._address, self._pause = address, pause
        self._id = os.getpid() & 0xFFFF
        with network.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        # a guest that stood still answers all at once, and what finds no room here would seem lost
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()

    @property
    def lost(self) -> list[int]:
        return [number for number in self.sent if number not in self.answered]

    def _send(self) -> None:
        number = 0
        while not self._over.is_set() and number < 0xFFFF:
            number += 1
            body = _HEADER.pack(_ECHO, 0, 0, self._id, number)
            self.sent[number] = time.time()
            self._socket.sendto(_HEADER.pack(_ECHO, 0, _sum(body), self._id, number), (self._address, 0))
            time.sleep(self._pause)
        time.sleep(1.0)  # for the last answers
        self._over.set()

    def _receive(self) -> None:
        while not self._over.is_set() or self._threads[0].is_alive():
            try:
                packet = self._socket.recv(2048)
            except TimeoutError:
                continue
            kind, _, _, mine, number = _HEADER.unpack_from(packet, (packet[0] & 0xF) * 4)
            if (kind, mine) == (_ANSWER, self._id):
                self.answered.setdefault(number, time.time())


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Announcements:
    """When a NIC was announced on a wire: RARP frames of its address.

    :ivar at: seconds since the epoch
    """

    def __init__(self, network: Network, device: str, mac: str) -> None:
        self.at: list[float] = []
        self._mac = bytes.fromhex(mac.replace(":", ""))
        with network.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_RARP))
            self._socket.bind((device, _RARP))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._receive)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _receive(self) -> None:
        while not self._over.is_set():
            try:
                frame = self._socket.recv(2048)
            except TimeoutError:
                continue
            if frame[6:12] == self._mac:
                self.at.append(time.time())
