"""avocado-vt's own monitor module, which wants a `pkg_resources` that setuptools no longer has."""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any


class _NotFound(Exception):
    pass


def _not_found(*_: object) -> None:
    raise _NotFound


def load() -> Any:
    """`virttest.qemu_monitor`, on a stand-in for `pkg_resources` that knows of no plugin.

    :raises ImportError: it is not installed here
    """
    if "pkg_resources" not in sys.modules:
        stand_in = ModuleType("pkg_resources")
        vars(stand_in).update(
            iter_entry_points=lambda *_, **__: iter(()),
            get_entry_map=lambda *_: {},
            resource_filename=lambda *_: "/nowhere",
            get_distribution=_not_found,
            DistributionNotFound=_NotFound,
            parse_version=str,
        )
        sys.modules["pkg_resources"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("virttest.qemu_monitor")
