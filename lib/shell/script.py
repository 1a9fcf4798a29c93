"""Commands one after another, without anybody at the keyboard; what came of them is the exit code."""

from collections.abc import Iterable

from drover.errors import DroverError

from .talk import Leave, Talker, exit_code, tell


async def run_script(talker: Talker, lines: Iterable[str], *, keep_going: bool) -> int:
    """Connect, run `lines`, and return the exit code: 0, or that of the first line that failed.

    :param keep_going: go on behind a line that failed, as long as there is a connection
    """
    first = 0
    try:
        await talker.join()
        for text in talker.whole(lines):
            code = await _run(talker, text)
            first = first or code
            if code and not (keep_going and talker.is_connected()):
                break
    except Leave:
        pass
    except DroverError as error:
        tell(talker, error)
        return first or exit_code(error)
    finally:
        await talker.close()
    return first


async def _run(talker: Talker, text: str) -> int:
    try:
        await talker.run(text)
    except DroverError as error:
        tell(talker, error, text)
        return exit_code(error)
    return 0
