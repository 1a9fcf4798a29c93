"""Fixtures for the tests of Ganeti's face. Ganeti's own tests run in a process of their own (test_upstream.py)."""

collect_ignore = ["vendor", "shim"]
