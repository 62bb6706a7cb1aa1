"""Signing without a key to keep: with an identity token, a key for this one time, and a certificate of ten minutes.

sigstore's library makes the certificate request, the signature, the log entry and the timestamp. What it needs to know
of a Sigstore instance is in a client trust config; without one it asks the public instance for its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artifact.errors import InvalidInput, Malformed, ServerError, Unauthorized, Unreachable
from supplychain.bundle import Bundle
from supplychain.identity import Identity, NotCertified, Sealed, certify
from supplychain.statement import Statement
from supplychain.trustroot import MAX_BYTES, TrustRoot

if TYPE_CHECKING:  # half a second to import
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.sign import Signer


class KeylessSigner:
    """Someone with an identity token. Everything signed within ten minutes shares one certificate."""

    def __init__(self, config: ClientTrustConfig, token: IdentityToken) -> None:
        from sigstore.sign import SigningContext

        self._context = SigningContext.from_trust_config(config)
        self._root = TrustRoot.of(config)
        self._token = token
        self._signer: Signer | None = None
        self.identity: Identity | None = None

    @classmethod
    def open(cls, trust_config: Path | None = None, token: str | None = None) -> KeylessSigner:
        """Get ready to sign: `trust_config` is the file about the Sigstore instance, by default that of the public one;
        `token` is an OpenID Connect token for the audience ``sigstore``, by default that of the CI job this runs in.

        Raises `InvalidInput` for a file or token that cannot be used or is missing, `Unreachable`.
        """
        from sigstore.errors import Error
        from sigstore.models import ClientTrustConfig

        identity = _token(token)
        try:
            config = ClientTrustConfig.production() if trust_config is None else ClientTrustConfig.from_json(
                _read(trust_config)
            )  # fmt: skip
            return cls(config, identity)
        except (Error, ValueError) as error:  # pydantic's errors are values
            if trust_config is None:
                raise Unreachable(f"the public Sigstore instance's trust root cannot be had: {error}") from None
            raise InvalidInput(f"{trust_config} is no client trust config that can be used: {_line(error)}") from None

    def sign(self, statement: Statement) -> bytes:
        """The bundle that says `statement` in the signer's name. It is verified before it is given away.

        Raises `Unauthorized` if the certificate authority does not take the token, `Unreachable`, `ServerError`.
        """
        from sigstore import dsse

        document = json.loads(statement.to_bytes())
        for subject in document["subject"]:
            subject["name"] = ""  # that library wants one
        with _reported():
            if self._signer is None:
                with self._context.signer(self._token) as signer:
                    self._signer = signer
            raw = self._signer.sign_dsse(dsse.Statement(json.dumps(document).encode())).to_json().encode()
        try:
            self.identity = certify(Sealed.of(Bundle.parse(raw)), (self._root,)).identity
        except (NotCertified, Malformed) as error:
            raise ServerError(f"the services made a signature that their own trust root refuses: {error}") from None
        return raw


def _token(stated: str | None) -> IdentityToken:
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential

    try:
        found = stated or detect_credential()
        if not found:
            raise InvalidInput(
                "no identity token: give --identity-token, or run in a CI job that may ask for one (id-token: write)"
            )
        return IdentityToken(found)
    except IdentityError as error:
        raise InvalidInput(f"the identity token cannot be used: {_line(error)}") from None


@contextmanager
def _reported() -> Iterator[None]:
    """Say what went wrong with the services as one of our errors."""
    import requests
    from sigstore._internal.fulcio.client import FulcioClientError
    from sigstore._internal.rekor import RekorClientError
    from sigstore.errors import Error
    from sigstore.oidc import ExpiredIdentity

    try:
        yield
    except ExpiredIdentity:
        raise InvalidInput("the identity token has expired: get a new one") from None
    except FulcioClientError as error:
        raise _refused(error) from None
    except RekorClientError as error:
        raise ServerError(f"the transparency log did not take the entry: {_line(error)}") from None
    except requests.RequestException as error:
        raise Unreachable(f"a Sigstore service cannot be reached: {_line(error)}") from None
    except (Error, ValueError, KeyError) as error:
        raise ServerError(f"a Sigstore service answered what cannot be used: {_line(error)}") from None


def _refused(error: Exception) -> Unauthorized | ServerError:
    """What the certificate authority says: in the body of its answer, which the library keeps as the cause."""
    response = getattr(error.__cause__, "response", None)
    if response is None:
        return ServerError(f"the certificate authority's answer cannot be used: {_line(error)}")
    try:
        said = response.json().get("message", "")
    except (ValueError, AttributeError):
        said = ""
    text = (
        f"the certificate authority refused (status {response.status_code}): {str(said)[:300] or 'it gave no reason'}"
    )
    return Unauthorized(text) if 400 <= response.status_code < 500 else ServerError(text)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read trust config {path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_BYTES} bytes")
    return raw.decode("utf-8", "replace")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
