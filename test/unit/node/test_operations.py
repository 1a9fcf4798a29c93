"""The table of what can be done."""

import inspect
from typing import get_args

import pytest

from drover.errors import SpecError
from drover.kvm.devices import Devices
from drover.kvm.instance import Instance
from drover.migration.means import Means
from drover.node.operations import ACTS, CREATE, DELETE, Role, free
from drover.node.parameters import MeansName
from drover.node.problems import Refused
from drover.node.server import parameters


def test_every_verb_of_an_instance_is_there() -> None:
    verbs = {name for kind in (Instance, Devices) for name, _ in inspect.getmembers(kind, inspect.isfunction)}
    public = {name.replace("_", "-") for name in verbs if not name.startswith("_")}
    # read by other routes, waited for by the caller of the library, or done by the daemon itself
    known = {"show", "verify", "go-on", "restart-due", "parcel", "going"}
    # under the names that they have in the API
    assert public - ACTS.keys() - known == {"await-arrival", "send", "switch-over", "finish-passage", "abort-passage"}
    assert len([verb for verb in ACTS if verb.startswith("migration-")]) == 5


def test_each_names_itself_and_says_what_it_does() -> None:
    for verb, operation in ACTS.items():
        assert operation.verb == verb
        assert operation.summary.endswith((".", "runs."))
    assert {operation.role for operation in (CREATE, DELETE, *ACTS.values())} == {Role.NODE, Role.OPERATOR, Role.ADMIN}
    assert ACTS["qmp"].role is Role.ADMIN


def test_sizes_may_be_texts() -> None:
    assert parameters(ACTS["resize-disk"], {"id": "a", "size": "2GiB"}).size == 2 << 30
    given = {"a": [1, {"b": None}]}
    assert parameters(ACTS["qmp"], {"execute": "x", "arguments": given}).arguments == given
    assert parameters(ACTS["add-disk"], {"source": "/a"}) == {"source": "/a"}


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("start", {"pause": True}, "pause"),
        ("start", {"paused": "yes"}, "paused"),
        ("stop", {"timeout": -1}, "timeout"),
        ("set-link", {"id": "net0"}, "up"),
        ("set-vcpus", {"count": 0}, "count"),
        ("balloon", {"size": "big"}, "size"),
        ("kill", {"now": True}, "now"),
        ("rename", {}, "to"),
        ("set-throttle", {"id": "a", "limits": {"iops_total": "x"}}, "limits.iops_total"),
    ],
)
def test_what_is_wrong_names_its_field(verb: str, body: object, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parameters(ACTS[verb], body)
    assert [problem.path for problem in caught.value.problems] == [field]


def test_a_body_is_an_object() -> None:
    with pytest.raises(Refused, match="JSON object"):
        parameters(ACTS["add-disk"], [])


@pytest.mark.parametrize("name", ["fds", "self", "id"])
def test_no_field_is_taken_for_an_argument_of_the_verbs_own(name: str) -> None:
    """Such as descriptors of the daemon's; what else is wrong with fields, the verb says."""
    with pytest.raises(SpecError) as caught:
        free(Instance.change_nic, {"mode": "user", name: [3]}, "fields.")
    assert [str(problem) for problem in caught.value.problems] == [f"fields.{name}: there is no such field"]
    assert free(Instance.add_nic, {"mode": "user", "id": "net1", "nonsense": 1})["nonsense"] == 1


def test_what_helps_a_migration_on_is_named_as_it_is() -> None:
    assert set(get_args(MeansName)) == {str(means) for means in Means}
