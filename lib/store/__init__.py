"""Durable records that several processes share, and what is kept in them.

- :mod:`.records`  the interface: keys, values, revisions; compare and swap; watch
- :mod:`.sqlite`  one host's: a file

Whatever lies above sees :class:`.records.Store` alone, and does not know which store it is.
"""
