"""The one-time token that somebody joins by.

It says where the authority is reached and by which certificate it is known, so whoever has it can tell the authority
from anybody else before a word of the secret is said. The authority keeps a hash of the secret alone.

To use a token is to rename its file: it succeeds once, whoever else tries, and is on disk before anything is given for
it. A crash after that has used it up.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ...errors import PkiError, TokenRefused
from ...kvm.record import sync_folder
from ...qmp.ready import ready
from .folder import Folder, read, save

# By this a token is known as one, also to what looks for secrets in texts that are made public.
_PREFIX: Final = "drover-token-"
_SECRET: Final = 32  # bytes: nobody guesses it, so a plain hash of it tells nothing
_ID: Final = re.compile(r"[0-9a-f]{16}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT: Final = 4096
MAX_TOKENS: Final = 1000
HOUR: Final = 3600.0


class Token(Struct, frozen=True, kw_only=True, rename={"addresses": "a", "fingerprint": "f", "id": "i", "secret": "s"}):
    """What a token says. It is not to be shown to anybody but whom it is for.

    :ivar addresses: of the node that has the authority
    :ivar fingerprint: SHA-256 of the authority's certificate
    :ivar id: of the token
    :ivar secret: what it is worth
    """

    addresses: list[str]
    fingerprint: str
    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.id})"

    def text(self) -> str:
        """As it is handed on."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def read_token(text: str) -> Token:
    """What a token says.

    :raises TokenRefused: it is none
    """
    text = "".join(text.split())  # a line may have been broken on the way
    problem = "this is no token: it has to be as `drover node token` printed it"
    if not text.startswith(_PREFIX) or len(text) > _MAX_TEXT:
        raise TokenRefused(problem)
    coded = text.removeprefix(_PREFIX)
    try:
        token = msgspec.json.decode(base64.b64decode(coded + "=" * (-len(coded) % 4), b"-_", True), type=Token)
    except (ValueError, msgspec.MsgspecError):
        raise TokenRefused(problem) from None  # the cause would quote it
    if not _ID.fullmatch(token.id) or not _FINGERPRINT.fullmatch(token.fingerprint) or not token.addresses:
        raise TokenRefused(problem)
    return token


class Kept(Struct, frozen=True, kw_only=True):
    """What is kept of a token.

    :ivar hash: SHA-256 of its secret
    :ivar role: of whoever joins by it
    :ivar name: of whoever joins by it; empty: they say it themselves
    :ivar days: that their certificate holds
    """

    hash: str
    role: str
    name: str
    days: float


class Outstanding(Struct, frozen=True, kw_only=True):
    """A token that nobody has used yet.

    :ivar id: of it
    :ivar until: Unix time of its end
    :ivar kept: the rest
    """

    id: str
    until: int
    kept: Kept


class Tokens:
    """Those of an authority. The end of each is in its file's name: so whether there are any is seen by one listing.

    :param folder: the authority's
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder.tokens

    def make(self, token: Token, role: str, *, name: str, days: float, seconds: float) -> int:
        """Keep what is needed of a new token; the Unix time of its end.

        :param seconds: until then
        :raises PkiError: there are too many
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self.tidy()
        if sum(1 for _ in self._files()) >= MAX_TOKENS:
            raise PkiError(f"there are {MAX_TOKENS} tokens already: wait for some to be used, or to expire")
        until = int(time.time() + seconds)
        kept = Kept(hash=_hash(token.secret), role=role, name=name, days=days)
        save(self._folder / f"{token.id}.{until}", kept)
        return until

    def outstanding(self) -> bool:
        """Whether anybody may come to join."""
        now = time.time()
        return any(until > now for _, until, used in self._files() if not used)

    def all(self) -> list[Outstanding]:
        """Those that may be used."""
        now = time.time()
        found = []
        for path, until, used in self._files():
            if not used and until > now:
                with suppress(FileNotFoundError):
                    found.append(Outstanding(id=path.name.partition(".")[0], until=until, kept=read(path, Kept)))
        return found

    def look(self, id: str, secret: str) -> Kept:
        """What is kept of a token that may be used.

        :raises TokenRefused: there is none of that kind; why not
        """
        path, until, used = self._find(id)
        try:
            kept = read(path, Kept)
        except FileNotFoundError:
            raise TokenRefused("the token was used already") from None
        if not hmac.compare_digest(kept.hash, _hash(secret)):
            raise TokenRefused("there is no such token")
        if used:
            raise TokenRefused("the token was used already")
        if until <= time.time():
            raise TokenRefused("the token has expired")
        return kept

    def claim(self, id: str) -> None:
        """Use a token up, durably: it succeeds once.

        :raises TokenRefused: somebody else did
        """
        path, _, used = self._find(id)
        try:
            if used:
                raise FileNotFoundError
            os.rename(path, path.with_name(f"{path.name}.used"))
        except FileNotFoundError:
            raise TokenRefused("the token was used already") from None
        sync_folder(self._folder)

    def drop(self, id: str) -> None:
        """Have nobody join by a token any more.

        :raises TokenRefused: there is none
        """
        found = [path for path, _, used in self._files() if path.name.partition(".")[0] == id and not used]
        if not found:
            raise TokenRefused("there is no such token")
        for path in found:
            path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def tidy(self) -> None:
        """Forget those that were over an hour ago."""
        for path, until, _ in self._files():
            if until + HOUR < time.time():
                path.unlink(missing_ok=True)

    def _find(self, id: str) -> tuple[Path, int, bool]:
        for found in self._files():
            if found[0].name.partition(".")[0] == id:
                return found
        raise TokenRefused("there is no such token")

    def _files(self) -> Iterator[tuple[Path, int, bool]]:
        """The file of each, its end, and whether it is used."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        for name in names:
            which, _, rest = name.partition(".")
            until, _, used = rest.partition(".")
            if _ID.fullmatch(which) and until.isdecimal() and used in ("", "used"):
                yield self._folder / name, int(until), bool(used)


def new_token(addresses: list[str], fingerprint: str) -> Token:
    """One that nobody knows yet."""
    secret = secrets.token_urlsafe(_SECRET)
    return Token(addresses=addresses, fingerprint=fingerprint, id=secrets.token_hex(8), secret=secret)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


ready(Token, Kept)
