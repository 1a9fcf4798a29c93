"""How long instances are waited for, for who needs nothing else of them."""

from typing import Final

# Seconds. What a guest usually takes to shut down; ten minutes of updates are its owner's business to allow.
SHUTDOWN_TIMEOUT: Final = 60.0
# Seconds for an answer of a QEMU that runs.
ANSWER_TIMEOUT: Final = 10.0
