"""Another time for one process, which leaves the host's alone."""

import subprocess
from pathlib import Path

FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
# libfaketime refuses to sleep until a moment of the clock that it was told to leave alone.
REAL_SLEEP = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t id, int flags, const struct timespec *want, struct timespec *left) {
  int kept = errno, failed = syscall(SYS_clock_nanosleep, id, flags, want, left) ? errno : 0;
  errno = kept;
  return failed;
}
"""


class Clock:
    """The clock on the wall, as one process sees it: libfaketime. Time that only grows is the host's."""

    def __init__(self, path: Path) -> None:
        found = sorted(Path("/").glob(FAKETIME.removeprefix("/")))
        assert found, "no libfaketime here: apt-get install faketime"
        shim, self._path = path.with_suffix(".so"), path
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, "-xc", "-"], input=REAL_SLEEP, check=True, text=True)
        self.env = {
            "LD_PRELOAD": f"{shim} {found[0]}", "FAKETIME_TIMESTAMP_FILE": str(path), "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        self.set(0)

    def set(self, seconds: int) -> None:
        """Let it be so much later than the host's."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._path)
