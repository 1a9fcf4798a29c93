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
    import crowd
    import drains
    import fanout
    import figures
    import idle
    import imports
    import lives
    import migrations
    import plugs
    import scale

    rooms: tuple[Any, ...] = (figures, crowd, fanout, idle, plugs, lives, scale, migrations, drains, imports)
    everything = [figure for room in rooms for figure in room.FIGURES]
    options = arguments([figure.name for figure in everything])
    from contenders import missing
    from frame import BenchError
    from report import table

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended too
    for name in missing():
        print(f"{name}: not installed, left out")
    results: list[Any] = []
    try:
        for figure in everything:
            if figure.name in options.names or not options.names:
                for result in figure.run(options.quick, progress):
                    progress("")
                    print(*table(result), "", sep="\n", flush=True)
                    results.append(result)
                    write(results, missing(), options.keep)
    except BenchError as error:
        progress("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    summary(results, options.keep)
    return 0


def summary(results: list[Any], path: Path | None) -> None:
    """Print how the figures grow, and draw what is kept."""
    import growth
    import picture
    from report import document

    print(*growth.lines(document(results, [])["figures"]), sep="\n")
    if path is not None:
        kept = json.loads(path.read_text(encoding="utf-8"))
        print(*picture.draw(kept, path.parent, path.stem), sep="\n")


def write(results: list[Any], missing: list[str], path: Path | None) -> None:
    """Keep what there is so far; figures of an earlier run stay there until they are taken anew."""
    if path is None:
        return
    from report import document

    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(results, missing, before), ensure_ascii=False) + "\n", encoding="utf-8")


def arguments(names: list[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--keep", type=Path, metavar="FILE.json", help="write every round there, and pictures beside")
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
