"""Which verdict counts, for how long, and when KVM is not even tried."""

import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from drover.errors import ArgumentError, NotSupported
from drover.kvm import acceleration as module
from drover.kvm import proof
from drover.kvm.acceleration import Verdict, acceleration
from drover.kvm.binary import Binary

BINARY = Binary(
    "/usr/bin/qemu", "k", (7, 2, 22), "", "x86_64", {}, frozenset({"isa-debug-exit", "isa-debugcon"}),
    frozenset(), frozenset(), frozenset({"kvm", "tcg"}),
)  # fmt: skip
YES = Verdict("kvm", "", True)
NO = Verdict("tcg", "it is a fake", True)


class Probe(list[str]):
    """Answers for a probe machine, and remembers each time that one would have been started."""

    answer = YES

    def __call__(self, binary: Binary) -> Verdict:
        self.append(binary.key)
        return self.answer


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """On a host that has KVM, as far as can be seen."""
    found = Probe()
    monkeypatch.setattr(module, "_probe", found)
    monkeypatch.setattr(module, "_device_problem", lambda: "")
    return found


def changed(**fields: object) -> Binary:
    """Another binary."""
    return msgspec.structs.replace(BINARY, **fields)


def test_is_tried_once(probe: Probe, tmp_path: Path) -> None:
    for wanted in ("auto", "auto", "kvm"):
        assert acceleration(BINARY, wanted, tmp_path, "boot") == YES
    assert len(probe) == 1


def test_is_tried_again_after_a_boot_and_for_another_binary(probe: Probe, tmp_path: Path) -> None:
    acceleration(BINARY, "auto", tmp_path, "boot")
    acceleration(BINARY, "auto", tmp_path, "boot 2")
    acceleration(changed(key="k2"), "auto", tmp_path, "boot 2")
    acceleration(changed(path="/other"), "auto", tmp_path, "boot 2")
    assert len(probe) == 4
    acceleration(changed(key="k2"), "auto", tmp_path, "boot 2")
    assert len(probe) == 4


def test_that_it_does_not_work_is_believed_for_a_while(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.answer = NO
    assert acceleration(BINARY, "auto", tmp_path, "boot") == NO
    assert acceleration(BINARY, "auto", tmp_path, "boot") == NO
    assert len(probe) == 1
    later = time.clock_gettime(time.CLOCK_BOOTTIME) + module.DOUBT
    monkeypatch.setattr(time, "clock_gettime", lambda clock: later)
    probe.answer = YES
    assert acceleration(BINARY, "auto", tmp_path, "boot") == YES
    assert len(probe) == 2


def test_that_it_works_is_believed_for_the_whole_boot(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acceleration(BINARY, "auto", tmp_path, "boot")
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 1e9)
    probe.answer = NO
    assert acceleration(BINARY, "auto", tmp_path, "boot") == YES


def test_who_wants_kvm_doubts_that_it_does_not_work(probe: Probe, tmp_path: Path) -> None:
    probe.answer = NO
    acceleration(BINARY, "auto", tmp_path, "boot")
    for count in (2, 3):
        with pytest.raises(ArgumentError, match="KVM does not work here: it is a fake") as caught:
            acceleration(BINARY, "kvm", tmp_path, "boot")
        assert caught.value.field == "acceleration"
        assert len(probe) == count
    probe.answer = YES
    assert acceleration(BINARY, "kvm", tmp_path, "boot") == YES
    assert acceleration(BINARY, "auto", tmp_path, "boot") == YES
    assert len(probe) == 4


def test_nothing_is_tried_for_tcg(probe: Probe, tmp_path: Path) -> None:
    assert acceleration(BINARY, "tcg", tmp_path / "none", "boot") == Verdict("tcg")
    assert not probe
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wanted", ["", "KVM", "xen"])
def test_no_such_acceleration(probe: Probe, tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ArgumentError, match="one of auto, kvm, tcg"):
        acceleration(BINARY, wanted, tmp_path, "boot")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"format": 99}'])
def test_broken_document(probe: Probe, tmp_path: Path, content: bytes) -> None:
    acceleration(BINARY, "auto", tmp_path, "boot")
    (document,) = tmp_path.glob("*.json")
    document.write_bytes(content)
    assert acceleration(BINARY, "auto", tmp_path, "boot") == YES
    assert len(probe) == 2


def test_no_cache_to_be_had(probe: Probe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert acceleration(BINARY, "auto", tmp_path / "file", "boot") == YES


@pytest.mark.parametrize(
    ("binary", "reason"),
    [
        (changed(target="aarch64"), "aarch64"),
        (changed(devices=frozenset({"isa-debugcon"})), "without isa-debug-exit"),
    ],
)
def test_what_cannot_be_proven_is_left_to_who_asks_for_it(
    probe: Probe, tmp_path: Path, binary: Binary, reason: str
) -> None:
    verdict = acceleration(binary, "auto", tmp_path, "boot")
    assert verdict.accelerator == "tcg"
    assert reason in verdict.reason
    assert acceleration(binary, "kvm", tmp_path, "boot") == Verdict("kvm")
    assert not probe


def test_binary_without_one_of_them(probe: Probe, tmp_path: Path) -> None:
    no_kvm, no_tcg = changed(accelerators=frozenset({"tcg"})), changed(accelerators=frozenset({"kvm"}))
    assert acceleration(no_kvm, "auto", tmp_path, "boot").reason == "/usr/bin/qemu was built without KVM"
    with pytest.raises(ArgumentError, match="built without KVM"):
        acceleration(no_kvm, "kvm", tmp_path, "boot")
    assert acceleration(no_tcg, "auto", tmp_path, "boot") == YES
    with pytest.raises(NotSupported, match="TCG"):
        acceleration(no_tcg, "tcg", tmp_path, "boot")
    probe.answer = NO
    with pytest.raises(NotSupported, match="it is a fake"):
        acceleration(no_tcg, "auto", tmp_path, "boot 2")


@pytest.mark.parametrize(
    ("device", "reason"), [("/none/kvm", "No such file"), ("/tmp", "Is a directory"), ("/dev/null", "not KVM's")]
)
def test_no_such_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, reason: str) -> None:
    monkeypatch.setattr(module, "_DEVICE", Path(device))
    fds = os.listdir("/proc/self/fd")
    verdict = acceleration(BINARY, "auto", tmp_path, "boot")
    assert verdict.accelerator == "tcg"
    assert reason in verdict.reason
    assert not verdict.probed
    assert os.listdir("/proc/self/fd") == fds


def test_program_is_what_its_source_says(tmp_path: Path) -> None:
    source = [line if line.startswith("#") else line.partition("|")[2] for line in proof.LISTING.splitlines()]
    (tmp_path / "proof.s").write_text("\n".join(source) + "\n")
    try:
        subprocess.run(["as", "--64", "-o", "proof.o", "proof.s"], cwd=tmp_path, check=True)
        link = ["ld", "-Ttext=0x8000", "-e", "0x8000", "--oformat", "binary", "-o", "proof", "proof.o"]
        subprocess.run(link, cwd=tmp_path, check=True)
    except FileNotFoundError as error:
        pytest.fail(f"{error.filename} is missing: run ./bootstrap, or install the Debian package binutils")
    code = (tmp_path / "proof").read_bytes()
    image = proof.firmware()
    assert image.startswith(code)
    assert len(code) <= 0x400  # what it copies
    assert image.strip(b"\0") == code + bytes(proof.RESET_VECTOR - len(code)) + proof.TO_START.rstrip(b"\0")
    assert len(image) == proof.SIZE


def test_stages_are_those_of_the_program() -> None:
    letters = [line.split("'")[1] for line in proof.LISTING.splitlines() if "mov al, '" in line]
    assert letters == list(proof.STAGES)
    assert proof.stage("rpl") == proof.STAGES["l"]
    assert proof.stage("") == "nowhere"
