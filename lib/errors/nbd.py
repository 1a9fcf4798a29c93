"""What can be wrong with an NBD server; :mod:`drover.errors` draws the whole tree."""

from .base import DroverError


class NbdError(DroverError):
    """An NBD server cannot be used, found before QEMU was told of it.

    Of this class itself: it does not speak NBD, or hung up.

    :ivar address: the server's
    :ivar reason: what is wrong
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"NBD server {address}: {reason}")
        self.address = address
        self.reason = reason


class NbdUnreachable(NbdError):
    """Nobody listens at the address."""


class NbdTimeout(NbdError, TimeoutError):
    """The server did not take the call, or not get through the handshake, in time: it may be stopped.

    :ivar timeout: how long it had, in seconds
    """

    def __init__(self, address: str, timeout: float) -> None:
        super().__init__(address, f"did not answer within {timeout:g} s")
        self.timeout = timeout


class NbdRefused(NbdError):
    """The server is fine and will not serve us this export.

    :ivar export: the export's name
    :ivar code: ``unknown-export``, ``tls-required``, ``no-tls``, ``read-only``, ``policy``, ...
    :ivar text: the server's own words, if it had any
    """

    def __init__(self, address: str, export: str, code: str, text: str = "") -> None:
        super().__init__(address, f"refuses the export '{export}': {code}" + (f" ({text})" if text else ""))
        self.export = export
        self.code = code
        self.text = text
