"""The same lines to qmp-shell and to ours, on the same QEMU: the same answers, but where qmp-shell is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Start

pytest.importorskip("qemu.qmp.qmp_shell")
pytestmark = pytest.mark.live

PACKAGE = Path(__file__).resolve().parents[3] / "build" / "py"
LIMIT = 60.0  # seconds for a session: 0.5 on an idle machine
PEER = "from qemu.qmp.qmp_shell import main; main()"
OURS = "from drover.shell.qmp import main; main()"

# Each leaves the machine as it was, so that both shells see the same one.
LINES = [
    "query-status",
    "query-name",
    "query-version",
    "query-block",
    "",
    "blockdev-add driver=null-co node-name=n1 size=4096 read-zeroes=true",
    "blockdev-add driver=null-co node-name=n1",
    "block_resize node-name=n1 size=8192",
    "blockdev-add driver=raw node-name=n2 read-only=True file.driver=null-co",
    "blockdev-del node-name=n2",
    "blockdev-reopen options=[{'driver':'null-co','node-name':'n1','size':4096}]",
    'object-add qom-type=throttle-group id=g1 limits={"iops-total":5}',
    "qom-get path=/objects/g1 property=limits",
    "qom-set path=/objects/g1 property=limits value={'iops-total':7}",
    "qom-list path=/objects",
    "object-del id=g1",
    "transaction(",
    "block-dirty-bitmap-add node=n1 name=b1 granularity=512",
    "block-dirty-bitmap-add node=n1 name=b2 disabled=true",
    ")",
    "transaction(",
    "block-dirty-bitmap-remove node=n1 name=b1",
    "abort",
    ")",
    "query-named-block-nodes flat=true",
    "blockdev-del node-name=n1",
    "human-monitor-command command-line=info\\tname",
    "set_link name=nobody up=false",
    "system_wakeup",
]


def answers(program: str, address: Path, lines: list[str], *words: str) -> list[Any]:
    """The replies that came to `lines`, without the prompts between them."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words, str(address)],
        input="\n".join(lines) + "\n",
        env=os.environ | {"PYTHONPATH": str(PACKAGE), "HOME": str(address.parent)},
        capture_output=True,
        check=False,
        text=True,
        timeout=LIMIT,
    )
    texts = done.stdout.replace("(QEMU) ", "").replace("TRANS> ", "").splitlines()
    return [json.loads(text) for text in texts if text.startswith("{")]


def test_the_same_answers(start: Start) -> None:
    """Line for line; what is sent is the same, too."""
    address = start()
    theirs = answers(PEER, address, LINES, "-v")
    ours = answers(OURS, address, LINES, "-v")
    assert ours == theirs
    assert len(ours) > 40


WRONG_THERE = {
    "quotes": (["object-add qom-type=secret id=s1 data='n 1'", "qom-get path=/objects/s1 property=data"], "n 1"),
    "arguments behind a dotted one": (  # there each is put inside of the one before
        ["blockdev-add driver=raw node-name=n2 file.driver=null-co file.size=4096 read-only=True"],
        {},
    ),
    "text that looks like a number": (
        ["object-add qom-type=secret id=s1 data=5", "qom-get path=/objects/s1 property=data"],
        "5",
    ),
}


@pytest.mark.parametrize("case", WRONG_THERE)
def test_what_is_wrong_there_is_right_here(case: str, start: Start) -> None:
    """Theirs does not give what was typed; ours does."""
    lines, value = WRONG_THERE[case]
    assert answers(OURS, start(), lines)[-1] == {"return": value}
    assert answers(PEER, start(), lines)[-1] != {"return": value}


def test_a_log_leaves_the_monitor_alone(start: Start, tmp_path: Path) -> None:
    """Theirs takes QEMU's socket away with -l; ours writes a log."""
    address = start()
    inode = address.stat().st_ino
    assert answers(OURS, address, ["query-name"], "-l", str(tmp_path / "log")) == [{"return": {}}]
    assert address.stat().st_ino == inode
    assert "query-name" in (tmp_path / "log").read_text()
    assert answers(PEER, address, ["query-name"], "-l", str(tmp_path / "theirs")) == []
