"""Whatever a document has in it: it is a specification, or it is said what is wrong with it, and that is all."""

import tomllib
from copy import deepcopy

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from argv_cases import CASES, FOLDER, Case
from drover.errors import ArgumentError, SpecError
from drover.kvm.argv import build
from drover.kvm.spec import Spec, completed, dump, load, parse

DOCUMENTS = [tomllib.loads((FOLDER / f"{case.name}.toml").read_text(encoding="utf-8")) for case in CASES]
TEXTS = """
0 - , / -1 1e9 a,b {fd:control} nbd:// nbd://[ nbd://h:0x1/ nbd+unix:// nbd+unix:///?socket rbd: [:: :: 1- 5-1 tcp::1-:2
tcp:- 127.0.0.1: [::1]:5900 1MiB 99999999999999999999TiB 0000:00:00.0 52:54:00:00:00:00 off
""".split()  # noqa: SIM905
ODD = st.one_of(
    st.sampled_from(["", "\0", "\n", "é" * 300, "x" * 300, *TEXTS]),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-1, 5),
    st.floats(),
    st.text(max_size=40),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(value, here=()):
    """Where something stands in a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*here, key)
        yield from places(inner, (*here, key))


@st.composite
def documents(draw):
    """One that is right, with one to three things in it that need not be."""
    document = deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(sorted(places(document), key=str)))
        inner = document
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = draw(ODD)
        if draw(st.booleans()) and isinstance(inner, dict):
            inner[draw(st.sampled_from(SOME_FIELDS))] = draw(ODD)
    return document


SOME_FIELDS = sorted({field.name for kind in (Spec, *Spec.__subclasses__()) for field in msgspec.structs.fields(kind)})


@settings(deadline=None, max_examples=400)
@given(documents())
def test_right_or_wrong(document):
    try:
        spec = parse(document)
    except SpecError as error:
        str(error)
        return
    assert load(dump(spec), "json") == spec
    whole = completed(spec)
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Spec) == whole
    try:
        made = build(whole, Case("any", whole, {}).given("10.0"))
    except ArgumentError:
        return  # no room for all that
    made.resolve(dict.fromkeys(made.fds, 7))


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["toml", "json"]))
def test_any_bytes(text, format):
    try:
        load(text, format)
    except SpecError:
        pass


@settings(deadline=None)
@given(ODD)
def test_anything_else(document):
    try:
        parse(document)
    except SpecError:
        pass
