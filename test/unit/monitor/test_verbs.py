"""Verbs: each a method of both faces once it is asked for, and nothing before."""

import inspect
import subprocess
import sys

import pytest

from drover import AsyncQmpConnection, QmpConnection
from drover.monitor.human import AsyncHumanMonitor, HumanMonitor, HumanVerbs
from drover.monitor.verbs import Verbs, verb

KINDS = [(Verbs, QmpConnection, AsyncQmpConnection), (HumanVerbs, HumanMonitor, AsyncHumanMonitor)]


@pytest.mark.parametrize(("verbs", "blocking", "asynchronous"), KINDS)
def test_every_verb_has_a_flow(verbs: type, blocking: type, asynchronous: type) -> None:
    """Its words and parameters are the flow's, on both faces; that of a blocking one is no coroutine function."""
    named = {name: value for name, value in vars(verbs).items() if isinstance(value, verb)}
    assert len(named) > 15
    for name, value in named.items():
        plain, coroutine = getattr(blocking, name), getattr(asynchronous, name)
        assert plain is getattr(blocking, name)
        assert plain.__name__ == coroutine.__name__ == name
        assert plain.__doc__
        assert plain.__doc__ == coroutine.__doc__ == value.flow.__doc__
        assert next(iter(inspect.signature(plain).parameters)) == "self"
        assert inspect.signature(plain) == inspect.signature(coroutine)
        assert list(inspect.signature(plain).parameters)[1:] == list(inspect.signature(value.flow).parameters)[1:]
        assert not inspect.iscoroutinefunction(plain)
        assert inspect.iscoroutinefunction(coroutine)


def test_no_flow_is_loaded_before() -> None:
    """An import takes no longer than it must: what plugs disks is there when a disk is plugged."""
    said = (
        "import sys; from drover import QmpConnection as Q; "
        "print(*sorted(m for m in sys.modules if m.startswith('drover.ops.')), 'asyncio' in sys.modules); "
        "Q.hot_add_disk; print('drover.ops.disk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["drover.ops.port drover.ops.reservations False", "True"]


def test_one_may_be_replaced() -> None:
    """By a class above the face, which can still call the one that it replaces, whoever asks first."""

    class Louder(QmpConnection):
        def query_name(self) -> str:
            return super().query_name().upper()

    class Same(Louder):
        pass

    own = vars(Louder)["query_name"]
    vm = Same("/nowhere")
    vm._run = lambda flow, args, kwargs: "name"  # type: ignore[method-assign]
    assert [vm.query_name(), vm.query_name()] == ["NAME", "NAME"]
    assert vars(Louder)["query_name"] is own
    assert "query_name" not in vars(Same)
    assert QmpConnection.query_name is not own
