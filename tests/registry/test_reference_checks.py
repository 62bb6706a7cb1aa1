"""The look at everything that a manifest refers to."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from artifact.digest import Digest
from registry import keys
from registry.blobs import PLAIN_LINK, Blobs, link_bytes
from registry.condemned import Condemned
from registry.manifests import Manifests, ReferenceUnknown, read_manifest
from registry.store.filesystem import FilesystemStore
from registry.store.protocol import Object
from registry.tags import Tags
from tests.registry.pushing import MANIFEST, manifest_of

LINK = keys.blob("r", Digest.of(b"slow"))


class SlowStore(FilesystemStore):
    """Finds one blob's link long after it has found that another is missing."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun = threading.Event()

    def get(self, key: str) -> Object:
        if key == LINK and not self.begun.is_set():
            self.begun.set()
            time.sleep(0.2)
        else:
            assert self.begun.wait(10)
        return super().get(key)


def test_nothing_goes_on_after_an_answer(tmp_path: Path) -> None:
    """A mark of the garbage collector is not taken off by a push that was refused long ago."""
    store = SlowStore(tmp_path)
    store.put(LINK, link_bytes(Condemned.at(0.0)))
    manifest = read_manifest(manifest_of([b"slow"], b"missing"), MANIFEST, None)
    with pytest.raises(ReferenceUnknown):
        Manifests(store, Blobs(store), Tags(store)).check("r", manifest)
    assert store.get(LINK).data == PLAIN_LINK
