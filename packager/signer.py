"""Who signs: the options that say so, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from packager.prompt import key_password
from supplychain.keyless import KeylessSigner
from supplychain.keys import PrivateKey

Key = Annotated[str | None, typer.Option(metavar="FILE", help="The private key: a file, or env://NAME.")]
Keyless = Annotated[
    bool, typer.Option("--keyless", help="Sign in the name of an OpenID Connect identity: Fulcio, Rekor.")
]
TrustConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where it is keyless: the client trust config of a private Sigstore instance."),
]
IdentityToken = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN", envvar="SIGSTORE_ID_TOKEN", help="Where it is keyless: the token; else that of the CI job."
    ),
]


def signer(
    key: str | None, keyless: bool, trust_config: Path | None, identity_token: str | None
) -> PrivateKey | KeylessSigner:
    """Who the options say signs. Raises `InvalidInput` unless it is exactly one, and for an option without a value:
    a variable that is not set must not make another signer of the one that was meant, or none."""
    for value, option in ((key, "--key (with pack --sign)"), (identity_token, "--identity-token")):
        if value == "":
            raise InvalidInput(f"{option} is empty: is the variable set that it is taken from?")
    if (key is None) != keyless:
        raise InvalidInput(
            "say who signs: either a key (--key, with pack --sign), or --keyless (with pack --sign-keyless)"
        )
    if keyless:
        return KeylessSigner.open(trust_config, identity_token)
    if trust_config is not None:
        raise InvalidInput("--trust-config is for --keyless: a key signs without a Sigstore instance")
    return PrivateKey.load(key or "", key_password)


def named(who: PrivateKey | KeylessSigner) -> str:
    """Who has signed, for messages."""
    return f"the key {who.public.hint}" if isinstance(who, PrivateKey) else f"the identity {who.identity}"
