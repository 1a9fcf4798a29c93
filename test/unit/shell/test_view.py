"""What is shown: to people, to programs, to the log."""

import json
from typing import Any

import pytest

from drover.errors import CommandError, MonitorTimeout
from drover.qmp.messages import Event
from drover.shell.literal import LineError
from drover.shell.view import BURST, EVENTS_PER_SECOND, Pace, View, harmless, pointer

REFUSAL = CommandError("stop", "GenericError", "no \x1b[31mway")


class Seen:
    """A view, and what it printed."""

    def __init__(self, **options: Any) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.log: list[str] = []
        self.view = View(self.out.append, self.err.append, log=self.log.append, **options)


def test_replies() -> None:
    """One line; several, sorted, where that was asked for, or where it would not fit the terminal."""
    value = {"b": 1, "a": [1, 2]}
    for options, text in (
        ({}, '{"return": {"b": 1, "a": [1, 2]}}'),
        ({"json": True, "pretty": True}, '{"return": {"b": 1, "a": [1, 2]}}'),
        ({"people": True}, '{"return": {"b": 1, "a": [1, 2]}}'),
        ({"pretty": True}, json.dumps({"return": value}, indent=4, sort_keys=True)),
    ):
        seen = Seen(**options)
        seen.view.reply(value)
        assert seen.out == [text]
    seen = Seen(people=True)
    seen.view.width = lambda: 20
    seen.view.reply(value)
    assert seen.out == [json.dumps({"return": value}, indent=4, sort_keys=True)]


@pytest.mark.parametrize("people", [False, True])
def test_programs_get_json_only(people: bool) -> None:
    """Whatever happens is one document on a line of one stream."""
    seen = Seen(json=True, verbose=True, people=people)
    seen.view.sent("stop", {})
    seen.view.typed("info block")
    seen.view.refused(REFUSAL)
    seen.view.failed(REFUSAL)
    seen.view.trouble(LineError("what?", 3), "a b c")
    seen.view.trouble(MonitorTimeout("stop", 5))
    seen.view.note("by the way")
    seen.view.output("a\nb")
    assert seen.err == []
    assert [json.loads(line) for line in seen.out] == [
        {"error": {"class": "GenericError", "desc": REFUSAL.desc}},
        {"error": {"class": "GenericError", "desc": REFUSAL.desc}},
        {"error": {"class": "LineError", "desc": "what?", "position": 3}},
        {"error": {"class": "MonitorTimeout", "desc": "stop: no answer within 5 s"}},
        {"return": "a\nb"},
    ]


def test_a_terminal_does_not_obey_what_a_guest_wrote() -> None:
    """Control characters are shown as escapes, wherever they come from; a program gets them as they are."""
    nasty = "a\x1b]0;title\x07\x9b2J\r\n\tb"
    assert harmless(nasty) == "a\\x1b]0;title\\x07\\x9b2J\n\tb"
    seen = Seen(people=True)
    seen.view.output(nasty)
    seen.view.reply(nasty)
    seen.view.event(Event("X", {"text": nasty}, 0.0, 1))
    seen.view.refused(REFUSAL)
    seen.view.failed(REFUSAL)
    seen.view.text(nasty)
    seen.view.trouble(LineError(nasty, 0), nasty)
    assert len(seen.out + seen.err) == 7
    assert not any(letter in text for letter in "\x1b\x07\x9b" for text in seen.out + seen.err)
    seen = Seen()
    seen.view.output(nasty)
    assert seen.out == [nasty]


def test_colours() -> None:
    """They end where they began, and are only there if they are wanted."""
    for colour in (True, False):
        seen = Seen(people=True, colour=colour)
        seen.view.reply({"a": "b"})
        seen.view.refused(REFUSAL)
        seen.view.event(Event("STOP", {}, -1.0, 1))
        for text in seen.out:
            assert ("\x1b[" in text) is colour
            assert not colour or text.endswith(("\x1b[0m", "}", "m"))


def test_the_log_has_all_and_no_secrets() -> None:
    """Messages in both directions, shown or not."""
    seen = Seen()
    seen.view.sent("set_password", {"protocol": "vnc", "password": "hush"})
    seen.view.typed("change vnc password hush")
    seen.view.reply({})
    seen.view.event(Event("STOP", {}, 1.0, 1))
    assert [line.split(" ", 2)[1] for line in seen.log] == ["->", "->", "<-", "<-"]
    assert "hush" not in "".join(seen.log + seen.out)
    assert seen.out == ['{"return": {}}']


def test_the_place_of_a_mistake() -> None:
    """The line that holds it, and a mark below; of a long line what is around."""
    assert pointer("ab cd", 3) == "ab cd\n   ^"
    assert pointer("ab\n\tcd\nef", 4) == " cd\n ^"
    assert pointer("ab", 2) == "ab\n  ^"
    line, mark = pointer("x" * 1000 + "!" + "y" * 1000, 1000).splitlines()
    assert line[len(mark) - 1] == "!"
    assert len(line) <= 160


def test_a_flood_of_events_is_cut() -> None:
    """A screen of them is shown, then as many as can be read; the others are counted."""
    pace = Pace()
    assert sum(pace.admit(100.0) for _ in range(10 * BURST)) == BURST
    assert pace.hidden == 9 * BURST
    assert sum(pace.admit(101.0) for _ in range(BURST)) == EVENTS_PER_SECOND
    assert sum(pace.admit(200.0 + number) for number in range(BURST)) == BURST
