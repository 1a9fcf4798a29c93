"""The root of the errors.

::

    QMPError
    +- ConnectError             no connection, or no session on it      (.protocol)
    +- StateError               not in this state                       (.protocol)
    +- ExecInterruptedError     the connection ended before the reply   (.qmp_client)
    +- ExecuteError             QEMU refused the command                (.qmp_client)
    +- ListenerError            wrong use of a listener                 (.events)
    |  +- ListenerEndedError    no more events will come; ours
    +- QMPTimeoutError          not in time; also a TimeoutError; ours
    +- ProtocolError            the peer does not speak QMP
       +- DeserializationError  not JSON                                (.message)
       +- UnexpectedTypeError   JSON, but no object                     (.message)
       +- ServerParseError      kept for its name, never raised         (.qmp_client)
       +- BadReplyError         a reply with neither value nor error    (.qmp_client)
       +- GreetingError         what came first was no greeting         (.qmp_client)
       +- NegotiationError      the capabilities were refused           (.qmp_client)
"""


class QMPError(Exception):
    """Root of all errors of this package."""


class QMPTimeoutError(QMPError, TimeoutError):
    """It did not come in time. It is what ``asyncio.TimeoutError`` catches, and a :class:`QMPError` too."""


class ProtocolError(QMPError):
    """The peer broke the protocol.

    :ivar error_message: what is wrong, without what a subclass adds to the text
    """

    def __init__(self, error_message: str, *args: object) -> None:
        super().__init__(error_message, *args)
        self.error_message = error_message

    def __str__(self) -> str:
        return self.error_message
