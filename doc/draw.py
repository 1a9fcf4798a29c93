"""Draws into doc/*.md what the code holds as tables, so that the pages cannot drift from it.

    doc/draw.py           writes the pages anew
    doc/draw.py --check   only says which ones are out of date, or name what is not there, and fails
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "build" / "py"))

import msgspec  # noqa: E402
import msgspec.inspect as types  # noqa: E402

from drover.kvm.spec import Secret  # noqa: E402
from drover.kvm.spec import devices as spec_devices  # noqa: E402
from drover.kvm.spec import model as spec_model  # noqa: E402
from drover.kvm.spec.reader import describe  # noqa: E402
from drover.migration import arrival, machine  # noqa: E402
from drover.migration import combinations as together  # noqa: E402
from drover.migration import states as migration_states  # noqa: E402
from drover.migration.states import STEP, Step  # noqa: E402
from drover.ops.migration_settings import CAPABILITIES, PARAMETERS, Setting  # noqa: E402
from drover.ops.slots import BRIDGES, BusKind  # noqa: E402
from drover.qmp import agent, session  # noqa: E402
from drover.qmp.event_types.base import Known  # noqa: E402
from drover.qmp.event_types.block import BLOCK_EVENTS  # noqa: E402
from drover.qmp.event_types.device import DEVICE_EVENTS  # noqa: E402
from drover.qmp.event_types.display import DISPLAY_EVENTS  # noqa: E402
from drover.qmp.event_types.machine import MACHINE_EVENTS  # noqa: E402
from drover.qmp.event_types.migration import MIGRATION_EVENTS  # noqa: E402
from drover.qmp.timeouts import COMMAND_TIMEOUTS, DEFAULT_TIMEOUT  # noqa: E402
from drover.store import job, owner  # noqa: E402

BLOCK = re.compile(r"(<!-- draw: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def states(kind: type[Enum], moves: Mapping[Any, Collection[Any]]) -> str:
    """The states of a session and its moves, as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {state.name}: {state.value}" for state in kind]
    lines += [f"    [*] --> {next(iter(kind)).name}"]
    lines += [f"    {state.name} --> {to.name}" for state in kind for to in kind if to in moves[state]]
    return "\n".join([*lines, "```"])


def steps() -> str:
    """The steps of a migration, and how one leads to another."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> plan"]
    ways = {(STEP[state], STEP[to]): None for state, rows in machine.MOVES.items() for _, to in rows}
    ways |= {(Step.RECOVER, STEP[to]): None for _, to in machine.JUDGE}
    order = list(Step)
    for here, there in sorted(ways, key=lambda way: (order.index(way[0]), order.index(way[1]))):
        if here is not there:
            lines.append(f"    {here} --> {'[*]' if there is Step.END else there}")
    return "\n".join([*lines, "```"])


def moves(table: Mapping[Any, Collection[tuple[Callable[..., bool], Any]]], module: Any, cls: type[Enum]) -> str:
    """Every state of a machine, what it waits for, and in which order what leads where."""
    means = attribute_docs(module, cls)
    lines = ["| state | what it waits for | what is looked at, in this order, and where it leads |", "|---|---|---|"]
    for state, rows in table.items():
        ways = [f"{fact.__name__.replace('_', ' ')} → **{to}**" for fact, to in rows]
        lines.append(f"| **{state}** | {means.get(state.name, 'the end')} | {'<br>'.join(ways)} |")
    return "\n".join(lines)


def judged() -> str:
    """Where it goes on from, when nothing is known but what the record and both sides say."""
    lines = ["| what they say, in this order | it goes on with |", "|---|---|"]
    return "\n".join([*lines, *(f"| {fact.__name__.replace('_', ' ')} | **{to}** |" for fact, to in machine.JUDGE)])


TRIED = {"7": (7, 2), "10": (10, 0)}


def features_together() -> str:
    """What a migration may do, and from which QEMU on."""
    lines = ["| | feature | side | QEMU |", "|---|---|---|---|"]
    for number, (feature, sets) in enumerate(together.FEATURES.items(), 1):
        lines.append(f"| {number} | `{feature}` | {side_of(sets.setting)} | {versions_of(sets.setting)} |")
    return "\n".join(lines)


def refused_together() -> str:
    """Each row of the table of combinations."""
    lines = ["| what | over | why not | what to do | 7.2 | 10.0 |", "|---|---|---|---|---|---|"]
    for row in together.ROWS:
        what = " with ".join(f"`{feature}`" for feature in sorted(row.on)) or "any"
        what += "".join(f", without `{feature}`" for feature in row.off)
        what += f", without {row.unless}" if row.unless else ""
        what += "{} {}.{} or before".format(", " + SIDES[row.side], *row.until) if row.until else ""
        over = "all" if len(row.over) == len(together.Transport) else ", ".join(map(str, sorted(row.over)))
        known = [row.known_of(version, version) if applies(row, version) else "" for version in TRIED.values()]
        lines.append(f"| {what} | {over} | {row.why} | {row.do} | {' | '.join(known)} |")
    return "\n".join(lines)


SIDES = {together.Side.BOTH: "either side", together.Side.TARGET: "target"}


def applies(row: together.Row, version: tuple[int, int]) -> bool:
    """Whether a row says something of a version, on the side that it is about, where the other has all that is new."""
    source = max(TRIED.values()) if row.side is together.Side.TARGET else version
    has = all((together.FEATURES[feature].setting.since or source) <= source for feature in row.on)
    return has and (row.until is None or version <= row.until)


def pairs_together() -> str:
    """For every two features, between which versions they may go together, over whatever allows most."""
    features = list(together.Feature)
    lines = [f"| | {' | '.join(str(number) for number in range(1, len(features)))} |"]
    lines.append("|---" * len(features) + "|")
    for number, one in enumerate(features[1:], 2):
        cells = [between({one, other}) for other in features[: number - 1]]
        lines.append(f"| {number} `{one}` | {' | '.join(cells + [''] * (len(features) - 1 - len(cells)))} |")
    return "\n".join(lines)


def between(wanted: Collection[together.Feature]) -> str:
    """The pairs of versions between which features may be together."""
    found = []
    for (here, source), (there, target) in product(TRIED.items(), repeat=2):
        ways = [
            together.with_needs({*wanted, *([together.Feature.RETURN_PATH] if over in together.CONNECTIONS else [])})
            for over in together.Transport
        ]
        have = tuple(together.Have)
        if any(
            not together.refused(way, over, source, target, have=have)
            for way, over in zip(ways, together.Transport, strict=True)
        ):
            found.append(f"{here}→{there}")
    return "all" if len(found) == len(TRIED) ** 2 else "<br>".join(found) or "–"


def untried() -> str:
    """What is allowed and was not tried."""
    return "\n".join(
        ["| what | why not |", "|---|---|", *(f"| {what} | {why} |" for what, why in together.UNTRIED.items())]
    )


def owner_moves() -> str:
    """What may follow what in the record of a machine's owner."""
    lines = ["| phase | next | epoch | owner |", "|---|---|---|---|"]
    named = {True: "becomes the other", False: "stays", None: "stays or becomes another"}
    for phase, nexts in owner.MOVES.items():
        for to, step in nexts.items():
            lines.append(f"| {phase} | {to} | {'+1' if step.epoch else 'same'} | {named[step.moves]} |")
    return "\n".join(lines)


def attribute_docs(module: Any, cls: type) -> dict[str, str]:
    """The texts below the members of a class, each of which says what it means."""
    body = next(
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    return {
        one.targets[0].id: " ".join(text.value.value.split())
        for one, text in pairwise(body)
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }  # fmt: skip


def settings(table: Mapping[str, Setting]) -> str:
    """A table of migration capabilities or parameters."""
    lines = ["| name | side | type | QEMU |", "|---|---|---|---|"]
    for name, setting in table.items():
        kind = setting.kind.__name__ + (f", {setting.unit}" if setting.unit else "")
        lines.append(f"| `{name}` | {side_of(setting)} | {kind} | {versions_of(setting)} |")
    return "\n".join(lines)


def side_of(setting: Setting) -> str:
    """Where a setting has its effect."""
    return "both" if len(setting.side) > 1 else str(setting.side.name).lower()


def versions_of(setting: Setting) -> str:
    """Which QEMUs have a setting."""
    since = "{}.{} and later".format(*setting.since) if setting.since else ""
    until = "up to {}.{}".format(*setting.until) if setting.until else ""
    return since or until or "all"


def timeouts() -> str:
    """The timeouts of commands that are slow by nature."""
    lines = ["| command | seconds |", "|---|---|", f"| any other | {DEFAULT_TIMEOUT:g} |"]
    return "\n".join([*lines, *(f"| `{command}` | {seconds:g} |" for command, seconds in COMMAND_TIMEOUTS.items())])


def bridges() -> str:
    """Which slots of which bridge take hotplug."""

    def slots(kind: BusKind) -> str:
        return f"{kind.first} to {kind.first + kind.slots - 1}" if kind.slots > 1 else ("none", "0")[kind.slots]

    rows = [f"| `{vendor:04x}:{device:04x}` | {slots(kind)} |" for (vendor, device), kind in BRIDGES.items()]
    return "\n".join(["| PCI id of the bridge | slots |", "|---|---|", *rows])


def events(table: Mapping[str, Known]) -> str:
    """Events of one theme: a row for each, and below it one for each member."""
    lines = ["| event | QEMU | what |", "|---|---|---|"]
    for name, known in sorted(table.items()):
        meaning, _ = documented(known.type)
        since, until = "{}.{}".format(*known.since), "{}.{}".format(*known.until) if known.until else ""
        lines.append(f"| **`{name}`** | {since}{f' to {until}' if until else ''} | {meaning} |")
        lines += members(types.type_info(known.type), known, "", "")
    return "\n".join(lines)


def members(kind: types.Type, known: Known, shown: str, path: str) -> list[str]:
    """The rows of an object's members, and of the members of those."""
    assert isinstance(kind, types.StructType)
    _, meanings = documented(kind.cls)
    rows = []
    for field in kind.fields:
        inner, values = stripped(field.type)
        later = known.later.get(path + field.name)
        since = "since {}.{}".format(*later) if later else "" if field.required else "optional"
        what = meanings[field.name] + (f" ({', '.join(f'`{value}`' for value in values)})" if values else "")
        rows.append(f"| `{shown}{field.encode_name}` {NAMES.get(type(inner), 'object')} | {since} | {what} |")
        if isinstance(inner, types.StructType):
            rows += members(inner, known, f"{shown}{field.encode_name}.", f"{path}{field.name}.")
    return rows


NAMES = {types.StrType: "text", types.IntType: "number", types.BoolType: "true or false"}


def stripped(kind: types.Type) -> tuple[types.Type, list[str]]:
    """A member's type without its ``| None``, and the values that are known of it."""
    if isinstance(kind, types.UnionType):
        kind = next(each for each in kind.types if not isinstance(each, types.NoneType))
    if isinstance(kind, types.Metadata):
        return kind.type, (kind.extra_json_schema or {})["examples"]
    return kind, []


def fields(cls: type[msgspec.Struct]) -> str:
    """The fields of one part of a specification."""
    kind = types.type_info(cls)
    assert isinstance(kind, types.StructType)
    _, meanings = documented(cls)
    lines = ["| field | what may stand there | default | meaning |", "|---|---|---|---|"]
    for field in kind.fields:
        default = "must be said" if field.required else spelt(field)
        what = allowed(field.type)
        if cls is spec_model.Spec and what.endswith(TABLE):
            what += f" [below](#{field.name})"
        lines.append(f"| `{field.name}` | {what} | {default} | {meanings[field.name]} |")
    return "\n".join(lines)


def spelt(field: types.Field) -> str:
    """A field's default, as a document has it."""
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if default is None or isinstance(default, msgspec.Struct):
        return "none" if default is None else "its defaults"
    if isinstance(field.type, types.Metadata) and (field.type.extra or {}).get("size") and default:
        return f'`"{default >> 20}MiB"`'
    return f"`{msgspec.json.encode(default).decode()}`"


TABLE = "a table"


def allowed(kind: types.Type) -> str:
    """What may stand in a field."""
    match kind:
        case types.UnionType():
            return next(allowed(each) for each in kind.types if not isinstance(each, types.NoneType))
        case types.StructType():
            return "a text" if kind.cls is Secret else TABLE
        case types.VarTupleType():
            return f"a list, each {allowed(kind.item_type)}"
        case types.DictType():
            return f"a table, each {allowed(kind.value_type)}"
        case types.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
    return describe(kind).replace("|", "\\|")


def documented(kind: type) -> tuple[str, dict[str, str]]:
    """What a type's docstring says of it, and of each of its members."""
    text = (inspect.getdoc(kind) or "").replace("``", "`")
    meaning, *fields = re.split(r"^:ivar ", text, flags=re.MULTILINE)
    return " ".join(meaning.split()), {
        name: " ".join(rest.split()) for name, _, rest in (field.partition(":") for field in fields)
    }


SPECIFICATION = [
    kind
    for module in (spec_model, spec_devices)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
]

DRAWINGS: dict[str, Callable[[], str]] = {
    "session-states": lambda: states(session.State, session.MOVES),
    "agent-states": lambda: states(agent.State, agent.MOVES),
    "job-states": lambda: states(job.JobState, job.MOVES),
    "owner-moves": owner_moves,
    "migration-steps": steps,
    "migration-moves": lambda: moves(machine.MOVES, migration_states, migration_states.State),
    "migration-judge": judged,
    "arrival-moves": lambda: moves(arrival.MOVES, arrival, arrival.Arrived),
    "migration-features": features_together,
    "migration-refused": refused_together,
    "migration-pairs": pairs_together,
    "migration-untried": untried,
    "capabilities": lambda: settings(CAPABILITIES),
    "parameters": lambda: settings(PARAMETERS),
    "timeouts": timeouts,
    "bridges": bridges,
    "machine-events": lambda: events(MACHINE_EVENTS),
    "block-events": lambda: events(BLOCK_EVENTS),
    "device-events": lambda: events(DEVICE_EVENTS),
    "migration-events": lambda: events(MIGRATION_EVENTS),
    "display-events": lambda: events(DISPLAY_EVENTS),
    **{f"spec-{part.__name__}": partial(fields, part) for part in SPECIFICATION},
}


def redrawn(text: str) -> str:
    """The page with each drawing made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{DRAWINGS[found[2]]()}\n{found[3]}", text)


LINK = re.compile(r"\[`?([^]`]+)`?\]\(([^)#:]+)\)")
MENTION = re.compile(r"`((?:lib|test|tools|doc|daemons)/[\w./-]+)`")


NAME = re.compile(r"(?:\w+\.)*([A-Za-z_]\w*)")


def dead(page: Path) -> list[str]:
    """What a page names and is not there: files, and what a link to a module has for its text: a function, a class."""
    text = page.read_text()
    faults = [f"no {path}" for path in MENTION.findall(text) if not (HERE.parent / path).exists()]
    for label, target in LINK.findall(text):
        path, name = page.parent / target, NAME.fullmatch(label)
        if not path.exists():
            faults.append(f"no {target}")
        elif name is not None and path.suffix == ".py" and label != path.name:
            bound = rf"^(?:\s*(?:async )?def {name[1]}\(|class {name[1]}\b|{name[1]}\b.* = )"
            if not re.search(bound, path.read_text(), re.MULTILINE):
                faults.append(f"no {label} in {target}")
    return faults


def main() -> int:
    """Redraw the pages, or check them."""
    check = sys.argv[1:] == ["--check"]
    pages = sorted(HERE.glob("**/*.md"))
    stale = [page for page in pages if redrawn(page.read_text()) != page.read_text()]
    faults = [f"{page.relative_to(HERE.parent)}: {fault}" for page in pages for fault in dead(page)] if check else []
    print("".join(f"{fault}\n" for fault in faults), end="")
    for page in stale:
        if check:
            print(f"{page.relative_to(HERE.parent)}: not what the tables say; run doc/draw.py")
        else:
            page.write_text(redrawn(page.read_text()))
    return int(check and bool(stale or faults))


if __name__ == "__main__":
    sys.exit(main())
