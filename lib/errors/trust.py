"""What can be wrong with certificates, and with who is trusted by them; :mod:`drover.errors` draws the whole tree."""

from .base import DroverError


class PkiError(DroverError):
    """Certificates are not as what was asked needs them. Nothing was changed."""


class NotJoined(PkiError):
    """This node has no certificate yet, or has one and no authority: somebody else's node makes them."""


class OtherAuthority(PkiError):
    """What is there belongs to another authority, and was left as it is."""


class TokenRefused(PkiError):
    """A token is none, or of no use any more: it was used, has expired, or never was."""


class Untrusted(PkiError):
    """Whoever answers is not who was expected. Nothing that is secret was said to them.

    :ivar address: where they answer
    """

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"{address}: {problem}")
        self.address = address
