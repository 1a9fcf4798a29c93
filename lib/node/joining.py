"""How a node, or a person, comes to a certificate by a one-time token.

First whoever answers is asked for the authority's certificate, and nothing is said. Only if its fingerprint is the
token's is a second connection made, to somebody who has a certificate of that authority's: there the secret is said. So
whoever stands in between, with an authority of their own, never hears it.
"""

import http.client
import ssl
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..errors import CallFailed, OtherAuthority, TokenRefused, Untrusted
from .link import RemoteDaemon, TlsConnection, blind, trusting, turned_away
from .pki.authority import Card, card_of, fingerprint
from .pki.folder import DAYS, About, Folder, save, write
from .pki.own import new_request
from .pki.token import Token

_TIMEOUT: Final = 30.0
_MAX_ANSWER: Final = 1 << 20


class Asked(Struct, frozen=True, kw_only=True):
    """How whoever joins wants to be known.

    :ivar name: where the token does not say
    :ivar addresses: where they answer, if they are a node
    """

    name: str
    addresses: Sequence[str] = ()


def join_node(folder: Folder, token: Token, asked: Asked) -> Card:
    """Get this node's certificate.

    Said again with a token of the same authority's, it gets another one, such as in the place of one that has expired.

    :raises OtherAuthority: this node has one of another's: it is left as it is
    :raises Untrusted: whoever answers is not whom the token means; they have heard nothing
    :raises TokenRefused: nobody without a certificate gets in now
    :raises CallFailed: the authority says no, or is not to be reached
    """
    with folder.changed():
        if folder.has_authority or _is_others(folder, token):
            raise OtherAuthority(f"{folder.path} is of another authority already: it was left as it is")
        key, answer = _ask(token, asked)
        card = card_of(answer["certificate"].encode())
        write(folder.trusted, answer["ca"].encode())
        addresses = list(asked.addresses) or [card.name]
        days = round((card.until - card.since) / 86400, 6) or DAYS
        save(folder.about, About(name=card.name, addresses=addresses, issuer=list(token.addresses), days=days))
        write(folder.own, key + answer["certificate"].encode())  # last: with it all is there
        return card


def _is_others(folder: Folder, token: Token) -> bool:
    try:
        return fingerprint(folder.trusted.read_bytes()) != token.fingerprint
    except FileNotFoundError:
        return False


def join_person(folder: Folder, token: Token, asked: Asked) -> Card:
    """Get a person's certificate, into a folder that is theirs alone; the rest as :func:`join_node`."""
    key, answer = _ask(token, asked)
    write(folder.trusted, answer["ca"].encode())
    write(folder.own, key + answer["certificate"].encode())
    return card_of(answer["certificate"].encode())


def renewed(folder: Folder, addresses: Sequence[str]) -> Card:
    """Get the next certificate of whoever has the one in a folder, from the node that has the authority.

    :param addresses: of that node
    """
    key, csr = new_request()
    answer = RemoteDaemon(addresses, folder).call("POST", "/v1/renew", {"csr": csr}, timeout=_TIMEOUT)
    certificate: str = answer["certificate"]
    write(folder.own, key + certificate.encode())
    return card_of(certificate.encode())


def _ask(token: Token, asked: Asked) -> tuple[bytes, dict[str, Any]]:
    """The key, and what the authority answered."""
    failed: Exception | None = None
    for address in token.addresses:
        try:
            ca = _call(address, blind(), "GET", None)["ca"]
        except (CallFailed, TokenRefused) as error:
            failed = failed or error
            continue
        if fingerprint(str(ca).encode()) != token.fingerprint:
            raise Untrusted(address, "its authority is not the one that the token names: the secret was not said")
        key, csr = new_request()
        said = {"token": token.id, "secret": token.secret, "csr": csr, "name": asked.name}
        answer = _call(address, trusting(ca), "POST", said | {"addresses": list(asked.addresses)})
        return key, answer | {"ca": ca}
    raise failed or CallFailed("no-answer", "the token names no address")


def _call(address: str, context: ssl.SSLContext, method: str, body: Any) -> dict[str, Any]:
    connection = TlsConnection([address], context, _TIMEOUT)
    try:
        connection.request(method, "/v1/join", None if body is None else msgspec.json.encode(body))
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(_MAX_ANSWER), type=dict[str, Any])
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        if method == "GET" and turned_away(error):
            text = "takes nobody in without a certificate now: the token was used, or has expired"
            raise TokenRefused(f"{address} {text}") from error
        raise CallFailed("no-answer", f"{address}: {error}") from error
    finally:
        connection.close()
    if response.status >= 400:
        raise CallFailed(str(answer.get("code", "")), str(answer.get("detail", response.reason)))
    return answer
