"""The ``index.json`` of a layout: which manifests it holds and under which names.

Writers hold a lock on the ``oci-layout`` file, which the kernel lets go when they die; readers need none, because the
index is only ever replaced whole.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import Malformed, NotFound
from artifact.layout.files import write_atomically
from artifact.manifest import Index, load_json

MAX_BYTES = 16 * 1024 * 1024
"""Largest index that is read or written: about 50,000 manifests. It is in memory whenever one is looked up."""

_MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutIndex:
    """Reads and rewrites the index of the layout at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self) -> None:
        """Make the folder a layout if it is none yet."""
        marker = self._root / "oci-layout"
        if marker.exists():
            return
        (self._root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        with _lock(self._root):
            if not marker.exists():  # never replace it: somebody may hold the lock on it by now
                write_atomically(marker, _MARKER)

    def read(self) -> Sequence[Descriptor]:
        """The descriptors in the index. Raises `NotFound` if the folder is no layout, `Malformed` if it is broken."""
        try:
            marker = (self._root / "oci-layout").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"{self._root} is not an OCI image layout: it has no oci-layout file") from None
        if load_json(marker, f"{self._root}/oci-layout").get("imageLayoutVersion") != "1.0.0":
            raise Malformed(f"{self._root}/oci-layout: imageLayoutVersion must be 1.0.0")
        try:
            with (self._root / "index.json").open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return ()
        return _parse(raw, f"{self._root}/index.json")

    def update(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        """Replace the index by what `change` makes of it, with all other writers kept out meanwhile.

        Raises `Malformed`, and changes nothing, if it would be larger than `MAX_BYTES`.
        """
        with _lock(self._root / "oci-layout"):
            before = self.read()
            after = change(list(before))
            if after == list(before) and (self._root / "index.json").exists():
                return
            raw = Index(after).to_bytes()
            if len(raw) > MAX_BYTES:
                raise Malformed(
                    f"{self._root}/index.json would be larger than {MAX_BYTES:,} bytes: it has {len(before):,} "
                    "manifests; remove models that are not needed any more, or use another folder"
                )
            write_atomically(self._root / "index.json", raw)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep out everybody else who locks this file or folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse(raw: bytes, name: str) -> Sequence[Descriptor]:
    """The manifests that an index lists; `name` stands in errors. Other limits hold for one that a registry serves
    (`Index.parse`). Raises `Malformed`."""
    value = load_json(raw, name, MAX_BYTES)
    manifests = value.get("manifests")
    if value.get("schemaVersion") != 2 or "layers" in value or "config" in value or not isinstance(manifests, list):
        raise Malformed(f"{name} is not an image index: it must have schemaVersion 2 and a list of manifests")
    return [Descriptor.from_json(item) for item in manifests]


def ref_name(entry: Descriptor) -> str | None:
    """The name an index entry goes by, if any."""
    return entry.annotations.get(mediatypes.REF_NAME)


def named(entry: Descriptor, name: str | None) -> Descriptor:
    """`entry` under another name, or under none."""
    annotations = {key: value for key, value in entry.annotations.items() if key != mediatypes.REF_NAME}
    if name is not None:
        annotations[mediatypes.REF_NAME] = name
    return replace(entry, annotations=annotations)


def with_entry(entries: list[Descriptor], entry: Descriptor) -> list[Descriptor]:
    """`entries` with `entry` in it. A name moves: its previous holder stays, unnamed, so that its content is kept until
    somebody removes it. An unnamed entry gives way to a named one of the same digest."""
    name = ref_name(entry)
    if name is None and any(item.digest == entry.digest for item in entries):
        return entries
    kept: list[Descriptor] = []
    for item in entries:
        if name is not None and ref_name(item) == name:
            item = named(item, None)
        if item.digest == entry.digest and ref_name(item) is None:
            continue
        kept.append(item)
    unique = {(item.digest, ref_name(item)): item for item in [*kept, entry]}
    return list(unique.values())
