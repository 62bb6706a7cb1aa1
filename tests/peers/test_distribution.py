"""Debian's docker-registry: an older registry without referrers holds our artifacts and their signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifact.layout import LayoutRepository
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from artifact.transfer import copy_artifact
from supplychain.policy import Policy
from supplychain.verify import verify

pytestmark = pytest.mark.peer

POLICY = """
version: 1
authorities: {{team: {{key: "{key}"}}}}
rules: [{{match: ["**"], require: {{any-of: [team]}}}}]
"""


def test_a_signed_model_goes_there_and_back_and_still_verifies(
    packed: Any, own: str, docker_registry: str, tmp_path: Path
) -> None:
    (tmp_path / "team.pub").write_bytes(packed.key.public.pem)
    (tmp_path / "policy.yaml").write_text(POLICY.format(key=tmp_path / "team.pub"))
    policy = Policy.load(tmp_path / "policy.yaml")
    ours = RemoteRepository(packed.host, packed.name)
    theirs = RemoteRepository(docker_registry, packed.name)
    descriptor = copy_artifact(ours, theirs, packed.digest, tag=packed.tag, progress=Quiet(), referrers=True)
    decision = verify(theirs, Reference.parse(f"{docker_registry}/{packed.name}:{packed.tag}"), descriptor, policy)
    assert decision.allowed, decision.reason
    layout = LayoutRepository(tmp_path / "back")
    copy_artifact(theirs, layout, packed.digest, tag=packed.tag, progress=Quiet(), referrers=True)
    back = RemoteRepository(packed.host, own)
    copy_artifact(layout, back, packed.digest, tag=packed.tag, progress=Quiet(), referrers=True)
    assert back.manifest(packed.tag)[1] == packed.manifest
    assert len(back.referrers(packed.digest)) == len(ours.referrers(packed.digest)) == 2  # signature, index
    assert verify(back, Reference.parse(f"{packed.host}/{own}:{packed.tag}"), descriptor, policy).allowed


def test_what_is_there_already_is_not_sent_again(packed: Any, docker_registry: str) -> None:
    ours, theirs = RemoteRepository(packed.host, packed.name), RemoteRepository(docker_registry, packed.name)
    copy_artifact(ours, theirs, packed.digest, tag=packed.tag, progress=Quiet())

    class Counting(Quiet):
        moved = 0

        def advance(self, name: str, count: int) -> None:
            self.moved += count

    progress = Counting()
    copy_artifact(ours, theirs, packed.digest, tag="again", progress=progress)
    assert progress.moved == 0
    other = RemoteRepository(docker_registry, "mounted/here")
    copy_artifact(theirs, other, packed.digest, tag="t", progress=progress)
    assert progress.moved == 0 and other.resolve("t").digest == packed.digest
