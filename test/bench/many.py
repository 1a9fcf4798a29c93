"""A program: one process that is many machines' monitors, and lets all of them send events at a rate.

It prints "listening", waits for a line, sends, and prints how many events each socket has sent, when all are taken.
"""

import asyncio
import resource
import sys
import time

from flood import GREETING, commands_in, event, line

BURST = 0.01  # seconds
# Made beforehand, so that the sender needs little of the machine.
LINES = [line(event(number)) for number in range(1000)]
ANSWERS = {"query-commands": [], "query-status": {"status": "running", "running": True, "singlestep": False}}


class Monitor:
    """One machine's."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client."""
        writer.write(line(GREETING))
        text = ""
        while data := await reader.read(65536):
            found, text = commands_in(text + data.decode())
            for command in found:
                reply = {"return": ANSWERS.get(str(command.get("execute")), {}), "id": command.get("id")}
                writer.write(line(reply))
                if command.get("execute") == "query-status":
                    self.writers[:] = [writer]

    async def flood(self, rate: float, seconds: float) -> None:
        """Send so many events a second; at 0, as many as are taken."""
        writer, begin = self.writers[0], time.monotonic()
        while (now := time.monotonic() - begin) < seconds:
            due = int(now * rate) - self.sent if rate else len(LINES)
            for start in range(0, due, len(LINES)):
                writer.write(b"".join(LINES[: min(len(LINES), due - start)]))
            self.sent += due
            await writer.drain()
            if rate:
                await asyncio.sleep(BURST)
        writer.transport.set_write_buffer_limits(high=0)
        await writer.drain()


async def main() -> None:
    """Listen, wait, and flood."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rate, seconds, paths = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    monitors = [Monitor() for _ in paths]
    for monitor, path in zip(monitors, paths, strict=True):
        await asyncio.start_unix_server(monitor.serve, path)
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.gather(*(monitor.flood(rate / len(paths), seconds) for monitor in monitors))
    print(*(monitor.sent for monitor in monitors), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
