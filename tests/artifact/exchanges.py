"""What the tests of the registry client exchange with their servers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.manifest import Manifest
from artifact.progress import Quiet

Exchange = Any  # the request and its answer: conftest.Exchange
Serve = Callable[[Callable[[Exchange], None]], Any]

QUIET = Quiet()
DATA = os.urandom(2_500_000)
BLOB = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)
RAW = Manifest(Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), (BLOB,)).to_bytes()
DIGEST = Digest.of(RAW)


def answer_manifest(exchange: Exchange, raw: bytes = RAW, **headers: str) -> None:
    exchange.answer(200, raw, Content_Type=mediatypes.IMAGE_MANIFEST, **headers)


def asked(exchange: Exchange) -> tuple[int, int]:
    """The first byte asked for, and the one behind the last."""
    match = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", exchange.headers["range"])
    assert match is not None
    return int(match[1]), int(match[2]) + 1


def nothing_named(folder: Path) -> bool:
    """Whether the layout `folder` has no blob."""
    return not any(path.is_file() for path in (folder / "blobs").rglob("*"))
