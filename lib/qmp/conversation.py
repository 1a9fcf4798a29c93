"""A talk with somebody other than a monitor, pure: bytes in, bytes out, and an end."""

from abc import ABC, abstractmethod


class Conversation(ABC):
    """Our side of a short exchange on a stream socket.

    :ivar done: it is over, well or not; nothing more is read
    """

    done: bool = False

    def begin(self) -> bytes:
        """What to send before the peer says anything; by default it speaks first."""
        return b""

    @abstractmethod
    def receive(self, data: bytes) -> bytes:
        """Take in what the peer sent, ``b""`` for the end of the stream, and return what to send back.

        What the peer does wrong ends the conversation instead of being raised.
        """
