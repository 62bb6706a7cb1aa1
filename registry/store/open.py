"""Which driver a ``--storage`` value means."""

from __future__ import annotations

import re
from pathlib import Path

from artifact.errors import InvalidInput
from registry.store.filesystem import FilesystemStore
from registry.store.protocol import ObjectStore, checked_key

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(storage: str, *, create: bool = True) -> ObjectStore:
    """The store at ``DIR`` or ``s3://BUCKET[/PREFIX]``. A folder that is not there is made, or is an error if
    `create` is not set. Raises `InvalidInput`."""
    scheme, separator, rest = storage.partition("://")
    if not separator:
        folder = Path(storage).expanduser()
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"storage {storage!r} is a file: name a folder or s3://BUCKET/PREFIX")
        if not create and not folder.exists():
            raise InvalidInput(f"storage {storage!r} does not exist: name the folder the registry serves")
        return FilesystemStore(folder)
    if scheme != "s3":
        raise InvalidInput(f"storage {storage!r}: only folders and s3://BUCKET/PREFIX are supported")
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidInput(f"not a bucket name: {bucket[:80]!r} (want s3://BUCKET or s3://BUCKET/PREFIX)")
    from registry.store.s3 import S3Store  # boto3 takes half a second to load: not for a folder

    prefix = prefix.strip("/")
    return S3Store(bucket, checked_key(prefix) if prefix else "")
