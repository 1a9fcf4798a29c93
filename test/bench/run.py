"""Drover beside its peers, measured in one run: what ``make bench`` starts.

A missed aim is told and fails nothing: clocks differ from machine to machine. Only a side that did
not do its work fails the run.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

# The tree's own package, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "py"))


def main() -> int:
    """Measure what the command line asks for; the exit status."""
    import figures
    import lives

    everything: list[Any] = [*figures.FIGURES, *lives.FIGURES]
    options = arguments([figure.name for figure in everything])
    from contenders import missing
    from frame import BenchError
    from report import document, table

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended too
    for name in missing():
        print(f"{name}: not installed, left out")
    results = []
    try:
        for figure in everything:
            if figure.name in options.names or not options.names:
                for result in figure.run(options.quick, progress):
                    progress("")
                    print(*table(result), "", sep="\n", flush=True)
                    results.append(result)
    except BenchError as error:
        progress("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if options.json:
            options.json.write_text(json.dumps(document(results, missing()), indent=2) + "\n", encoding="utf-8")
    return 0


def arguments(names: list[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there too")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures; all if none: {', '.join(names)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return options


def progress(text: str) -> None:
    """Show what runs, on one line that the next one takes over; nothing where nobody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
