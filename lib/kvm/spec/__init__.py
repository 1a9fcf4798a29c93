"""The specification of an instance: one typed document, checked as a whole before anything is touched.

- :mod:`.document`  the fields, with their defaults and meaning
- :mod:`.reading`   from TOML, JSON or plain data, and back to JSON
- :mod:`.checks`    what a type cannot say
"""

from .document import Boot, Cpu, Disk, Machine, Memory, Nic, Spec, Vnc
from .reading import completed, dump, load, parse

__all__ = ["Boot", "Cpu", "Disk", "Machine", "Memory", "Nic", "Spec", "Vnc", "completed", "dump", "load", "parse"]
