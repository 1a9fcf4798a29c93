"""Writes the seeds of the fuzzers anew, from what the real QEMUs of this machine say: test/fuzz/capture.py"""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "build" / "py"), str(HERE.parent)]

from drover.qmp.agent import SENTINEL, SYNC  # noqa: E402
from drover.testing.machine import qemu_binaries  # noqa: E402

QMP = [
    *(b'{"execute": "qmp_capabilities", "id": 1}', b'{"execute": "query-status", "id": 2}'),
    *(b'{"execute": "cont", "id": 3}', b'{"execute": "stop", "id": 4}', b'{"execute": "nonsense", "id": 5}'),
    *(b'{"execute": "query-name", "id": 6}', b'{"execute": }', b'{"exec-oob": "query-yank", "id": 7}', b"\xff"),
]
HMP = [b"Drov\x17", b"info status\nDrov\x17", b"info version\nDrov\x17", b"nonsense\nDrov\x17"]
LINES = {
    "address": ["/a.b", "unix:a:b", "@name", "localhost:4444", "[::1]:4444", "tcp:unix:1", "vsock:3:1024", "::1"],
    "shell": [
        "device_add driver=e1000 id='n 1' addr=0x10",
        "blockdev-add file.filename=\"/a b\" list[0]=1 map={'a': None}",
        '{"exec-oob": "yank", "arguments": {"instances": []}}',
        'transaction( abort ; blockdev-snapshot-sync device="d" snapshot-file=f )',
        "/oob migrate-pause",
        "/help # note",
        "human-monitor-command command-line='info \\u00e9' cpu-index=-1",
    ],
}


def said(path: Path, words: list[bytes]) -> bytes:
    """All that the other side of the socket at `path` says to these words, sent one after the other."""
    with socket.socket(socket.AF_UNIX) as line:
        while line.connect_ex(str(path)):
            time.sleep(0.05)
        line.settimeout(0.5)
        data = b""
        for word in [b"", *words]:
            line.sendall(word + b"\n" if word[:1] == b"{" else word)
            try:
                while piece := line.recv(1 << 16):
                    data += piece
            except TimeoutError:
                pass
        return data


def write(kind: str, name: str, data: bytes) -> None:
    """One seed."""
    folder = HERE / "seeds" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def main() -> None:
    """Ask both QEMUs and the agent on the host, and write."""
    for version, binary in qemu_binaries().items():
        with tempfile.TemporaryDirectory() as folder:
            qmp, pretty, hmp = (Path(folder) / name for name in ("qmp", "pretty", "hmp"))
            command = [str(binary), "-machine", "none", "-display", "none", "-S"]
            for option, path in (("-qmp", qmp), ("-qmp-pretty", pretty), ("-monitor", hmp)):
                command += [option, f"unix:{path},server=on,wait=off"]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                for name, path in (("plain", qmp), ("pretty", pretty)):
                    write("qmp", f"{version}-{name}", said(path, QMP))
                write("hmp", version, said(hmp, HMP))
                process.kill()
    for name, output in (("ok", "a\nVM status: running\r\n"), ("bad", "x\nunknown command: 'x'\r\nError: no\r\n")):
        write("texts", name, output.encode())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qga"
        with subprocess.Popen(["qemu-ga", "-m", "unix-listen", "-p", str(path), "-t", folder]) as process:
            sync = b'{"execute": "%s", "arguments": {"id": 1}}' % SYNC.encode()
            write("agent", "host", said(path, [SENTINEL, sync, b'{"execute": "guest-ping"}']))
            process.kill()
    for target, lines in LINES.items():
        for number, text in enumerate(lines):
            write(target, str(number), text.encode())


if __name__ == "__main__":
    main()
