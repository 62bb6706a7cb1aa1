"""New versions of a model to Debian's docker-registry, which cannot make blobs of other blobs: they arrive whole."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.manifest import EMPTY_CONFIG
from artifact.moved import Moved, total_size
from artifact.remote import RemoteRepository
from artifact.tensorindex.attach import read_index
from artifact.transfer import copy_artifact
from tests.artifact.exchanges import QUIET
from tests.artifact.versions import store, tensors, weights

pytestmark = pytest.mark.peer


def test_a_registry_that_composes_nothing_gets_every_byte(docker_registry: str, tmp_path: Path) -> None:
    source, target = LayoutRepository(tmp_path / "layout"), RemoteRepository(docker_registry, "team/model")
    for note in ("", "a note that moves everything"):
        data = weights(tensors(), note)
        manifest = store(tmp_path / "layout", "v", data)
        moved, descriptor = Moved(QUIET), source.resolve("v")
        copy_artifact(source, target, descriptor.digest, tag="v", progress=moved)
        assert len(data) <= moved.count <= total_size(source, descriptor) + len(EMPTY_CONFIG)
        url = f"http://{docker_registry}/v2/team/model/blobs/{Digest.of(data)}"
        assert httpx.get(url).content == data
        assert read_index(target, manifest) is not None, "it travels all the same"
        assert [item.digest for item in target.referrers(descriptor.digest)]
