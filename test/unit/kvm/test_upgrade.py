"""What two QEMUs of one host cannot have at once."""

from typing import Any

import pytest

from drover.errors import NotSupported
from drover.kvm import upgrade
from drover.kvm.spec import parse


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"vsock_cid": 77}, "vsock_cid"),
        ({"tpm": {}}, "its TPM"),
        ({"vnc": {"listen": "127.0.0.1:5977"}}, "vnc.listen"),
        ({"nics": [{"mode": "macvtap", "link": "eth0"}]}, r"nics\[0\].mode macvtap"),
    ],
)
def test_what_cannot_be_there_twice_is_refused(more: dict[str, Any], named: str) -> None:
    with pytest.raises(NotSupported, match=rf"{named}.*drover save vm"):
        upgrade._check_twice(parse({"name": "vm", **more}))


def test_what_can_be() -> None:
    upgrade._check_twice(parse({"name": "vm", "nics": [{"mode": "user"}, {"mode": "bridge", "link": "br0"}]}))
