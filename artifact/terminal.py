"""What the three commands share about talking to a person: errors in one line, exit codes, progress, JSON, version."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from artifact.errors import StowageError
from artifact.progress import Progress, Quiet
from artifact.version import __version__

if TYPE_CHECKING:  # what draws takes longer to load than most commands run
    from rich.console import Console

_WIDE = 10_000


def run(app: typer.Typer) -> NoReturn:
    """Run a command line and exit with the status its contract gives: 0, 2 usage, 3 refusal, 1 anything else.

    SIGTERM and a terminal that is closed unwind like Ctrl-C, so that whatever was begun is cleaned up.
    ``STOWAGE_DEBUG=1`` shows tracebacks.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _terminate)
    try:
        app()
    except StowageError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        _fail(f"internal error: {type(error).__name__}: {error} (STOWAGE_DEBUG=1 shows where)", 1)
    sys.exit(0)


def _terminate(number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # shell and kernel both send it: the second must not end the cleanup
    sys.exit(128 + number)


def _fail(message: str, status: int) -> NoReturn:
    if os.environ.get("STOWAGE_DEBUG") == "1":
        traceback.print_exc()
    note(f"error: {message}".replace("\n", " "))
    sys.exit(status)


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(f"{context.command.name or context.info_name} {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]
"""``--version`` of a command: its name and the version of the distribution."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""``--json`` of a command whose result is `print_json`'s then."""


def note(message: str) -> None:
    """Tell the person something that is not the command's result: a line on stderr, if anybody reads that still."""
    # Messages quote names and answers from elsewhere: nothing in them may steer the terminal.
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in message)
    with suppress(OSError):  # a pipe or terminal that is gone must not keep the rest of the work from being done
        print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a command's result for scripts: one JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table_console() -> Console:
    """Where a command's tables go: as wide as the terminal; where there is none, as wide as they are, so that no digest
    is broken that a script looks for."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars on stderr, with bytes, rate and time left; nothing at all when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield Quiet()
        return
    from artifact.bars import bars  # what draws takes longer to load than most commands run

    with bars() as progress:
        yield progress
