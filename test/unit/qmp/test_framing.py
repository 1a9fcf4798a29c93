"""Any cut of any stream of messages gives the same messages, at the same cost per byte."""

import json
from collections import deque
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from drover.errors import ProtocolError
from drover.qmp.framing import LineFramer
from drover.qmp.messages import Message, MessageReader, nesting

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
replies = st.builds(lambda value, number: {"return": value, "id": number}, json_values, st.integers(0, 99))
events = st.builds(
    lambda name, data: {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}},
    st.text(min_size=1, max_size=10),
    st.dictionaries(st.text(max_size=8), json_values, max_size=4),
)
messages = st.lists(replies | events, max_size=8)
layouts = st.sampled_from([None, 0, 1, 4])
line_ends = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n", "\n \n"])


def encode(items: list[dict[str, Any]], indent: int | None, end: str) -> bytes:
    return "".join(json.dumps(item, indent=indent) + end for item in items).encode()


def plain(message: Message) -> dict[str, Any]:
    if message.event is not UNSET:
        return {"event": message.event, "data": message.data, "timestamp": {"seconds": 1, "microseconds": 2}}
    return {"return": message.value, "id": message.id}


def read(reader: MessageReader, pieces: list[bytes]) -> list[dict[str, Any]]:
    return [plain(message) for piece in pieces for message in reader.feed(piece)]


@given(messages, layouts, line_ends, st.data())
def test_any_cut_gives_the_same_messages(
    items: list[dict[str, Any]], indent: int | None, end: str, data: st.DataObject
) -> None:
    stream = encode(items, indent, end)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    reader = MessageReader()
    assert read(reader, pieces) == items
    assert reader.fault is None


@given(messages, layouts, line_ends)
def test_byte_by_byte_gives_the_same_messages(items: list[dict[str, Any]], indent: int | None, end: str) -> None:
    stream = encode(items, indent, end)
    assert read(MessageReader(), [stream[n : n + 1] for n in range(len(stream))]) == items


@given(st.lists(st.binary(max_size=30)))
def test_framer_loses_and_adds_nothing(pieces: list[bytes]) -> None:
    framer = LineFramer()
    blocks = [framer.feed(piece) for piece in pieces]
    whole = b"".join(pieces)
    assert b"".join(blocks) == whole[: whole.rfind(b"\n") + 1]
    assert len(framer.rest) == len(whole) - len(b"".join(blocks))
    assert all(block.endswith(b"\n") for block in blocks if block)


def test_ten_mebibytes_byte_by_byte_end_at_all() -> None:
    """A framer that searches or copies its buffer again for each read would take hours."""
    size = 10 * 1024 * 1024
    framer = LineFramer()
    deque(map(framer.feed, repeat(b"x", size)), maxlen=0)
    assert len(framer.rest) == size
    assert len(framer.feed(b"\n")) == size + 1
    assert len(framer.rest) == 0


def test_a_read_that_ends_with_a_line_is_handed_through_uncopied() -> None:
    data = b'{"return": {}}\r\n'
    assert LineFramer().feed(data) is data


@pytest.mark.parametrize("indent", [None, 4])
def test_a_message_above_the_limit_is_a_fault_and_the_ones_before_count(indent: int | None) -> None:
    reader = MessageReader(limit=1000)
    small, big = {"return": 1, "id": 1}, {"return": ["x" * 90] * 20, "id": 2}
    stream = encode([small, big], indent, "\n")
    seen = [message for n in range(0, len(stream), 64) for message in reader.feed(stream[n : n + 64])]
    assert [plain(message) for message in seen] == [small]
    assert reader.fault is not None
    assert "limit of 1000 bytes" in str(reader.fault)


def test_a_line_above_the_limit_in_one_read_is_a_fault() -> None:
    framer = LineFramer(limit=10)
    assert framer.feed(b"0123456789\n" * 3) == b"0123456789\n" * 3
    with pytest.raises(ProtocolError, match="limit of 10 bytes"):
        framer.feed(b"ok\n0123456789a\n")


@pytest.mark.parametrize(
    "bad", [b"garbage", b'{"return": "\xff"}', b'{"return": NaN}', b"[]", b'{"event": 5}', b'{"return": }', b"}"]
)
def test_a_bad_line_is_quoted_and_what_came_before_counts(bad: bytes) -> None:
    reader = MessageReader()
    found = reader.feed(b'{"return": {}, "id": 1}\n' + bad + b' and more of it\n{"return": {}, "id": 2}\n')
    assert [message.id for message in found] == [1]
    assert reader.fault is not None
    assert reader.fault.excerpt.startswith(bad)
    assert repr(bad)[2:-1] in str(reader.fault)
    assert reader.feed(b'{"return": {}, "id": 3}\n') == []


def test_the_quote_is_short() -> None:
    reader = MessageReader()
    reader.feed(b"x" * 5000 + b"\n")
    assert reader.fault is not None
    assert len(reader.fault.excerpt) == 80


@given(json_values)
def test_nesting_is_zero_for_whole_values_and_ignores_strings(value: Any) -> None:
    assert nesting(json.dumps({"return": value}).encode()) == 0
    assert nesting(json.dumps({"return": value}).encode()[:-1]) == 1
