"""Server-sent events as an engine streams them: passed on whole, and ended by an error if the engine breaks off."""

from __future__ import annotations

import json

from artifact.errors import StowageError

_ENDS = (b"\n\n", b"\r\n\r\n")
_LARGEST = 1024 * 1024


class WholeEvents:
    """Keeps back the beginning of an event until its end is there, so that a stream can only break between two."""

    def __init__(self) -> None:
        self._begun = b""

    def take(self, piece: bytes) -> bytes:
        """The whole events that are there with `piece`; one that is too large to be kept back goes in pieces."""
        if self._begun:
            piece = self._begun + piece
            self._begun = b""
        if piece.endswith(_ENDS) or len(piece) > _LARGEST:
            return piece
        end = max(piece.rfind(end) + len(end) if end in piece else 0 for end in _ENDS)
        self._begun = piece[end:]
        return piece[:end]

    def rest(self) -> bytes:
        """What was kept back."""
        rest, self._begun = self._begun, b""
        return rest


def broken_off(target: str, error: StowageError) -> bytes:
    """The event that tells a client why a stream of the API at `target` ends here. Nothing may follow it: a stream that
    ends well ends otherwise."""
    said = {"message": str(error), "type": "server_error", "param": None, "code": error.code}
    if target.endswith("/responses"):
        value = {"type": "error", "code": error.code, "message": str(error), "param": None, "error": said}
        return b"event: error\ndata: " + json.dumps(value).encode() + b"\n\n"
    return b"data: " + json.dumps({"error": said}).encode() + b"\n\n"
