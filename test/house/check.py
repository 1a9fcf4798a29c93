"""The house check: does every module under lib/ keep to the floors and ceilings of doc/design.md?

Reads the sources by `ast`, imports none of them. Each fault is one line, `file:line: rule: what`.
Run as a script it prints them and exits 1 if there are any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = "drover"
DESIGN = "doc/design.md"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


class DesignError(Exception):
    """The tables of doc/design.md cannot be read: says where and what."""


@dataclass(frozen=True)
class Room:
    """One row of the table of floors, with its `imports` cell worked out."""

    name: str
    allowed: frozenset[str]
    """The rooms that every module of this one may import."""
    allowed_in: frozenset[tuple[str, str]] = frozenset()
    """(module, room): what only that module may import besides."""
    forbidden: frozenset[str] = frozenset()
    """Top-level names of other packages that no module here may import."""


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room it lies in: `qmp` for drover.qmp.session, `drover` for lib/__init__.py."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else PACKAGE

    @property
    def is_package(self) -> bool:
        """Whether it is an `__init__.py`, from where relative imports count one level less."""
        return self.path.endswith("/__init__.py")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All that is in it: several rules go through it."""
        return list(ast.walk(self.tree))


@dataclass(frozen=True)
class Edge:
    """One import: the module or package that is named, and where."""

    target: str
    line: int


@dataclass
class House:
    """All that was read: the rules and the sources."""

    rooms: dict[str, Room]
    modules: dict[str, Module] = field(default_factory=dict)

    @cached_property
    def classes(self) -> dict[str, list[ast.ClassDef]]:
        """The classes of each bare name: near enough to look up a base, as few names are taken twice."""
        found: dict[str, list[ast.ClassDef]] = {}
        for module in self.modules.values():
            for node in module.nodes:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(node)
        return found


# --- the tables ----------------------------------------------------------------------------------------------------


def table(text: str, *header: str) -> Iterator[tuple[int, list[str]]]:
    """The rows (line number, cells) of the one table with this header."""
    lines = text.splitlines()
    wanted = list(header)
    starts = [number for number, line in enumerate(lines) if cells(line) == wanted]
    if len(starts) != 1:
        raise DesignError(f"{DESIGN}:1: tables: {len(starts)} tables have the header | {' | '.join(header)} |, not one")
    for number in range(starts[0] + 2, len(lines)):
        if not lines[number].startswith("|"):
            return
        row = cells(lines[number])
        if len(row) != len(wanted):
            raise DesignError(f"{DESIGN}:{number + 1}: tables: {len(row)} cells, not {len(wanted)}")
        yield number + 1, row


def cells(line: str) -> list[str]:
    """The cells of one line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def read_rooms(text: str) -> dict[str, Room]:
    """The rooms of doc/design.md by name."""
    rows = list(table(text, "floor", "room", "imports", "what"))
    floors: dict[str, float] = {}
    for line, (floor, name, _, _) in rows:
        if floor not in ("–", "top") and not floor.isdecimal():
            raise DesignError(f"{DESIGN}:{line}: floors: {floor!r} is neither a number, nor top, nor –")
        if floor != "–":
            floors[name.strip("`")] = float("inf") if floor == "top" else int(floor)
    names = {row[1].strip("`") for _, row in rows}
    forbidden = read_forbidden(text, names)
    return {
        name.strip("`"): read_room(line, name.strip("`"), imports, floors, names, forbidden)
        for line, (_, name, imports, _) in rows
    }


def read_room(
    line: int, name: str, imports: str, floors: dict[str, float], names: set[str], forbidden: dict[str, set[str]]
) -> Room:
    """One room: its `imports` cell is a list of: nothing | below | `room` | `room` and below | `room` in `module`."""
    allowed: set[str] = set()
    allowed_in: set[tuple[str, str]] = set()
    for term in imports.split(","):
        found = re.fullmatch(r"nothing|below|`(\w+)`(?: (and below)| in `([\w.]+)`)?", term.strip())
        if found is None or (found[1] and found[1] not in names) or (term.strip() == "below" and name not in floors):
            raise DesignError(f"{DESIGN}:{line}: floors: cannot read {term.strip()!r} in the row of {name}")
        room, and_below, module = found.groups()
        if module:
            allowed_in.add((f"{PACKAGE}.{module}", room))
        elif room:
            allowed.add(room)
        if and_below or term.strip() == "below":
            allowed |= {other for other, floor in floors.items() if floor < floors[room or name]}
    return Room(name, frozenset(allowed), frozenset(allowed_in), frozenset(forbidden.get(name, ())))


def read_forbidden(text: str, names: set[str]) -> dict[str, set[str]]:
    """By room, the packages of others that it never imports."""
    forbidden: dict[str, set[str]] = {}
    for line, (rooms, packages, _) in table(text, "rooms", "never import", "why"):
        for room in re.split(r",\s*", rooms):
            if room.strip("`") not in names:
                raise DesignError(f"{DESIGN}:{line}: forbidden imports: there is no room {room}")
            forbidden.setdefault(room.strip("`"), set()).update(re.split(r",\s*", packages))
    return forbidden


# --- the sources ---------------------------------------------------------------------------------------------------


def read_house(top: Path) -> House:
    """The tables and every source file under `top`."""
    house = House(read_rooms((top / DESIGN).read_text(encoding="utf-8")))
    for path in sorted((top / "lib").rglob("*.py")):
        inside = path.relative_to(top / "lib").with_suffix("").parts
        name = ".".join((PACKAGE, *(inside[:-1] if inside[-1] == "__init__" else inside)))
        text = path.read_text(encoding="utf-8")
        shown = path.relative_to(top).as_posix()
        house.modules[name] = Module(name, shown, text, ast.parse(text, filename=shown))
    return house


def imports(module: Module, known: dict[str, Module]) -> Iterator[Edge]:
    """Every import of a module, wherever it stands; a name that is itself a module counts as that module."""
    for node in module.nodes:
        match node:
            case ast.Import(names=names):
                yield from (Edge(alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(names=names):
                base = import_base(module, node)
                for alias in names:
                    full = f"{base}.{alias.name}"
                    yield Edge(full if full in known else base, node.lineno)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if is_dynamic_import(function):
                yield Edge(name, node.lineno)


def import_base(module: Module, node: ast.ImportFrom) -> str:
    """The full name of what stands between `from` and `import`."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parents = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parents, *([node.module] if node.module else [])])


def is_dynamic_import(function: ast.expr) -> bool:
    """Whether this is what is called in `import_module("…")`, `importlib.import_module("…")` or `__import__("…")`."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


# --- the rules -----------------------------------------------------------------------------------------------------


def check(top: Path) -> list[str]:
    """Every fault found under `top`, in the order of the files."""
    try:
        house = read_house(top)
    except DesignError as error:
        return [str(error)]
    except SyntaxError as error:
        return [f"{error.filename}:{error.lineno}: syntax: {error.msg}"]
    faults = [fault for module in house.modules.values() for fault in check_module(house, module)]
    return faults + list(check_cycles(house.modules))


def check_module(house: House, module: Module) -> Iterator[str]:
    """The faults of one file."""
    lines = len(module.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{module.path}:{lines}: file size: {lines} lines, at most {MAX_FILE_LINES}"
    if module.room in house.rooms:
        yield from check_imports(house, module)
    else:
        yield f"{module.path}:1: floors: {DESIGN} has no row for the room {module.room}"
    yield from check_functions(module)
    yield from check_docstrings(house, module)


def check_imports(house: House, module: Module) -> Iterator[str]:
    """Imports that the module's row does not allow, and those that its room never does."""
    room = house.rooms[module.room]
    for edge in imports(module, house.modules):
        package, *rest = edge.target.split(".")
        target = rest[0] if rest else PACKAGE
        if package in room.forbidden:
            yield f"{module.path}:{edge.line}: forbidden import: {room.name} never imports {package}"
        elif (
            package == PACKAGE
            and target not in {room.name, *room.allowed}
            and (module.name, target) not in room.allowed_in
        ):
            yield f"{module.path}:{edge.line}: floors: {room.name} may not import {target} ({edge.target})"


def check_functions(module: Module) -> Iterator[str]:
    """Functions that are longer than the ceiling; the docstring does not count."""
    for node in module.nodes:
        if isinstance(node, Function):
            lines = last_line(node) - node.lineno + 1 - docstring_lines(node)
            if lines > MAX_FUNCTION_LINES:
                yield (
                    f"{module.path}:{node.lineno}: function size: {node.name} has {lines} lines, "
                    f"at most {MAX_FUNCTION_LINES}"
                )


def docstring_lines(node: Function) -> int:
    """How many lines the docstring takes."""
    return last_line(node.body[0]) - node.body[0].lineno + 1 if ast.get_docstring(node) is not None else 0


def last_line(node: ast.stmt) -> int:
    """The line where a statement ends."""
    return node.end_lineno or node.lineno


def check_docstrings(house: House, module: Module) -> Iterator[str]:
    """Modules, and public classes and functions, that say nothing of themselves."""
    if ast.get_docstring(module.tree) is None:
        yield f"{module.path}:1: docstring: the module has none"
    for owners, node in public_names(module.tree):
        if ast.get_docstring(node) is None and not (owners and is_inherited(house, owners[-1], node.name)):
            name = ".".join([*(owner.name for owner in owners), node.name])
            yield f"{module.path}:{node.lineno}: docstring: {name} has none"


def public_names(
    scope: ast.Module | ast.ClassDef, owners: tuple[ast.ClassDef, ...] = ()
) -> Iterator[tuple[tuple[ast.ClassDef, ...], Function | ast.ClassDef]]:
    """What can be reached from outside, with the classes it lies in: nothing with an underscore, nothing local."""
    for node in statements(scope):
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_") or is_echo(node):
            continue
        yield owners, node
        if isinstance(node, ast.ClassDef):
            yield from public_names(node, (*owners, node))


def is_inherited(house: House, owner: ast.ClassDef, name: str) -> bool:
    """Whether a base class in this house documents the method: what help() shows then."""
    return any(
        isinstance(node, Function) and node.name == name and ast.get_docstring(node) is not None
        for base in ancestors(house, owner)
        for node in statements(base)
    )


def ancestors(house: House, owner: ast.ClassDef) -> list[ast.ClassDef]:
    """The base classes, and theirs, as far as they are of this house."""
    found = [owner]
    for node in found:
        for expression in node.bases:
            named = expression.value if isinstance(expression, ast.Subscript) else expression
            name = named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", "")
            found += [base for base in house.classes.get(name, ()) if base not in found]
    return found[1:]


def statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module or class, those under `if`, `try` and `with` too."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, Function | ast.ClassDef):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from statements(child)


def is_echo(node: Function | ast.ClassDef) -> bool:
    """Whether this says again what another definition documents: an overload, or a property's setter or deleter."""
    names = [d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in node.decorator_list]
    return bool({"overload", "setter", "deleter"} & set(names))


def check_cycles(modules: dict[str, Module]) -> Iterator[str]:
    """Each cycle of imports, told where its first import stands."""
    graph = {
        name: {edge.target: edge.line for edge in imports(module, modules) if edge.target in modules}
        for name, module in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> Iterator[str]:
        if name in path:
            cycle = [*path[path.index(name) :], name]
            line = graph[cycle[0]][cycle[1]]
            yield f"{modules[name].path}:{line}: import cycle: {' -> '.join(cycle)}"
        elif name not in done:
            for target in graph[name]:
                yield from visit(target, [*path, name])
            done.add(name)

    for name in graph:
        yield from visit(name, [])


def main() -> int:
    """Check the tree this file lies in; the exit status."""
    top = Path(__file__).resolve().parents[2]
    faults = check(top)
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"house: {len(faults)} faults" if faults else "house: every module keeps to its floor")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
