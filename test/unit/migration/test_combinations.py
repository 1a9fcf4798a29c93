"""The table of combinations: each row says something of its own, all reasons are told, and each with what to do."""

from itertools import combinations

import pytest

from drover.migration.combinations import (
    CONNECTIONS,
    FEATURES,
    FILES,
    ROWS,
    UNTRIED,
    Feature,
    Have,
    Known,
    Transport,
    addable,
    features_of,
    refused,
    settings,
    with_needs,
)
from drover.migration.means import Means, usable
from drover.ops.migration_settings import CAPABILITIES, PARAMETERS, Side
from passages import TRIED, covering, triggering

OLD, NEW, LATER = (7, 2), (10, 0), (10, 1)
PAIRS = [(one, two) for one in (OLD, NEW) for two in (OLD, NEW)]
F, T = Feature, Transport
ALL_OF_IT = tuple(Have)


def why(*features: Feature, over: Transport = T.TCP, source=OLD, target=OLD, have=ALL_OF_IT) -> list[str]:  # type: ignore[no-untyped-def]
    """The reasons, in words."""
    return [str(each) for each in refused({F.RETURN_PATH, *features}, over, source, target, have=have)]


def test_each_feature_sets_what_qemu_has() -> None:
    for feature, sets in FEATURES.items():
        assert sets.setting is (CAPABILITIES.get(sets.capability) or PARAMETERS[sets.parameter])
        capabilities, parameters = settings({feature}, Side.SOURCE)
        if feature is not F.TLS:
            assert features_of(capabilities, parameters) == ({feature}, ())
    assert features_of({}, {"tls-creds": "tls0"}) == ({F.TLS}, ())


def test_settings_that_are_off_or_no_matter_of_features() -> None:
    off = {"multifd-compression": "none", "tls-creds": "", "direct-io": False}
    assert features_of({"multifd": False, "events": True}, {**off, "max-bandwidth": 1}) == (frozenset(), ())
    found, others = features_of({"x-colo": True, "multifd": True}, {"multifd-compression": "qpl"})
    assert found == {F.MULTIFD}
    assert others == ("multifd-compression=qpl", "x-colo")
    told = refused(found | {F.RETURN_PATH}, T.TCP, NEW, NEW, others=others)
    assert [each.features for each in told] == [("multifd-compression=qpl",), ("x-colo",)]


def test_settings_are_made_where_they_have_their_effect() -> None:
    features = {F.MULTIFD, F.ZSTD, F.ZERO_PAGES, F.AUTO_CONVERGE, F.TLS}
    source, target = settings(features, Side.SOURCE), settings(features, Side.TARGET)
    both = {"multifd": True}
    assert source == (both | {"auto-converge": True}, {"multifd-compression": "zstd", "zero-page-detection": "legacy"})
    assert target == (both, {"multifd-compression": "zstd"})


def test_all_reasons_at_once_each_with_what_to_do() -> None:
    told = why(F.POSTCOPY, F.MULTIFD, F.MAPPED_RAM, F.DIRTY_LIMIT, F.AUTO_CONVERGE, F.ZLIB, F.ZSTD, have=())
    assert [line.partition(": ")[0] for line in told] == [
        "dirty-limit", "mapped-ram", "multifd-compression=zlib with multifd-compression=zstd", "mapped-ram",
        "dirty-limit", "multifd with postcopy-ram", "auto-converge with dirty-limit",
        "mapped-ram with multifd-compression=zlib", "mapped-ram with multifd-compression=zstd",
    ]  # fmt: skip
    assert all(line.count(": ") == 2 for line in told)
    assert "leave it out, or use QEMU 8.1 or later" in told[0]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_plain_precopy_goes_over_everything(source: tuple[int, int], target: tuple[int, int]) -> None:
    for transport in CONNECTIONS:
        assert refused({F.RETURN_PATH}, transport, source, target) == []
        assert len(refused(set(), transport, source, target)) == 1  # no way back: no proof
    assert refused(set(), T.FILE_FD, source, target) == []
    assert (refused(set(), T.FILE, source, target) == []) is (source == target == NEW)


def test_postcopy_with_multifd_by_version() -> None:
    for source, target in [*PAIRS, (LATER, NEW), (NEW, LATER)]:
        assert len(why(F.POSTCOPY, F.MULTIFD, source=source, target=target)) == 1
    assert why(F.POSTCOPY, F.MULTIFD, source=LATER, target=LATER) == []


def test_zero_pages_found_by_multifd_go_to_those_who_learn_of_them() -> None:
    assert why(F.MULTIFD, F.ZERO_PAGES_BY_MULTIFD, source=NEW, target=NEW) == []
    assert why(F.MULTIFD, F.ZERO_PAGES_BY_MULTIFD, source=NEW, target=(9, 0)) == []
    assert len(why(F.MULTIFD, F.ZERO_PAGES_BY_MULTIFD, source=NEW, target=(8, 2))) == 1
    assert why(F.MULTIFD, F.ZERO_PAGES, source=NEW, target=OLD) == []


def test_what_the_source_has() -> None:
    assert why(F.MULTIFD, F.ZERO_COPY) == []
    assert len(why(F.MULTIFD, F.ZERO_COPY, have=())) == 1
    assert why(F.DIRTY_LIMIT, source=NEW, target=OLD) == []
    assert len(why(F.DIRTY_LIMIT, source=NEW, target=OLD, have=())) == 1


def test_no_row_is_there_twice_and_each_can_be_the_only_reason() -> None:
    alone = [row for pair in PAIRS for _, row in triggering(*pair)]
    assert [row for row in ROWS if row not in alone] == []
    assert all(row.why and row.do and row.over for row in ROWS)
    assert all(row.known[min(row.known)] for row in ROWS)
    assert all(min(row.known) == OLD for row in ROWS)


def test_of_two_sides_the_one_that_refuses_is_told() -> None:
    (row,) = [row for row in ROWS if row.on == {F.MULTIFD, F.POSTCOPY}]
    assert row.known_of(OLD, OLD) is Known.HARMS
    assert row.known_of(OLD, NEW) is row.known_of(NEW, OLD) is row.known_of(NEW, NEW) is Known.REFUSES


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_ways_that_are_tried_are_all_that_is_allowed(source: tuple[int, int], target: tuple[int, int]) -> None:
    """Every two features that may be together at all are so in some way that the live tests go."""
    ways = list(covering(source, target))
    assert all(not refused(*way, source, target, have=ALL_OF_IT) for way in ways)
    gone = {frozenset(pair) for way in ways for pair in combinations(way.features, 2)}
    for pair in combinations(TRIED, 2):
        wanted = with_needs(frozenset(pair))
        allowed = [
            transport
            for transport in Transport
            if not refused(wanted | ({F.RETURN_PATH} if transport not in FILES else set()), transport, source, target,
                           have=ALL_OF_IT)
        ]  # fmt: skip
        assert (frozenset(pair) in gone) is bool(set(allowed) - {T.VSOCK})


def test_what_was_not_tried_is_named() -> None:
    assert set(TRIED) == set(Feature) - {F.DIRTY_LIMIT}
    assert {"vsock", "dirty-limit with KVM's dirty ring"} <= set(UNTRIED)
    assert all(UNTRIED.values())


def test_what_may_be_added_is_what_a_policy_may_use() -> None:
    plain = addable({F.RETURN_PATH}, T.TCP, NEW, NEW)
    assert {"postcopy-ram", "auto-converge", "multifd", "events"} <= plain
    assert not {"dirty-limit", "postcopy-preempt", "mapped-ram"} & plain
    parallel = addable({F.RETURN_PATH, F.MULTIFD}, T.TCP, NEW, NEW, have=ALL_OF_IT)
    assert "postcopy-ram" not in parallel
    assert usable(list(Means), parallel, parallel) == (Means.BLACKOUT, Means.BANDWIDTH, Means.AUTO_CONVERGE)
    assert usable([Means.DIRTY_LIMIT], parallel, addable({F.RETURN_PATH}, T.TCP, NEW, OLD)) == (Means.DIRTY_LIMIT,)
