"""User ids out of a pool."""

import os
import pwd
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from drover.errors import ArgumentError, NoFreeUid
from drover.kvm import identity
from drover.kvm.identity import Identity, UidPool, uids_of_processes


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that run on this host already have ids of the same range: here they do not count."""
    others = uids_of_processes()
    monkeypatch.setattr(identity, "uids_of_processes", lambda: uids_of_processes() - others)


@pytest.fixture
def pool(tmp_path: Path) -> UidPool:
    """Three ids."""
    return UidPool(tmp_path / "uids", 70000, 70002)


def test_each_gets_its_own_and_keeps_it(pool: UidPool, tmp_path: Path) -> None:
    assert pool.lend("a") == Identity(70000, 70000)
    assert pool.lend("b", groups=(108,)) == Identity(70001, 70001, (108,))
    again = UidPool(tmp_path / "uids", 70000, 70002)
    assert again.lend("a").uid == 70000
    assert again.lent() == {70000: "a", 70001: "b"}


def test_given_back_it_is_lent_again(pool: UidPool) -> None:
    pool.lend("a")
    pool.lend("b")
    pool.give_back("a")
    pool.give_back("a")
    assert pool.lent() == {70001: "b"}
    assert pool.lend("c").uid == 70000


def test_says_when_none_is_left(pool: UidPool) -> None:
    for owner in "abc":
        pool.lend(owner)
    assert pool.lend("b").uid == 70001
    with pytest.raises(NoFreeUid, match="no free user id from 70000 to 70002: 3 are lent") as caught:
        pool.lend("d")
    assert caught.value.lent == 3


def test_passes_over_what_is_in_passwd_or_runs(tmp_path: Path) -> None:
    somebody = pwd.getpwnam("nobody").pw_uid
    assert UidPool(tmp_path / "a", somebody, somebody + 1).lend("a").uid == somebody + 1
    with subprocess.Popen(["setpriv", "--reuid=71500", "--", "sleep", "60"]) as running:
        while 71500 not in uids_of_processes():
            assert running.poll() is None, "only root can start something as somebody else: run the tests as root"
        assert UidPool(tmp_path / "b", 71500, 71501).lend("a").uid == 71501
        running.kill()
    assert UidPool(tmp_path / "b", 71500, 71501).lend("b").uid == 71500


def test_a_lent_id_outside_a_new_range_is_kept(pool: UidPool, tmp_path: Path) -> None:
    pool.lend("a")
    moved = UidPool(tmp_path / "uids", 70100, 70100)
    assert moved.lend("a").uid == 70000
    assert moved.lend("b").uid == 70100
    with pytest.raises(NoFreeUid, match="1 are lent"):
        moved.lend("c")


@pytest.mark.parametrize("uids", [(0, 5), (5, 4), (70000, 2**32 - 1)])
def test_impossible_ranges(tmp_path: Path, uids: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match="uids"):
        UidPool(tmp_path, *uids)


@pytest.mark.parametrize("owner", ["", "a\nb"])
def test_impossible_owners(pool: UidPool, owner: str) -> None:
    with pytest.raises(ArgumentError, match="owner"):
        pool.lend(owner)


def test_a_write_that_was_cut_off_lends_nothing(pool: UidPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(identity.os, "fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.lend("a")
    assert pool.lent() == {}
    assert pool.lend("b").uid == 70000
    assert sorted(os.listdir(tmp_path / "uids")) == ["70000", "lock"]


def test_two_processes_never_get_the_same(tmp_path: Path) -> None:
    taker = f"""
        from pathlib import Path
        from drover.kvm.identity import UidPool
        import os
        pool = UidPool(Path({str(tmp_path)!r}), 71600, 71699)
        print(*(pool.lend(f"{{os.getpid()}}-{{number}}").uid for number in range(10)))
    """
    command = [sys.executable, "-c", textwrap.dedent(taker)]
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    takers = [subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) for _ in range(4)]
    uids = [int(uid) for taken in takers for uid in taken.communicate()[0].split()]
    assert sorted(uids) == list(range(71600, 71640))


def test_default_range_is_nobodys(tmp_path: Path) -> None:
    assert UidPool(tmp_path).lend("a").uid == identity.FIRST_UID
    assert not any(identity.FIRST_UID <= user.pw_uid <= identity.LAST_UID for user in pwd.getpwall())
