"""What goes together in a migration and what does not, for each pair of QEMU versions: one table.

:data:`FEATURES` says what each feature sets; in which versions QEMU has that is what
:mod:`drover.ops.migration_settings` knows. :data:`ROWS` says what else is refused, and how it is known: what is not
refused by a row, or for a version that lacks it, is allowed, and was tried. :func:`refused` tells all reasons at once.
"""

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct

from ..ops.migration_settings import CAPABILITIES, PARAMETERS, Setting, Side, Version


class Feature(StrEnum):
    """What a migration may do beyond plain precopy, by QEMU's names."""

    RETURN_PATH = "return-path"
    POSTCOPY = "postcopy-ram"
    PREEMPT = "postcopy-preempt"
    MULTIFD = "multifd"
    ZLIB = "multifd-compression=zlib"
    ZSTD = "multifd-compression=zstd"
    NO_ZERO_PAGES = "zero-page-detection=none"
    ZERO_PAGES = "zero-page-detection=legacy"
    ZERO_PAGES_BY_MULTIFD = "zero-page-detection=multifd"
    ZERO_COPY = "zero-copy-send"
    XBZRLE = "xbzrle"
    AUTO_CONVERGE = "auto-converge"
    DIRTY_LIMIT = "dirty-limit"
    TLS = "tls"
    BITMAPS = "dirty-bitmaps"
    SWITCHOVER_ACK = "switchover-ack"
    MAPPED_RAM = "mapped-ram"
    DIRECT_IO = "direct-io"


class Transport(StrEnum):
    """What a machine goes over."""

    UNIX = "unix"
    TCP = "tcp"
    IPV6 = "tcp over IPv6"
    VSOCK = "vsock"
    FD = "fd"
    """A connected socket, passed as a descriptor."""
    FILE = "file"
    """By its name: ``file:``."""
    FILE_FD = "fd of a file"
    """Or of a pipe, passed as a descriptor."""


class Have(StrEnum):
    """What a host may have, and QEMU's version does not tell."""

    DIRTY_RING = "KVM's dirty ring"
    LOCKED_MEMORY = "memory that may be locked"


class Known(StrEnum):
    """What a QEMU of a version does with what a row is about: how it is known."""

    REFUSES = "refuses"
    HARMS = "does harm"
    USELESS = "no effect"


class Row(NamedTuple):
    """What is refused: all of `on`, and none of `off`, over these transports.

    :ivar why: not
    :ivar do: what can be done
    :ivar known: how it is known, from a version on
    :ivar until: the last version of which it is true: it is, if either side has that or an older one
    :ivar side: which of the two sides counts for that
    :ivar unless: the source has this
    """

    on: frozenset[Feature]
    off: frozenset[Feature]
    over: frozenset[Transport]
    why: str
    do: str
    known: Mapping[Version, Known]
    until: Version | None = None
    side: Side = Side.BOTH
    unless: Have | None = None

    def holds(
        self,
        features: Collection[Feature],
        transport: Transport,
        source: Version,
        target: Version,
        have: Collection[Have] = (),
    ) -> bool:
        """Whether this refuses a migration."""
        if transport not in self.over or not self.on <= set(features) or self.off & set(features):
            return False
        old = self.until is None or any(version <= self.until for version in _sides(self.side, source, target))
        return old and self.unless not in have

    def known_of(self, source: Version, target: Version) -> Known:
        """How it is known of a pair: where one side refuses it, what the other would do does not matter."""
        found = [
            self.known[max(since for since in self.known if since <= version)]
            for version in _sides(self.side, source, target)
        ]
        return Known.REFUSES if Known.REFUSES in found else found[0]


class Refusal(Struct, frozen=True):
    """A reason why a migration cannot be as it is wished.

    :ivar features: that it is about
    :ivar why: not
    :ivar do: what can be done
    """

    features: tuple[str, ...]
    why: str
    do: str

    def __str__(self) -> str:
        return f"{self.why}: {self.do}"


class Sets(NamedTuple):
    """What a feature sets: a capability, or a parameter and its value."""

    capability: str = ""
    parameter: str = ""
    value: Any = True

    @property
    def setting(self) -> Setting:
        """What is known of it."""
        return CAPABILITIES[self.capability] if self.capability else PARAMETERS[self.parameter]


def _sets(feature: Feature) -> Sets:
    if feature in CAPABILITIES:
        return Sets(feature)
    name, _, value = feature.partition("=")
    return Sets(parameter=name, value=value or True)


FEATURES: Final[Mapping[Feature, Sets]] = {
    feature: Sets(parameter="tls-creds", value=None) if feature is Feature.TLS else _sets(feature)
    for feature in Feature
}
# Capabilities that go with everything.
ASIDE: Final = frozenset(
    {"events", "late-block-activate", "pause-before-switchover", "postcopy-blocktime", "release-ram", "validate-uuid"}
)
_ALL: Final = frozenset(Transport)
FILES: Final = frozenset({Transport.FILE, Transport.FILE_FD})
CONNECTIONS: Final = _ALL - FILES

_F, _T = Feature, Transport
_NONE: Final[frozenset[Feature]] = frozenset()
_REFUSED: Final = {(7, 2): Known.REFUSES}
_USELESS: Final = {(7, 2): Known.USELESS}


def _sides(side: Side, source: Version, target: Version) -> list[Version]:
    return [version for part, version in ((Side.SOURCE, source), (Side.TARGET, target)) if part in side]


def _over(feature: Feature, transports: Collection[Transport], why: str, do: str) -> Row:
    return Row(frozenset({feature}), _NONE, frozenset(transports), why, do, _REFUSED)


def _needs(feature: Feature, other: Feature, why: str, known: Mapping[Version, Known]) -> Row:
    return Row(frozenset({feature}), frozenset({other}), _ALL, why, f"switch {other} on, too", known)


def _apart(one: Feature, other: Feature, why: str, do: str, known: Mapping[Version, Known], **more: Any) -> Row:
    return Row(frozenset({one, other}), _NONE, _ALL, why, do, known, **more)


_ONE_WAY: Final = "nothing comes back from a file"
_ONE_CHANNEL: Final = "it needs several connections, and a descriptor is one"
_TO_SOCKET: Final = "go over unix, tcp or vsock"
_ZERO_COPY: Final = "it sends memory as it is"
_PAGES: Final = "it writes whole pages"

ROWS: Final[tuple[Row, ...]] = (
    # what it goes over
    Row(
        _NONE, _NONE, frozenset({_T.FILE}), "QEMU before 8.2 has no file: of its own",
        "pass it a descriptor of the file", _REFUSED, until=(8, 1),
    ),
    Row(
        _NONE, frozenset({_F.RETURN_PATH}), CONNECTIONS,
        "without it the source says that all is well though the target has failed", f"switch {_F.RETURN_PATH} on",
        {(7, 2): Known.HARMS},
    ),
    _over(_F.RETURN_PATH, FILES, _ONE_WAY, f"leave {_F.RETURN_PATH} out"),
    _over(_F.POSTCOPY, FILES, _ONE_WAY, "use precopy"),
    _over(_F.TLS, FILES, _ONE_WAY, "leave TLS out, and encrypt what the file lies on"),
    _over(_F.PREEMPT, {_T.FD}, _ONE_CHANNEL, _TO_SOCKET),
    Row(
        frozenset({_F.MULTIFD}), frozenset({_F.MAPPED_RAM}), frozenset({_T.FD, *FILES}), _ONE_CHANNEL,
        f"{_TO_SOCKET}, or to a file with {_F.MAPPED_RAM}", _REFUSED,
    ),
    _over(_F.MAPPED_RAM, _ALL - {_T.FILE}, "each page has its own place in a file", "save to a file, by its name"),
    _over(
        _F.ZERO_COPY, {_T.UNIX, _T.VSOCK}, "the kernel can do without a copy over TCP",
        f"go over tcp, or leave {_F.ZERO_COPY} out",
    ),
    # what needs something
    _needs(_F.PREEMPT, _F.POSTCOPY, "it is about postcopy's pages", _REFUSED),
    _needs(_F.SWITCHOVER_ACK, _F.RETURN_PATH, "the target tells it on the way back", _REFUSED),
    _needs(_F.ZERO_COPY, _F.MULTIFD, "only multifd does without a copy", _REFUSED),
    _needs(_F.ZLIB, _F.MULTIFD, "only multifd compresses so", _USELESS),
    _needs(_F.ZSTD, _F.MULTIFD, "only multifd compresses so", _USELESS),
    _needs(_F.DIRECT_IO, _F.MAPPED_RAM, "only pages that have their own place go past the host's cache", _USELESS),
    Row(
        frozenset({_F.ZERO_COPY}), _NONE, _ALL, "the kernel locks what it has not sent yet",
        "let the source's QEMU lock as much as the guest has (RLIMIT_MEMLOCK), or leave it out", _REFUSED,
        side=Side.SOURCE, unless=Have.LOCKED_MEMORY,
    ),
    Row(
        frozenset({_F.DIRTY_LIMIT}), _NONE, _ALL, "it reads KVM's dirty ring",
        f"start the machine with KVM and a dirty-ring-size, or use {_F.AUTO_CONVERGE}", _REFUSED,
        side=Side.SOURCE, unless=Have.DIRTY_RING,
    ),
    # what does not go together
    _apart(
        _F.MULTIFD, _F.POSTCOPY, "7.2 says completed while its target aborts, which loses the machine",
        f"leave {_F.MULTIFD} out, or do without postcopy", {(7, 2): Known.HARMS, (8, 0): Known.REFUSES}, until=(10, 0),
    ),
    _apart(
        _F.MULTIFD, _F.XBZRLE, "multifd leaves it no page", f"leave {_F.XBZRLE} out",
        {(7, 2): Known.USELESS, (8, 1): Known.REFUSES},
    ),
    _apart(
        _F.MULTIFD, _F.ZERO_PAGES_BY_MULTIFD,
        "a target before 9.0 does not learn which pages have become zero, and keeps what was in them",
        f"set {_F.ZERO_PAGES}", {(7, 2): Known.HARMS}, until=(8, 2), side=Side.TARGET,
    ),
    _apart(_F.ZERO_COPY, _F.ZLIB, _ZERO_COPY, "leave one of them out", _REFUSED),
    _apart(_F.ZERO_COPY, _F.ZSTD, _ZERO_COPY, "leave one of them out", _REFUSED),
    _apart(_F.ZERO_COPY, _F.TLS, _ZERO_COPY, f"leave {_F.ZERO_COPY} or {_F.TLS} out", _REFUSED),
    _apart(_F.ZERO_COPY, _F.MAPPED_RAM, "a file takes a copy", f"leave {_F.ZERO_COPY} out", _USELESS),
    _apart(
        _F.AUTO_CONVERGE, _F.DIRTY_LIMIT, "both slow vCPUs down", "leave one of them out", _REFUSED,
        side=Side.SOURCE,
    ),
    _apart(_F.MAPPED_RAM, _F.XBZRLE, _PAGES, f"leave {_F.XBZRLE} out", _REFUSED),
    _apart(_F.MAPPED_RAM, _F.ZLIB, _PAGES, f"leave {_F.ZLIB} out", _REFUSED),
    _apart(_F.MAPPED_RAM, _F.ZSTD, _PAGES, f"leave {_F.ZSTD} out", _REFUSED),
)  # fmt: skip

UNTRIED: Final[Mapping[str, str]] = {
    Transport.VSOCK: "the kernels that the tests run on have no vsock to themselves",
    f"{Feature.DIRTY_LIMIT} with {Have.DIRTY_RING}": "the tests run without KVM",
    f"{Feature.MULTIFD} with {Feature.POSTCOPY}, from 10.1 on": "the tests run QEMU 7.2 and 10.0",
}
"""What is allowed and could not be tried, and why not."""


def refused(
    features: Collection[Feature],
    transport: Transport,
    source: Version,
    target: Version,
    *,
    have: Collection[Have] = (),
    others: Collection[str] = (),
) -> list[Refusal]:
    """Tell all reasons why a migration cannot be like this; none: it can.

    :param source: the version of the QEMU that the machine leaves, such as ``(7, 2)``
    :param target: of the one that it goes to
    :param have: what the source is known to have
    :param others: other settings of QEMU's that are on, as :func:`features_of` tells them
    """
    rows = [row for row in ROWS if row.holds(features, transport, source, target, have)]
    return [
        *_lacking(features, source, target),
        *_clashing(features),
        *(Refusal(tuple(sorted(row.on)), _about(row.on, transport, row.why), row.do) for row in rows),
        *(Refusal((name,), f"{name}: nobody has tried what goes with it", "leave it out") for name in others),
    ]


def _about(features: Collection[Feature], transport: Transport, why: str) -> str:
    return f"{' with '.join(sorted(features)) or transport}: {why}"


def _lacking(features: Collection[Feature], source: Version, target: Version) -> Iterator[Refusal]:
    for feature in sorted(features):
        setting = FEATURES[feature].setting
        for version in dict.fromkeys(_sides(setting.side, source, target)):
            if setting.since is not None and version < setting.since:
                why = "{}: QEMU {}.{} lacks it".format(feature, *version)
                yield Refusal((feature,), why, "leave it out, or use QEMU {}.{} or later".format(*setting.since))


def _clashing(features: Collection[Feature]) -> Iterator[Refusal]:
    """Of one parameter, two values."""
    given: dict[str, list[Feature]] = {}
    for feature in sorted(features):
        given.setdefault(FEATURES[feature].parameter, []).append(feature)
    for name, found in given.items():
        if name and len(found) > 1:
            yield Refusal(tuple(found), f"{' with '.join(found)}: {name} has one value", "leave one of them out")


def features_of(
    capabilities: Mapping[str, bool], parameters: Mapping[str, Any]
) -> tuple[frozenset[Feature], tuple[str, ...]]:
    """Tell which features settings of QEMU's come to, and what of them this table does not know.

    :param capabilities: such as ``{"multifd": True}``
    :param parameters: such as ``{"multifd-compression": "zstd"}``; those that are no matter of features do not count
    """
    on = {name for name, state in capabilities.items() if state} - ASIDE
    on |= {_named(name, value) for name, value in parameters.items() if name in _OFF and value != _OFF[name]}
    known = {name for name in on if name in FEATURES}
    return frozenset(Feature(name) for name in known), tuple(sorted(on - known))


# The parameters that make a feature, and what they are without it.
_OFF: Final[Mapping[str, Any]] = {
    "multifd-compression": "none", "zero-page-detection": None, "tls-creds": "", "direct-io": False,
}  # fmt: skip


def _named(parameter: str, value: Any) -> str:
    if parameter == "tls-creds":
        return Feature.TLS
    return parameter if value is True else f"{parameter}={value}"


def settings(features: Collection[Feature], side: Side) -> tuple[dict[str, bool], dict[str, Any]]:
    """Return what features set on one side: capabilities and parameters. Of TLS, nothing: it has credentials."""
    sets = [FEATURES[feature] for feature in sorted(features) if feature is not Feature.TLS]
    here = [each for each in sets if side in each.setting.side]
    return (
        {each.capability: True for each in here if each.capability},
        {each.parameter: each.value for each in here if each.parameter},
    )


def with_needs(features: Collection[Feature]) -> frozenset[Feature]:
    """Return features with those that they need to be of any use."""
    found = frozenset(features)
    for row in ROWS:
        if row.over == _ALL and row.on and len(row.off) == 1 and row.on <= found:
            found |= row.off
    return found if found == frozenset(features) else with_needs(found)


def addable(
    features: Collection[Feature],
    transport: Transport,
    source: Version,
    target: Version,
    *,
    have: Collection[Have] = (),
) -> frozenset[str]:
    """Return the capabilities that a migration with these features, which may be made, may have besides."""

    def goes(feature: Feature) -> bool:
        return not refused({*features, feature}, transport, source, target, have=have)

    return ASIDE | {sets.capability for feature, sets in FEATURES.items() if sets.capability and goes(feature)}
