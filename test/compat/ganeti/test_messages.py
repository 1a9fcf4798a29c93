"""Messages and events."""

import pytest

from drover.compat.ganeti import HypervisorError, ProgrammerError, QmpEvent, QmpMessage, QmpTimestamp

STAMP = {"seconds": 7, "microseconds": 8}


def test_message() -> None:
    message = QmpMessage({"execute": "stop"})
    assert (message["execute"], message["arguments"], len(message)) == ("stop", None, 1)
    message["arguments"] = {"a": [1]}
    assert QmpMessage.build_from_json_string(message.to_bytes()) == message
    assert QmpMessage.BuildFromJsonString(message.to_json_string()) == message.data
    assert len(str(message).splitlines()) == 1
    del message["arguments"]
    assert message == {"execute": "stop"}
    assert message != "stop"
    assert repr(QmpMessage({"password": "s3cret"})) == "QmpMessage(['password'])"


@pytest.mark.parametrize("text", ["[1]", "{", b"\xff", "[" * 100_000])
def test_no_message(text: str) -> None:
    with pytest.raises(ProgrammerError):
        QmpMessage.build_from_json_string(text)
    with pytest.raises(HypervisorError):  # Ganeti's callers catch this one
        QmpMessage.build_from_json_string(text)


def test_what_is_no_json_is_not_sent() -> None:
    with pytest.raises(ProgrammerError):
        QmpMessage({"execute": object()}).to_bytes()
    with pytest.raises(TypeError):
        QmpMessage([])  # type: ignore[arg-type]


def test_an_event_needs_no_data() -> None:
    event = QmpEvent.build_from_data({"event": "STOP", "timestamp": STAMP})
    assert (event.event_type, event.timestamp, event["device"]) == ("STOP", QmpTimestamp(7, 8), None)
    event = QmpEvent.build_from_data({"event": "X", "data": {"device": "d0"}})
    assert (event["device"], event.timestamp) == ("d0", QmpTimestamp(-1, -1))
