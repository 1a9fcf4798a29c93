"""A pytest plugin: makes `ganeti.*` what Ganeti's own tests import, out of Drover's face. For a process of its own."""

import json
import sys
import unittest
from types import ModuleType

from drover.compat.ganeti import bus_manager, errors, legacy, monitor


def _module(name: str, **names: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


def _dump_json(data: object) -> bytes:
    return json.dumps(data).encode() + b"\n"


_module("ganeti", errors=errors)
sys.modules["ganeti.errors"] = errors
_module("ganeti.serializer", DumpJson=_dump_json, LoadJson=json.loads)
_module("ganeti.hypervisor")
_module("ganeti.hypervisor.hv_kvm", QmpConnection=legacy.QmpConnection, QmpMessage=monitor.QmpMessage)
for _name, _face in (("monitor", monitor), ("bus_manager", bus_manager)):
    sys.modules[f"ganeti.hypervisor.hv_kvm.{_name}"] = _face
    setattr(sys.modules["ganeti.hypervisor.hv_kvm"], _name, _face)
_module("testutils", GanetiTestCase=unittest.TestCase)
