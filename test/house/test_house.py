"""The house keeps to doc/design.md, and the check really sees each kind of fault."""

from pathlib import Path

import pytest

from house.check import MAX_FILE_LINES, MAX_FUNCTION_LINES, check

pytestmark = pytest.mark.once  # it reads sources, and runs nothing of them

TOP = Path(__file__).resolve().parents[2]

LONG_FUNCTION = "def f() -> None:\n    '''Long.'''\n" + "    f()\n" * MAX_FUNCTION_LINES

FAULTS = {
    "upwards": ({"qmp/a.py": "from drover.ops import b"}, "lib/qmp/a.py:2: floors: qmp may not import ops"),
    "upwards, relative": ({"qmp/a.py": "from ..ops import b"}, "floors: qmp may not import ops (drover.ops)"),
    "upwards, lazily": ({"qmp/a.py": "def _f():\n    import drover.ops.b"}, "qmp/a.py:3: floors:"),
    "upwards, by name": (
        {"qmp/a.py": "import importlib\nimportlib.import_module('drover.ops')"},
        "qmp/a.py:3: floors: qmp may not import ops",
    ),
    "the public names from below": ({"ops/a.py": "from drover import QmpConnection"}, "ops may not import drover"),
    "same floor": ({"node/a.py": "import drover.events"}, "node may not import events"),
    "beside the house": ({"monitor/a.py": "import drover.testing.fake"}, "monitor may not import testing"),
    "testing outside the demo": ({"cli/a.py": "import drover.testing"}, "cli may not import testing"),
    "compat upwards": ({"compat/a.py": "import drover.kvm"}, "compat may not import kvm"),
    "forbidden package": (
        {"ops/a.py": "def _f():\n    from time import sleep"},
        "lib/ops/a.py:3: forbidden import: ops never imports time",
    ),
    "unknown room": ({"attic/a.py": ""}, "lib/attic/a.py:1: floors: doc/design.md has no row for the room attic"),
    "cycle": (
        {"qmp/a.py": "from . import b", "qmp/b.py": "def _f():\n    from drover.qmp.a import x"},
        "lib/qmp/a.py:2: import cycle: drover.qmp.a -> drover.qmp.b -> drover.qmp.a",
    ),
    "cycle through the package": (
        {"qmp/__init__.py": "from .a import x", "qmp/a.py": "from drover.qmp import y"},
        "import cycle: drover.qmp -> drover.qmp.a -> drover.qmp",
    ),
    "long file": ({"qmp/a.py": "x = 1\n" * MAX_FILE_LINES}, "file size: 501 lines, at most 500"),
    "long function": ({"qmp/a.py": LONG_FUNCTION}, "qmp/a.py:2: function size: f has 51 lines, at most 50"),
    "function undocumented": ({"qmp/a.py": "def f(): pass"}, "qmp/a.py:2: docstring: f has none"),
    "method undocumented": (
        {"qmp/a.py": "if 1:\n    class C:\n        '''C.'''\n        async def m(self): pass"},
        "qmp/a.py:5: docstring: C.m has none",
    ),
    "method that no base documents": (
        {"qmp/a.py": "class B:\n    'B.'\n    def _m(self): pass\nclass C(B):\n    'C.'\n    def m(self): pass"},
        "qmp/a.py:7: docstring: C.m has none",
    ),
    "broken source": ({"qmp/a.py": "def"}, "lib/qmp/a.py:2: syntax:"),
}

FINE = {
    "downwards": {
        "errors.py": "",
        "monitor/a.py": "import asyncio\nfrom drover import errors\nfrom ..qmp import a as q\nimport drover.ops",
    },
    "the demo's guest": {"cli/demo.py": "import click\nfrom drover.testing import fake"},
    "the public names": {"__init__.py": "def __getattr__(n):\n    from drover.monitor import a\n    import drover.web"},
    "private, nested, echoed": {
        "qmp/a.py": "import typing\ndef _f():\n    def g(): pass\n    class C: pass\n"
        "@typing.overload\ndef h(): ...\nclass _P:\n    def m(self): pass"
    },
    "documented by a base in another room": {
        "qmp/a.py": "class Base:\n    'B.'\n    def m(self):\n        'M.'",
        "ops/a.py": "from drover.qmp import a\nclass C(a.Base[int]):\n    'C.'\n"
        "class D(C):\n    'D.'\n    def m(self): pass",
    },
    "as long as allowed": {"qmp/a.py": LONG_FUNCTION.replace("    f()\n", "", 1)},
}


def build(top: Path, sources: dict[str, str]) -> Path:
    """A tree with the real tables and these sources, each below a docstring of one line."""
    (top / "doc").mkdir()
    (top / "doc/design.md").write_text((TOP / "doc/design.md").read_text())
    for name, text in sources.items():
        path = top / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"'''A module.'''\n{text}")
    return top


def test_this_house_stands() -> None:
    """No fault in lib/ itself."""
    assert check(TOP) == []


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_seen(case: str, tmp_path: Path) -> None:
    """Each kind of fault gives exactly one line, which names the file, the line and the rule."""
    sources, expected = FAULTS[case]
    (fault,) = check(build(tmp_path, sources))
    assert expected in fault


@pytest.mark.parametrize("case", FINE)
def test_no_false_alarm(case: str, tmp_path: Path) -> None:
    """What the tables allow is left alone."""
    assert check(build(tmp_path, FINE[case])) == []


def test_module_without_docstring(tmp_path: Path) -> None:
    """An empty file does not say what it is."""
    top = build(tmp_path, {"qmp/a.py": ""})
    (top / "lib/qmp/a.py").write_text("")
    assert check(top) == ["lib/qmp/a.py:1: docstring: the module has none"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("| 1 | `qmp` | below |", "| 1 | `qmp` | whatever |", "floors: cannot read 'whatever' in the row of qmp"),
        ("| 1 | `qmp` |", "| first | `qmp` |", "floors: 'first' is neither a number"),
        ("| `qmp`, `ops` | asyncio", "| `attic` | asyncio", "forbidden imports: there is no room `attic`"),
        ("| floor | room |", "| storey | room |", "0 tables have the header | floor | room | imports | what |"),
        ("| 0 | `errors` | nothing |", "| 0 | `errors` |", "tables: 3 cells, not 4"),
    ],
)
def test_tables_that_cannot_be_read(old: str, new: str, expected: str, tmp_path: Path) -> None:
    """A slip in doc/design.md is told, rather than taken for a rule that allows all."""
    design = build(tmp_path, {"qmp/a.py": ""}) / "doc/design.md"
    design.write_text(design.read_text().replace(old, new))
    (fault,) = check(tmp_path)
    assert fault.startswith("doc/design.md:")
    assert expected in fault
