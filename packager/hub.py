"""Models on a Hugging Face hub: ``hf://ORG/NAME[@REV]``, fetched by commit through huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifact.digest import Digest
from artifact.errors import InvalidInput, NotFound, ServerError, Unauthorized, Unreachable
from artifact.version import PRODUCT, __version__
from packager.files import is_filtered_out, is_gguf_folder, kind_of
from packager.gguffile import model_of

SCHEME = "hf://"

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A model repository ``ORG/NAME`` at a revision: a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubModel:
        """Read ``hf://ORG/NAME[@REV]``. Raises `InvalidInput`."""
        repository, at, revision = text.removeprefix(SCHEME).partition("@")
        if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)) or ".." in revision:
            raise InvalidInput(f"not a hub model: {text[:120]!r} (want {SCHEME}ORG/NAME or {SCHEME}ORG/NAME@REV)")
        return cls(repository, revision or "main")


@dataclass(frozen=True)
class Snapshot:
    """A model in the hub client's cache. `globs` match exactly the files that belong to it: the folder may hold
    others, from other uses of the cache. `digests` are those the hub has of its large files."""

    folder: Path
    url: str
    commit: str
    globs: tuple[str, ...]
    digests: Mapping[str, Digest]


def snapshot(model: HubModel, globs: Sequence[str] = ()) -> Snapshot:
    """Fetch what would be packed of `model`.

    Weights of other frameworks are not fetched. The hub is ``$HF_ENDPOINT`` if set. Its client checks the sizes of what
    it fetches; the digests are checked when the files are packed. Raises `NotFound`, `Unauthorized`, `Unreachable`,
    `ServerError`.
    """
    from huggingface_hub import HfApi, snapshot_download  # takes a while to load, and only hub models need it

    api = HfApi(library_name=PRODUCT, library_version=__version__)
    try:
        info = api.model_info(model.repository, revision=model.revision, files_metadata=True)
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise ServerError(f"{SCHEME}{model.repository}: the hub names no commit for {model.revision!r}")
        names = [item.rfilename for item in info.siblings or []]
        wanted = [name for name in names if _is_wanted(name, names) and not is_filtered_out(name, globs)]
        if is_gguf_folder(wanted):
            model_of(f"{SCHEME}{model.repository}", wanted)  # before any of several is downloaded
        else:
            wanted = [name for name in wanted if not name.endswith(".gguf")]
        if not wanted:
            raise NotFound(f"{SCHEME}{model.repository}@{model.revision}: nothing in it can be packed")
        patterns = tuple(_literal(name) for name in wanted)
        folder = snapshot_download(
            model.repository, revision=commit, allow_patterns=list(patterns), library_name=PRODUCT,
            library_version=__version__,
        )  # fmt: skip
    except Exception as error:
        raise _told(error, model) from error
    digests = {item.rfilename: _digest(item.lfs.sha256) for item in info.siblings or [] if item.lfs is not None}
    return Snapshot(Path(folder), f"{api.endpoint}/{model.repository}", commit, patterns, digests)


def _digest(hexadecimal: str) -> Digest:
    try:
        return Digest("sha256", hexadecimal)
    except InvalidInput:
        raise ServerError(f"the hub names a file by something that is no SHA-256: {hexadecimal[:80]!r}") from None


def _is_wanted(name: str, names: list[str]) -> bool:
    # Subfolders belong to a model only where a modules.json says so; which ones is decided when the folder is read.
    return kind_of(name) is not None and ("/" not in name or ("modules.json" in names and name.count("/") == 1))


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _told(error: Exception, model: HubModel) -> Exception:
    """The error in our words."""
    from huggingface_hub import errors

    place = f"{SCHEME}{model.repository}@{model.revision}"
    known: tuple[tuple[tuple[type[Exception], ...], Any, str], ...] = (
        ((errors.GatedRepoError,), Unauthorized, "gated: accept its terms on the hub and set HF_TOKEN"),
        ((errors.RevisionNotFoundError,), NotFound, "no such revision"),
        ((errors.RepositoryNotFoundError,), NotFound, "no such model, or a private one: set HF_TOKEN if it is yours"),
        ((errors.HFValidationError,), InvalidInput, "not a hub model"),
        (
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled),
            Unreachable,
            "the hub cannot be reached and it is not cached",
        ),
        ((errors.EntryNotFoundError,), NotFound, "a file the hub lists is not there"),
        ((ConnectionError, TimeoutError), Unreachable, "the hub cannot be reached"),
    )
    for types, told, message in known:
        if isinstance(error, types):
            return told(f"{place}: {message}")  # type: ignore[no-any-return]
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no status"
        return ServerError(f"{place}: the hub answered {status}")
    # Which HTTP library the hub's client uses depends on its version: its failures are known by their name.
    if any(base.__name__ == "TransportError" for base in type(error).__mro__):
        return Unreachable(f"{place}: the hub cannot be reached ({type(error).__name__})")
    return error
