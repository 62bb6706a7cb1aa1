"""A signed model in a registry of ours, for what copies it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from artifact.descriptor import Descriptor
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from packager.pack import Options, pack
from packager.source import open_source
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.sign import sign
from supplychain.verify import verify
from tests.checkpoints.tiny import write_tiny_llama
from tests.registry.servers import RunningRegistry, StartRegistry

_POLICY = """
version: 1
authorities: {{team: {{key: "{key}"}}}}
rules: [{{match: ["**"], require: {{any-of: [team]}}}}]
"""


@dataclass(frozen=True)
class Model:
    """A model packed for Ollama too, signed in both forms, and the policy that wants that key."""

    server: RunningRegistry
    name: str
    tag: str
    descriptor: Descriptor
    manifest: bytes
    policy: Policy

    @property
    def repository(self) -> RemoteRepository:
        return RemoteRepository(self.server.host, self.name)

    def assert_trusted(self, repository: RemoteRepository) -> None:
        """That the model is in `repository` under its digest, and the policy allows it there."""
        assert repository.manifest(self.tag)[1] == self.manifest
        reference = Reference.parse(f"{repository.host}/{repository.name}:{self.tag}")
        decision = verify(repository, reference, self.descriptor, self.policy)
        assert decision.allowed, decision.reason


def make_model(start: StartRegistry, folder: Path, *options: str, name: str = "team/model") -> Model:
    """A registry and the model in it."""
    server = start(folder / "storage", *options)
    checkpoint = write_tiny_llama(folder / "checkpoint")
    repository = RemoteRepository(server.host, name)
    descriptor, tag = pack(open_source(str(checkpoint)), repository, None, Options("gguf", "F16", ollama=True), Quiet())
    key = PrivateKey.new()
    sign(repository, descriptor, key)
    (folder / "team.pub").write_bytes(key.public.pem)
    (folder / "policy.yaml").write_text(_POLICY.format(key=folder / "team.pub"))
    raw = repository.manifest(descriptor.digest)[1]
    return Model(server, name, tag, descriptor, raw, Policy.load(folder / "policy.yaml"))


@pytest.fixture(scope="session")
def model(session_registries: StartRegistry, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Shared; not to be changed."""
    return make_model(session_registries, tmp_path_factory.mktemp("mirrored"))
