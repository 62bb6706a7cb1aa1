"""One line for each request, as text or as JSON, on standard error.

Lines are written by a thread, many at a time: a slow reader of the log holds up no request. What does not fit into the
buffer is dropped, and the next line says how much.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TextIO

_DELAY = 0.2  # seconds lines wait for others
_MOST = 20_000  # lines that wait at most


@dataclass(frozen=True)
class Line:
    """One answered request. `time` in seconds since the epoch, `seconds` from the request to the end of the answer;
    `path` is as the client sent it, still percent-encoded, without the query, which may hold what is nobody's
    business."""

    time: float
    client: str
    principal: str
    method: str
    path: str
    status: int
    received: int
    sent: int
    seconds: float
    request_id: str

    def to_text(self) -> str:
        """Space-separated, quoted where a client could have chosen the characters."""
        return (
            f"{_timestamp(self.time)} {self.client} {json.dumps(self.principal)} {self.method} {json.dumps(self.path)} "
            f"{self.status} {self.received} {self.sent} {self.seconds:.4f} {self.request_id}"
        )

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({**asdict(self), "time": _timestamp(self.time), "seconds": round(self.seconds, 4)})


class AccessLog:
    """Writes lines; `format` is ``text``, ``json`` or ``none``."""

    def __init__(self, format_: str, stream: TextIO | None = None) -> None:
        self.format = format_
        self._stream = stream
        self._lines: list[Line] = []
        self._dropped = 0
        self._planned = False
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether lines are wanted at all."""
        return self.format != "none"

    def write(self, line: Line) -> None:
        """Put a line down, to be written soon. Called on the event loop."""
        if len(self._lines) >= _MOST:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(_DELAY, self._flush_in_thread)

    def _flush_in_thread(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            self._planned = False
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
            as_json = self.format == "json"
            text = [line.to_json() if as_json else line.to_text() for line in lines]
            if dropped:
                note = f"{dropped} lines of this log were dropped: its reader is too slow"
                text.append(json.dumps({"message": note}) if as_json else note)
            if text:
                stream = self._stream or sys.stderr
                stream.write("\n".join(text) + "\n")
                stream.flush()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
