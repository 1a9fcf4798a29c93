"""Types that JSON is read into are ready once they are imported: two threads that made them so at once would crash."""

import ast
import gc
import importlib
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

TOP = Path(__file__).resolve().parents[3]
LIB = TOP / "lib"
ROOMS = ("qmp", "ops", "monitor", "store", "kvm", "node", "events", "compat")  # the others talk to people
# A type that a call does not name: what may stand there is named where the types are listed.
LISTED = {
    "kind.type": "drover.kvm.kinds: [kind.type for kind in KINDS.values()]",
    "known.type": "drover.qmp.event_types: [known.type for known in EVENTS.values()]",
    "kind": "drover.kvm.kinds: [Memory]",  # the rest comes by way of `ask`, or is part of a specification
}


def read_into() -> Iterator[tuple[str, int, str, Any]]:
    """Each type that something in lib/ is read into: file, line, the words, and the type."""
    for path in (path for room in ROOMS for path in sorted((LIB / room).rglob("*.py"))):
        name = ".".join(["drover", *path.relative_to(LIB).with_suffix("").parts]).removesuffix(".__init__")
        tree, names = ast.parse(path.read_text()), dict[str, Any]()
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (kind := type_of(call)) is not None:
                names = names or names_in(tree, name, is_package=path.name == "__init__.py")
                yield str(path.relative_to(TOP)), call.lineno, kind, found(kind, names)


def names_in(tree: ast.Module, name: str, *, is_package: bool) -> dict[str, Any]:
    """What a module knows by name, also what only one of its functions imports."""
    module = importlib.import_module(name)
    package = name if is_package else name.rpartition(".")[0]
    names: dict[str, Any] = {}
    for line in ast.walk(tree):
        if isinstance(line, ast.ImportFrom):
            there = importlib.import_module("." * line.level + (line.module or ""), package)
            names |= {each.asname or each.name: getattr(there, each.name, None) for each in line.names}
    return names | vars(module)


def type_of(call: ast.Call) -> str | None:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = next((each.value for each in call.keywords if each.arg == "type"), None)
    if function == "ask" and not ast.unparse(call.func).endswith("port.ask"):
        return None
    place = {"convert": 1, "ask": 1, "Decoder": 0}.get(function, -1)
    if 0 <= place < len(call.args):
        return ast.unparse(call.args[place])
    return ast.unparse(named) if named is not None and function in ("decode", "Decoder", "convert") else None


def found(kind: str, names: dict[str, Any]) -> Any:
    if kind in LISTED and kind not in names:
        module, _, text = LISTED[kind].partition(": ")
        return tuple(eval(text, vars(importlib.import_module(module))))
    return eval(kind, names)


def structs_in(kind: Any) -> Iterator[type[Struct]]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind
    for inner in kind if isinstance(kind, tuple) else typing.get_args(kind):
        yield from structs_in(inner)


def is_ready(kind: type[Struct]) -> bool:
    """Whether msgspec has looked at a type: what it found is a part of the type then."""
    return any(type(part).__name__ == "StructInfo" for part in gc.get_referents(kind))


def test_the_sign_is_one() -> None:
    class Fresh(Struct):
        inner: int

    assert not is_ready(Fresh)
    msgspec.json.Decoder(Fresh)
    assert is_ready(Fresh)


def test_all_are_ready() -> None:
    """Asked in a process of its own, where no other test has read anything."""
    env = {"PYTHONPATH": f"{TOP}/build/py"}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), f"no ready(...) for these:\n{done.stdout}{done.stderr}"


def unready() -> list[str]:
    """Those that are not, and a word of how many were looked at."""
    said, count = [], 0
    for path, line, words, kind in read_into():
        for struct in structs_in(kind):
            count += 1
            if not is_ready(struct):
                said.append(f"{path}:{line}: {words}: {struct.__module__}.{struct.__qualname__}")
    assert count > 60, count
    return said


@pytest.mark.parametrize("round", range(3))
def test_many_threads_read_their_first_document_at_once(round: int) -> None:
    """What crashed each time: sixteen, which switch as often as can be."""
    script = (
        "import sys, threading; sys.setswitchinterval(1e-7)\n"
        "import msgspec; from drover.kvm.record import Document\n"
        "data = b'{\"schema\": 1, \"spec\": {\"name\": \"a\", \"disks\": [{\"source\": \"/a\"}], \"nics\": [{}]}}'\n"
        "start, read = threading.Barrier(16), []\n"
        "def run(): start.wait(); read.append(msgspec.json.decode(data, type=Document).spec.name)\n"
        "threads = [threading.Thread(target=run) for _ in range(16)]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]; print(len(read))"
    )
    env = {"PYTHONPATH": f"{TOP}/build/py"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "16\n"), done.stderr


if __name__ == "__main__":
    for fault in unready():
        print(fault)
