"""What the tests of the registry client exchange with their servers."""

from __future__ import annotations

import os
from collections.abc import Callable
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
