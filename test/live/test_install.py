"""`make install`: into a folder for a package, and into a host of its own whose systemd runs what was installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from systemd import TOP, Container, container

_SKIPPED = ("build", ".venv", ".git", "autom4te.cache")
# This Python with all that is needed, and without the package of the tree, which an editable install would bring.
_PYTHON = """\
#!/bin/sh
PYTHONPATH='{packages}' exec '{python}' -S "$@"
"""


def make(tree: Path, *words: str) -> str:
    done = subprocess.run(["make", "-s", *words], cwd=tree, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a package for /usr would have in it, run by this Python, which has all that is needed."""
    for program, package in (("autoreconf", "autoconf automake"), ("make", "make"), ("man", "man-db")):
        assert shutil.which(program), f"no {program}: apt-get install {package}"
    top = tmp_path_factory.mktemp("install")
    for folder in (top, *top.parents[:2]):
        folder.chmod(0o711)
    tree, root = top / "tree", top / "root"
    shutil.copytree(TOP, tree, symlinks=True, ignore=shutil.ignore_patterns(*_SKIPPED))
    subprocess.run(["autoreconf", "-i"], cwd=tree, check=True, capture_output=True)
    # a container sees it there, too; and configure takes no path with a blank, as that of the tree may be
    folder = Path(tempfile.mkdtemp(prefix="drover-install-", dir="/var/tmp"))
    folder.chmod(0o755)
    python = folder / "python"
    python.write_text(_PYTHON.format(packages=sysconfig.get_path("purelib"), python=sys.executable))
    python.chmod(0o755)
    configure = ["./configure", "--prefix=/usr", f"PYTHON={python}", "pydir=/usr/lib/drover"]
    subprocess.run([*configure, f"DEV_PYTHON={sys.executable}"], cwd=tree, check=True, capture_output=True)
    make(tree, f"DESTDIR={root}", "install")
    yield root
    shutil.rmtree(folder)


def test_all_is_in_its_place(installed: Path) -> None:
    for place in (
        "bin/drover", "bin/drover-qmp-shell", "bin/drover-qmp-shell-wrap", "sbin/drover-noded", "sbin/drover-kvmd",
        "lib/systemd/system/drover-noded.service", "lib/systemd/system/drover-kvmd.service",
        "lib/systemd/system/drover-guests.service", "share/man/man1/drover.1", "share/man/man1/drover-list.1",
        "share/man/man8/drover-noded.8", "share/man/man8/drover-kvmd.8",
        "share/bash-completion/completions/drover", "share/zsh/site-functions/_drover",
        "share/fish/vendor_completions.d/drover.fish", "lib/drover/drover/__init__.py",
    ):  # fmt: skip
        assert (installed / "usr" / place).is_file(), place
    for place in ("bin/drover", "sbin/drover-noded", "sbin/drover-kvmd"):
        assert os.access(installed / "usr" / place, os.X_OK), place
        assert str(installed) not in (installed / "usr" / place).read_text()
    units = sorted((installed / "usr/lib/systemd/system").iterdir())
    assert all("@" not in unit.read_text() for unit in units)
    pages = sorted((installed / "usr/share/man").rglob("*.[18]"))
    assert len(pages) > 40
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=False,
            env=os.environ | {"MANROFFOPT": "", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), (page, done.stderr)


@pytest.fixture(scope="module")
def host(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A host with it."""
    shared = tmp_path_factory.mktemp("installed")
    shutil.copytree(installed, shared / "root", symlinks=True)
    for folder in (shared, *shared.parents[:2]):
        folder.chmod(0o711)
    with container(shared, {}) as inside:
        inside.enter("cp", "-r", f"{shared}/root/usr", "/")
        inside.enter("systemctl", "daemon-reload")
        yield inside


def test_the_units_are_clean(host: Container) -> None:
    units = [f"/usr/lib/systemd/system/drover-{name}.service" for name in ("noded", "kvmd", "guests")]
    assert host.enter("systemd-analyze", "verify", "--man=no", *units) == ""


def test_it_runs_there(host: Container) -> None:
    """Both daemons by systemd, and the command line beside them: the installed ones, not those of the tree."""
    host.enter("systemctl", "start", "drover-noded", "drover-kvmd", timeout=120)
    try:
        assert host.enter("systemctl", "is-active", "drover-noded", "drover-kvmd").split() == ["active", "active"]
        assert host.run("/usr/bin/drover", "list").startswith("NAME")
        python = host.enter("head", "-1", "/usr/sbin/drover-noded").strip().removeprefix("#!")
        where = "import sys; sys.path.append('/usr/lib/drover'); import drover; print(drover.__file__)"
        assert host.run(python, "-c", where).strip() == "/usr/lib/drover/drover/__init__.py"
        spec = host.shared / "a.toml"
        spec.write_text('name = "a"\nacceleration = "tcg"\nmemory = { size = "64MiB" }\n')
        host.run("/usr/bin/drover", "create", str(spec))
        host.run("/usr/bin/drover", "start", "a", timeout=120)
        assert "running" in host.run("/usr/bin/drover", "list")
        assert "done" in host.run("/usr/bin/drover", "jobs")  # so it was the daemon
        host.enter("systemctl", "restart", "drover-noded", timeout=120)
        assert "running" in host.run("/usr/bin/drover", "list")
        host.run("/usr/bin/drover", "kill", "a")
        assert host.run("/usr/bin/drover", "delete", "--yes", "a")
    finally:
        host.enter("systemctl", "stop", "drover-noded", "drover-kvmd", timeout=120)
