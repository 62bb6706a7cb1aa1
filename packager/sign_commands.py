"""``packager sign``, ``attest`` and ``keygen``: what is said of an artifact, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.errors import InvalidInput, Malformed
from artifact.locate import open_repository, resolve
from artifact.manifest import load_json
from artifact.reference import Reference
from artifact.terminal import note
from packager.options import PlainHttpOption, print_pinned
from packager.prompt import key_password
from packager.signer import IdentityToken, Key, Keyless, TrustConfig, named, signer
from supplychain import keys
from supplychain.attest import attest
from supplychain.predicate import predicate_type, short_name
from supplychain.sign import sign
from supplychain.statement import Statement

_MAX_PREDICATE = 3 * 1024 * 1024
"""Largest predicate that is read, in bytes: with the envelope around it, it has to fit into a bundle."""

sign_app = typer.Typer()


@sign_app.command("sign")
def sign_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact, in a registry, a layout or the store.")],
    key: Key = None,
    keyless: Keyless = False,
    trust_config: TrustConfig = None,
    identity_token: IdentityToken = None,
    plain_http: PlainHttpOption = False,
) -> None:
    """Sign an artifact: with a key, in both forms that cosign reads, or keyless, in the newer of them.

    Example: packager sign localhost:5000/ai/smollm2:135M-F16 --key cosign.key
    """
    reference = Reference.parse(ref)
    who = signer(key, keyless, trust_config, identity_token)
    repository = open_repository(reference, plain_http=plain_http)
    descriptor = resolve(repository, reference)
    sign(repository, descriptor, who)
    note(f"signed with {named(who)}")
    print_pinned(reference, descriptor)


@sign_app.command("attest")
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
    plain_http: PlainHttpOption = False,
) -> None:
    """Attest something of an artifact: sign a statement about it, in the form that cosign reads.

    Example: packager attest localhost:5000/ai/smollm2:135M-F16 --predicate sbom.json --type spdx --key cosign.key
    """
    reference = Reference.parse(ref)
    kind = predicate_type(type_)
    said = _read_predicate(Path(predicate))
    who = signer(key, keyless, trust_config, identity_token)
    repository = open_repository(reference, plain_http=plain_http)
    descriptor = resolve(repository, reference)
    attest(repository, descriptor, Statement.about(descriptor.digest, kind, said), who)
    note(f"attested {short_name(kind)} with {named(who)}")
    print_pinned(reference, descriptor)


def _read_predicate(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InvalidInput`: the file is the user's own."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_PREDICATE + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read predicate {path}: {error.strerror}") from None
    try:
        return load_json(raw, f"predicate {path}", _MAX_PREDICATE)
    except Malformed as error:
        raise InvalidInput(str(error)) from None


@sign_app.command("keygen")
def keygen_command(
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="Writes PREFIX.key and PREFIX.pub.")],
) -> None:
    """Make a signing key pair; the private key is encrypted in cosign's format.

    The password comes from COSIGN_PASSWORD (which may be empty) or a prompt.

    Example: packager keygen release
    """
    private, public = keys.generate(prefix, key_password(confirm=True))
    note(f"private key: {private}")
    print(public)
