"""Every public name of qemu.qmp, taken from the peer itself, is here with the same kind, family and signature."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

peer_package = pytest.importorskip("qemu.qmp")

# Programs with commands of their own here (doc/switch-from-qemu-qmp.md, "Not there").
PROGRAMS = {"qmp_shell", "qmp_tui"}
MODULES = ["", *(f".{item.name}" for item in pkgutil.iter_modules(peer_package.__path__) if item.name not in PROGRAMS)]
# Names that begin with an underscore, and are used all the same: by subclasses, by QEMU's tests, by the language.
USED = {
    "__init__", "__repr__", "__str__", "__enter__", "__exit__", "__aiter__", "__anext__",
    "_raw", "_cb_inbound", "_cb_outbound", "_do_recv", "_do_send", "_recv", "_send", "_readline", "_on_message",
    "_do_connect", "_do_start_server", "_do_accept", "_establish_session", "_schedule_disconnect", "_set_state",
    "_session_guard", "_asdict", "_get_greeting",
}  # fmt: skip
# What the peer's modules import for their own needs: to be had where it is defined.
BROUGHT_IN = {"bottom_half", "upper_half", "exception_summary", "pretty_traceback", "flush", "get_or_create_event_loop"}
BROUGHT_IN |= {"F", "T"}
BROUGHT_IN |= {"QMPClient"}  # by .legacy, which here stands on the link itself
# Left out on purpose: what did network I/O while the garbage was collected, and how the peer reads a greeting.
DROPPED = {("QEMUMonitorProtocol", "__del__"), ("QMPClient", "_get_greeting")}


def peer(module: str) -> Any:
    return importlib.import_module(f"qemu.qmp{module}")


def ours(module: str) -> Any:
    return importlib.import_module(f"drover.compat.qmp{module}")


def defined(module: Any) -> set[str]:
    """The public names that a module's own text binds, and those that it offers."""
    names = set(getattr(module, "__all__", ()))
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return {name for name in names if not name.startswith("_") and not is_type_variable(getattr(module, name))}


def is_type_variable(value: object) -> bool:
    return type(value).__name__ == "TypeVar"


def names() -> Iterator[Any]:
    for module in MODULES:
        for name in sorted(defined(peer(module))):
            yield pytest.param(module, name, id=f"{module.lstrip('.') or 'qemu.qmp'}.{name}")


def kinds() -> Iterator[Any]:
    for parameters in names():
        module, name = parameters.values
        if inspect.isclass(getattr(peer(module), name)):
            yield parameters


def shape(function: Any) -> list[tuple[Any, ...]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(function).parameters.values()]


def sort_of(value: Any) -> str:
    for test in (inspect.isclass, inspect.iscoroutinefunction, inspect.isfunction, inspect.ismethod):
        if test(value):
            return test.__name__
    return type(value).__name__


def test_there_are_as_many_modules_as_we_think() -> None:
    assert {"", ".error", ".events", ".legacy", ".message", ".models", ".protocol", ".qmp_client", ".util"} == set(
        MODULES
    )


@pytest.mark.parametrize("module", MODULES)
def test_names_that_a_module_only_imports(module: str) -> None:
    imported = {
        name
        for name, value in vars(peer(module)).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("qemu.qmp")
    }
    assert not {name for name in imported - BROUGHT_IN if not hasattr(ours(module), name)}


@pytest.mark.parametrize("module", MODULES)
def test_what_a_star_brings(module: str) -> None:
    assert set(getattr(peer(module), "__all__", ())) <= set(getattr(ours(module), "__all__", vars(ours(module))))


@pytest.mark.parametrize(("module", "name"), list(names()))
def test_name(module: str, name: str) -> None:
    theirs, mine = getattr(peer(module), name), getattr(ours(module), name)
    if "AddrT" in name or name in ("EventNames", "EventFilter", "QMPMessage", "QMPObject", "QMPReturnValue"):
        return  # types that are written down: what they allow is seen in the signatures
    assert sort_of(theirs) == sort_of(mine)
    if inspect.isfunction(theirs):
        assert shape(theirs) == shape(mine)


@pytest.mark.parametrize(("module", "name"), list(kinds()))
def test_family(module: str, name: str) -> None:
    def family(kind: Any, root: str) -> list[str]:
        return [base.__name__ for base in kind.__mro__ if base.__module__.startswith(root) and base.__name__[0] != "_"]

    theirs, mine = getattr(peer(module), name), getattr(ours(module), name)
    assert family(theirs, "qemu.qmp") == family(mine, "drover.compat")
    if issubclass(theirs, Exception):
        assert {base for base in theirs.__mro__ if base.__module__ == "builtins"} <= set(mine.__mro__)
    if issubclass(theirs, Enum):
        assert [(item.name, item.value) for item in theirs] == [(item.name, item.value) for item in mine]


def members() -> Iterator[Any]:
    for parameters in kinds():
        module, name = parameters.values
        theirs = getattr(peer(module), name)
        for member in dir(theirs):
            home = next((base for base in theirs.__mro__ if member in vars(base)), type)  # else its metaclass's
            known = home.__module__.startswith("qemu.qmp") and (not member.startswith("_") or member in USED)
            if known and (name, member) not in DROPPED and not issubclass(theirs, Enum):
                yield pytest.param(module, name, member, id=f"{parameters.id}.{member}")


@pytest.mark.parametrize(("module", "name", "member"), list(members()))
def test_member(module: str, name: str, member: str) -> None:
    kind_of_theirs, kind_of_mine = getattr(peer(module), name), getattr(ours(module), name)
    theirs, mine = (inspect.getattr_static(kind, member) for kind in (kind_of_theirs, kind_of_mine))
    if isinstance(theirs, property):
        settable = theirs.fset is not None
        assert isinstance(mine, property)
        assert settable <= (mine.fset is not None)
        return
    assert isinstance(theirs, classmethod) == isinstance(mine, classmethod)
    theirs, mine = getattr(kind_of_theirs, member), getattr(kind_of_mine, member)
    if (callable(theirs) and member != "__init__") or inspect.isfunction(mine):
        assert shape(theirs) == shape(mine)
        assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(mine)


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (".qmp_client", "QMPClient", ("x",)),
        (".events", "EventListener", ("STOP",)),
        (".message", "Message", ({"a": 1},)),
        (".models", "Greeting", ({"QMP": {"version": {}, "capabilities": []}},)),
        (".models", "ErrorResponse", ({"error": {"class": "a", "desc": "b"}, "id": 1},)),
        (".models", "ErrorInfo", ({"class": "a", "desc": "b"},)),
        (".error", "ProtocolError", ("x",)),
        (".protocol", "ConnectError", ("x", OSError("y"))),
        (".protocol", "StateError", ("x", 1, 2)),
        (".message", "DeserializationError", ("x", b"y")),
        (".message", "UnexpectedTypeError", ("x", 1)),
        (".qmp_client", "ServerParseError", ("x", {"a": 1})),
        (".qmp_client", "BadReplyError", ("x", {"a": 1}, {"b": 2})),
        (".qmp_client", "GreetingError", ("x", OSError("y"))),
        (".qmp_client", "NegotiationError", ("x", OSError("y"))),
        (".qmp_client", "ExecInterruptedError", ("x",)),
        (".legacy", "QMPBadPortError", ("x",)),
        (".legacy", "QEMUMonitorProtocol", ("/nowhere",)),
    ],
)
def test_what_an_object_shows(module: str, name: str, arguments: tuple[Any, ...]) -> None:
    theirs, mine = getattr(peer(module), name)(*arguments), getattr(ours(module), name)(*arguments)
    try:
        assert {key for key in vars(theirs) if not key.startswith("_")} <= set(dir(mine))
        if isinstance(theirs, Exception):
            assert (str(theirs), theirs.args, repr(theirs)) == (str(mine), mine.args, repr(mine))
        elif name != "QEMUMonitorProtocol":
            assert repr(theirs) == repr(mine)
    finally:
        if (loop := getattr(theirs, "_aloop", None)) is not None:  # the peer makes one, and leaves it open
            importlib.import_module("asyncio").set_event_loop(None)
            loop.close()


def test_logger_names_differ_by_the_package_only() -> None:
    for module, name in ((".protocol", "AsyncProtocol"), (".qmp_client", "QMPClient")):
        for arguments in ((), ("it",)):
            theirs = getattr(peer(module), name)(*arguments).logger.name
            mine = getattr(ours(module), name)(*arguments).logger.name
            assert theirs.replace("qemu.qmp", "drover.compat.qmp") == mine
