"""``packager attest``: any statement about an artifact, signed and kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.errors import InvalidInput, Malformed
from artifact.locate import open_repository, resolve
from artifact.manifest import load_json
from artifact.reference import Reference
from artifact.terminal import note
from packager.signer import IdentityToken, Key, Keyless, TrustConfig, named, signer
from supplychain.attest import attest
from supplychain.predicate import predicate_type, short_name
from supplychain.statement import Statement

MAX_PREDICATE = 3 * 1024 * 1024
"""Largest predicate that is read, in bytes: with the envelope around it, it has to fit into a bundle."""


def attest_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact, in a registry, a layout or the store.")],
    predicate: Annotated[str, typer.Option(metavar="FILE", help="A JSON object: what is attested.")],
    type_: Annotated[
        str, typer.Option("--type", metavar="URI", help="Its type: a URI, slsaprovenance1, cyclonedx, spdx or scan.")
    ],
    key: Key = None,
    keyless: Keyless = False,
    trust_config: TrustConfig = None,
    identity_token: IdentityToken = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Speak HTTP to the registry, loopback or not.")
    ] = False,
) -> None:
    """Attest something of an artifact: sign a statement about it, in the form that cosign reads.

    Example: packager attest localhost:5000/ai/smollm2:135M-F16 --predicate sbom.json --type spdx --key cosign.key
    """
    reference = Reference.parse(ref)
    kind = predicate_type(type_)
    said = read_predicate(Path(predicate))
    who = signer(key, keyless, trust_config, identity_token)
    repository = open_repository(reference, plain_http=plain_http)
    descriptor = resolve(repository, reference)
    attest(repository, descriptor, Statement.about(descriptor.digest, kind, said), who)
    note(f"attested {short_name(kind)} with {named(who)}")
    print(reference.with_digest(descriptor.digest), flush=True)


def read_predicate(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InvalidInput`: the file is the user's own."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_PREDICATE + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read predicate {path}: {error.strerror}") from None
    try:
        return load_json(raw, f"predicate {path}", MAX_PREDICATE)
    except Malformed as error:
        raise InvalidInput(str(error)) from None
