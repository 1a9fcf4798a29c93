"""How a blocking face runs a flow: on the caller's thread, with no event loop."""

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def drive(flow: Coroutine[Any, Any, T]) -> T:
    """Run `flow` to its end and return its result.

    All it awaits must block instead of suspending, as a blocking port does.

    :raises RuntimeError: it suspended: it awaits something that is not its port
    """
    try:
        flow.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise suspended(flow)


def suspended(flow: Coroutine[Any, Any, Any]) -> RuntimeError:
    """End a flow that has suspended; the error for it."""
    flow.close()
    return RuntimeError("a flow awaited something other than its port")
