"""What may be done a little later, once for all who want it meanwhile: what people see holds up no machine."""

import asyncio
from collections.abc import Callable
from typing import Final

LATER: Final = 0.02  # s: nobody sees that, and what cannot wait is over by then


class Soon:
    """Belongs to one loop.

    :param act: what is to be done
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._due: asyncio.TimerHandle | None = None

    def __call__(self, seconds: float = LATER) -> None:
        """Have it done, after all that has its turn now.

        :param seconds: how much later at most
        """
        loop = asyncio.get_running_loop()
        if self._due is not None and self._due.when() <= loop.time() + seconds:
            return
        self.cancel()
        self._due = loop.call_later(seconds, self._do)

    def cancel(self) -> None:
        """It need not be done any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _do(self) -> None:
        self._due = None
        self._act()
