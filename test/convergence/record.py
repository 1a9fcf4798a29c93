"""Record what a real QEMU tells while a guest is migrated that makes memory dirty in a known way.

``python test/convergence/record.py [NAME…]`` migrates each of :data:`GUESTS` from one QEMU of this machine to another,
and puts the tables into ``test/data/migration``. Only who wants new ones needs this, and gcc.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "build" / "py"), str(HERE.parent)]

from drover import QmpConnection  # noqa: E402
from drover.testing.machine import qemu_binaries  # noqa: E402

DATA = HERE.parent / "data" / "migration"
MIB = 1 << 20
STEP = 0.1
ARMED = {"cpu-throttle-initial": 1, "cpu-throttle-increment": 99, "max-cpu-throttle": 1}
COLUMNS = (
    "ms",
    "transferred",
    "remaining",
    "scanned",
    "rounds",
    "dirty_rate",
    "bandwidth",
    "expected_downtime",
    "throttle",
)


THROTTLE: tuple[tuple[float, dict[str, int]], ...] = (
    (14, {"max-cpu-throttle": 40}),
    (24, {"max-cpu-throttle": 80}),
)


class Guest(NamedTuple):
    """One guest, and how it is sent.

    :ivar regions: rows {first MiB, MiB, MiB/s, shape} of dirty.c
    :ivar fill: MiB that have contents, of 512
    :ivar bandwidth: MiB/s of the migration
    :ivar downtime: milliseconds that it may stand still, at first
    :ivar eager: turns in a circle after each touch; 0 for a guest that keeps to the rates
    :ivar armed: with auto-converge on, and yet held back, as the policy starts it
    :ivar pulls: (second, what is set then)
    """

    version: str
    regions: str
    fill: int = 400
    bandwidth: int = 48
    downtime: int = 300
    eager: int = 0
    armed: bool = False
    pulls: tuple[tuple[float, dict[str, int]], ...] = ()
    seconds: float = 50


GUESTS = {
    "idle-7": Guest("7.2", "{64, 16, 1, STEADY}"),
    "idle-10": Guest("10.0", "{64, 16, 1, STEADY}", fill=250),
    "uniform-10": Guest("10.0", "{64, 256, 20, STEADY}"),
    "uniform-7": Guest("7.2", "{64, 256, 20, STEADY}"),
    "hot-cold-10": Guest("10.0", "{64, 8, 200, STEADY}, {128, 200, 12, STEADY}"),
    "bursts-10": Guest("10.0", "{64, 128, 60, BURSTS}"),
    "growing-10": Guest("10.0", "{64, 256, 60, GROWING}", bandwidth=64),
    "waves-10": Guest("10.0", "{64, 256, 60, WAVES}"),
    "sweep-10": Guest("10.0", "{64, 300, 24, SWEEP}"),
    "sweep-7": Guest("7.2", "{64, 300, 24, SWEEP}"),
    "longer-10": Guest(
        "10.0", "{64, 8, 200, STEADY}, {128, 200, 4, STEADY}", downtime=75, pulls=((16, {"downtime-limit": 300}),)
    ),
    "faster-10": Guest("10.0", "{64, 256, 90, STEADY}", pulls=((20, {"max-bandwidth": 128 * MIB}),)),
    "paced-10": Guest("10.0", "{64, 256, 90, STEADY}", armed=True, seconds=40, pulls=THROTTLE),
    "throttled-10": Guest("10.0", "{64, 256, 0, STEADY}", eager=16000, armed=True, pulls=THROTTLE),
    "throttled-7": Guest("7.2", "{64, 256, 0, STEADY}", eager=16000, armed=True, pulls=THROTTLE),
}


def ticks_per_ms() -> int:
    """The frequency of the time stamp counter, which a guest under TCG reads as it is, in kHz."""
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines():
        if line.startswith("cpu MHz"):
            return int(float(line.split(":")[1]) * 1000)
    raise SystemExit("no cpu MHz in /proc/cpuinfo")


def build(guest: Guest, folder: Path) -> Path:
    """Compile dirty.c for this guest."""
    out = folder / "dirty.elf"
    script = folder / "link.ld"
    script.write_text(
        "ENTRY(_start) SECTIONS { . = 1M; .text : { *(.multiboot) *(.start) *(.text*) *(.rodata*) }"
        " .data : { *(.data*) *(.bss*) *(COMMON) } /DISCARD/ : { *(.note*) *(.eh_frame*) } }"
    )
    flags = [f"-DREGIONS={guest.regions}", f"-DFILL={guest.fill}", f"-DKHZ={ticks_per_ms()}"]
    if guest.eager:
        flags.append(f"-DEAGER={guest.eager}")
    subprocess.run(
        [
            "gcc",
            "-m32",
            "-O2",
            "-ffreestanding",
            "-nostdlib",
            "-static",
            "-fno-pic",
            "-no-pie",
            *flags,
            "-Wl,--build-id=none",
            f"-Wl,-T,{script}",
            str(HERE / "dirty.c"),
            "-o",
            str(out),
        ],
        check=True,
    )
    return out


def start(stack: ExitStack, guest: Guest, kernel: Path, folder: Path, name: str, *more: str) -> QmpConnection:
    """Start a QEMU; it is killed when `stack` ends."""
    monitor = folder / name
    process = subprocess.Popen(
        [
            qemu_binaries()[guest.version],
            "-machine",
            "q35",
            "-accel",
            "tcg,tb-size=32",
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-kernel",
            kernel,
            "-qmp",
            f"unix:{monitor},server=on,wait=off",
            *more,
        ]
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    while not monitor.exists():
        time.sleep(0.05)
    return stack.enter_context(QmpConnection(str(monitor)))


class Sampler:
    """Has QEMU look at sampled pages over 1 s, 2 s, 4 s and so on, until the first round has ended."""

    def __init__(self, source: QmpConnection) -> None:
        self.source = source
        self.seconds = 0
        self.told: list[list[float]] = []

    def start(self) -> None:
        """Begin with the next one."""
        self.seconds = 2 * self.seconds or 1
        self.source.execute("calc-dirty-rate", {"calc-time": self.seconds, "sample-pages": 4096})

    def poll(self, ms: int, rounds: int) -> bool:
        """Take up what was measured, and begin with the next. A row: milliseconds, seconds, bytes that got dirty."""
        answer: dict[str, Any] = self.source.execute("query-dirty-rate")
        if answer["status"] != "measured" or rounds > 1:
            return False
        self.told.append([ms, self.seconds, answer["dirty-rate"] * MIB * self.seconds])
        self.start()
        return True


def row(answer: dict[str, Any], since: float) -> list[int]:
    """One row of the table: milliseconds, bytes, bytes a second."""
    ram = answer["ram"]
    scanned = ram["normal-bytes"] + ram["duplicate"] * ram["page-size"]
    return [
        int((time.monotonic() - since) * 1000),
        ram["transferred"],
        ram["remaining"],
        scanned,
        ram["dirty-sync-count"],
        ram["dirty-pages-rate"] * ram["page-size"],
        int(ram["mbps"] * 125000),
        answer.get("expected-downtime", 0),
        answer.get("cpu-throttle-percentage", 0),
    ]


def watch(source: QmpConnection, guest: Guest, sampler: Sampler) -> tuple[list[list[int]], dict[str, Any]]:
    """Ask every 100 ms until the migration ends, or is cancelled after some seconds."""
    since = time.monotonic()
    pulls = list(guest.pulls)
    rows: list[list[int]] = []
    while True:
        answer: dict[str, Any] = source.execute("query-migrate")
        if answer["status"] in ("completed", "failed", "cancelled"):
            return rows, answer
        if "ram" in answer:
            rows.append(row(answer, since))
            sampler.poll(rows[-1][0], rows[-1][4])
        if pulls and time.monotonic() - since > pulls[0][0]:
            source.set_migration_parameters(pulls.pop(0)[1])
        if time.monotonic() - since > guest.seconds:
            source.execute("migrate_cancel")
        time.sleep(STEP - (time.monotonic() - since) % STEP)


def record(name: str, guest: Guest) -> None:
    """Run one guest and write its table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kernel = build(guest, folder)
        source = start(stack, guest, kernel, folder, "source")
        target = start(stack, guest, kernel, folder, "target", "-incoming", "defer", "-S")
        both = {"events": True, "return-path": True}
        source.set_migration_capabilities({**both, "auto-converge": guest.armed})
        target.set_migration_capabilities(both)
        source.set_migration_parameters({"max-bandwidth": guest.bandwidth * MIB, "downtime-limit": guest.downtime})
        if guest.armed:
            source.set_migration_parameters(ARMED)
        time.sleep(4)  # it fills its memory first
        sampler = Sampler(source)
        sampler.start()
        while not sampler.poll(0, 0):
            time.sleep(STEP)
        uri = f"unix:{folder / 'm'}"
        target.migrate_incoming(uri)
        source.migrate(uri)
        rows, last = watch(source, guest, sampler)
    ended = {key: last.get(key, 0) for key in ("status", "total-time", "downtime")}
    told = guest._asdict() | {"qemu": guest.version, "total": 512 * MIB, "measured": sampler.told, "ended": ended}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    head = json.dumps(told | {"columns": COLUMNS}, indent=1)
    (DATA / f"{name}.json").write_text(f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n', encoding="ascii")
    print(name, ended, len(rows), "rows; measured", sampler.told, flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or GUESTS:
        record(chosen, GUESTS[chosen])
