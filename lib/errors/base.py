"""The root of the tree of errors."""


class DroverError(Exception):
    """Root of all errors raised by Drover."""
