"""A node's own certificate, and those that its authority makes for others."""

import time
from collections.abc import Sequence

from ...errors import NotJoined, OtherAuthority, PkiError
from ...monitor.certificates import PublicKey, new_key, pem_of, private_pem
from ...qmp.ready import ready
from .authority import Authority, Card, Subject, card_of, fingerprint, request_for, requested
from .folder import DAYS, About, Folder, hosts_of, read, save, this_host, write
from .ledger import Issued, Ledger
from .token import Kept, Token, Tokens, new_token

# How this node came to its certificate, where it has the authority.
_INIT, _RENEWAL = "init", "renewal"
# A node is reached so on its own host.
_LOCAL = ("localhost", "127.0.0.1", "::1")


def begin(folder: Folder, name: str = "", addresses: Sequence[str] = (), days: float | None = None) -> Card:
    """Have an authority and this node's certificate here. What is there already stays, unless it is to say otherwise.

    :param name: of this node; the host's by default
    :param addresses: where it is reached; its name by default
    :param days: that its certificate holds
    :raises OtherAuthority: this node has a certificate of another's already
    """
    with folder.changed():
        known = _about(folder)
        if (known and known.issuer) or (folder.trusted.exists() and not folder.has_authority):
            raise OtherAuthority(f"{folder.path} has a certificate of another node's authority: it was left as it is")
        name = name or (known.name if known else this_host())
        asked = list(addresses) or (known.addresses if known else [name])
        about = About(name=name, addresses=asked, days=days or (known.days if known else DAYS))
        subject = Subject(name=name, role="node", hosts=_with_local(name, asked))
        if not folder.has_authority:
            write(folder.authority, Authority.new().pem)
        authority = Authority(folder.authority.read_bytes())
        write(folder.trusted, pem_of(authority.certificate))
        if about != known or not folder.own.exists():
            _check_free(folder, subject, ours=True)
            _make_own(folder, authority, subject, about.days, _INIT)
            save(folder.about, about)
        return own_card(folder)


def own_card(folder: Folder) -> Card:
    """What our certificate says.

    :raises NotJoined: we have none
    """
    try:
        return card_of(folder.own.read_bytes())
    except FileNotFoundError:
        text = f"no certificate in {folder.path}: drover node init makes one, drover node join gets one"
        raise NotJoined(text) from None


def about(folder: Folder) -> About:
    """What this node knows of itself.

    :raises NotJoined: it has no certificate
    """
    found = _about(folder)
    if found is None:
        own_card(folder)
        raise NotJoined(f"{folder.about} is missing")
    return found


def authority_of(folder: Folder) -> Authority:
    """The authority that is here.

    :raises NotJoined: there is none
    """
    try:
        return Authority(folder.authority.read_bytes())
    except FileNotFoundError:
        known = _about(folder)
        where = f"it is on {', '.join(known.issuer)}" if known and known.issuer else "drover node init makes one"
        raise NotJoined(f"this node has no authority: {where}") from None


def token_for(
    folder: Folder, role: str, *, name: str, days: float, seconds: float, addresses: Sequence[str] = ()
) -> tuple[Token, int]:
    """A token by which somebody joins once, and the Unix time of its end.

    :param name: of whoever joins; empty: they say it themselves
    :param days: that their certificate holds
    :param seconds: until the token's end
    :param addresses: where we are reached; what we know of ourselves by default
    """
    Subject(name=name or "name", role=role)
    authority = authority_of(folder)
    hosts_of(addresses)
    with folder.changed():
        token = new_token(list(addresses) or about(folder).addresses, fingerprint(pem_of(authority.certificate)))
        return token, Tokens(folder).make(token, role, name=name, days=days, seconds=seconds)


def admit(folder: Folder, id: str, secret: str, csr: str, *, name: str, addresses: Sequence[str]) -> tuple[str, Card]:
    """A certificate for somebody who has a token, which is used up.

    :param csr: their request
    :param name: what they are called, where the token does not say
    :param addresses: where they answer, if they are a node
    :raises TokenRefused: the token is of no use
    :raises ArgumentError: the request is wrong; the token is as it was
    :raises PkiError: the name, or an address, is somebody else's; the token is as it was
    """
    authority, key = authority_of(folder), requested(csr)
    with folder.changed():
        tokens = Tokens(folder)
        kept = tokens.look(id, secret)
        subject = _subject(kept, name, addresses)
        _check_free(folder, subject, anybody=not kept.name)
        tokens.claim(id)  # from here on it is used up, whatever comes
        return _issue(folder, authority, key, subject, kept.days, f"token {id}")


def renew_for(folder: Folder, serial: str, csr: str) -> tuple[str, Card]:
    """The next certificate of somebody who has shown that they have the one of this number.

    :raises PkiError: they get none
    """
    authority, key = authority_of(folder), requested(csr)
    with folder.changed():
        old = Ledger(folder).renewed(serial)
        subject = Subject(name=old.name, role=old.role, hosts=old.hosts)
        days = (old.until - old.since) / 86400
        return _issue(folder, authority, key, subject, days, f"renewal of {serial}")


def issue(folder: Folder, role: str, name: str, *, days: float, hosts: Sequence[str] = ()) -> tuple[bytes, bytes, Card]:
    """Key and certificate for somebody, made here.

    :param days: that it holds
    :param hosts: where they answer, if they are a node
    """
    authority, key = authority_of(folder), new_key()
    subject = Subject(name=name, role=role, hosts=hosts)
    with folder.changed():
        _check_free(folder, subject)
        certificate, card = _issue(folder, authority, key.public_key(), subject, days, "issue")
    return private_pem(key), certificate.encode(), card


def renew_here(folder: Folder) -> Card:
    """A new certificate for this node, by the authority that is here; with a new key."""
    authority, known = authority_of(folder), about(folder)
    with folder.changed():
        subject = Subject(name=known.name, role="node", hosts=_with_local(known.name, known.addresses))
        return _make_own(folder, authority, subject, known.days, _RENEWAL)


def new_request() -> tuple[bytes, str]:
    """A key, and the request for a certificate for it."""
    key = new_key()
    return private_pem(key), request_for(key)


def _about(folder: Folder) -> About | None:
    try:
        return read(folder.about, About)
    except FileNotFoundError:
        return None


def _subject(kept: Kept, name: str, addresses: Sequence[str]) -> Subject:
    name = kept.name or name
    hosts = _with_local(name, addresses) if kept.role == "node" else []
    return Subject(name=name, role=kept.role, hosts=hosts)


def _with_local(name: str, addresses: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([name, *hosts_of(addresses), *_LOCAL]))


def _check_free(folder: Folder, subject: Subject, *, anybody: bool = False, ours: bool = False) -> None:
    """See that nobody passes for a node that there is, nor chooses a name that somebody has.

    :param anybody: also not for somebody who is no node
    :param ours: it is for this node, which may have what it has
    """
    now = time.time()
    for each in Ledger(folder).all():
        if not each.holds(now) or (ours and each.by in (_INIT, _RENEWAL)) or (each.role != "node" and not anybody):
            continue
        taken = [host for host in subject.hosts if host in each.hosts and host not in _LOCAL]
        if each.name == subject.name or taken:
            what = each.name if each.name == subject.name else ", ".join(taken)
            end = f"choose another name, or have drover cert revoke {each.serial} end that"
            raise PkiError(f"{what} is {each.role} {each.name}'s already (certificate {each.serial}): {end}")


def _issue(
    folder: Folder, authority: Authority, key: PublicKey, subject: Subject, days: float, by: str
) -> tuple[str, Card]:
    pem = pem_of(authority.sign(key, subject, days))
    card = card_of(pem)
    Ledger(folder).add(Issued(serial=card.serial, name=card.name, role=card.role, hosts=card.hosts,
                              since=card.since, until=card.until, by=by))  # fmt: skip
    return pem.decode(), card


def _make_own(folder: Folder, authority: Authority, subject: Subject, days: float, by: str) -> Card:
    key = new_key()
    certificate, card = _issue(folder, authority, key.public_key(), subject, days, by)
    write(folder.own, private_pem(key) + certificate.encode())
    return card


ready(About)
