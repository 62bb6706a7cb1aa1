"""Where the results of an audit go: written as they come, and to a file only when it is whole."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Protocol, TextIO

from artifact.layout.files import sync_folder
from supplychain.audit.record import Record
from supplychain.audit.tally import Tally


class Output(Protocol):
    """One form of the results."""

    def add(self, record: Record) -> None:
        """A record has been made."""

    def end(self, tally: Tally) -> None:
        """There are no more, and this is what they were."""


class WholeFile:
    """A text file that appears under its name, in place of what was there, only when `commit` is called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        self._temporary = Path(temporary)
        self.stream: TextIO = os.fdopen(descriptor, "w", encoding="utf-8")

    def commit(self) -> None:
        """Put the file in place."""
        self.stream.flush()
        os.fchmod(self.stream.fileno(), 0o644)
        os.fsync(self.stream.fileno())
        self.stream.close()
        self._temporary.replace(self._path)
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Drop what was written, unless it is in place."""
        self.stream.close()
        self._temporary.unlink(missing_ok=True)


class JsonLines:
    """One JSON object a line, as `Record.to_json` has it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, record: Record) -> None:
        # ASCII: what strangers wrote into a bundle may hold what UTF-8 cannot say.
        self._stream.write(json.dumps(record.to_json(), separators=(",", ":")) + "\n")

    def end(self, tally: Tally) -> None:
        self._stream.flush()
