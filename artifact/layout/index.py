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

_MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutIndex:
    """Reads and rewrites the index of the layout at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self) -> None:
        """Make the folder a layout if it is none yet."""
        marker = self._root / "oci-layout"
        if not marker.exists():
            (self._root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
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
            raw = (self._root / "index.json").read_bytes()
        except FileNotFoundError:
            return ()
        return Index.parse(raw).manifests

    def update(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        """Replace the index by what `change` makes of it, with all other writers kept out meanwhile."""
        with self._locked():
            before = self.read()
            after = change(list(before))
            if after != list(before) or not (self._root / "index.json").exists():
                write_atomically(self._root / "index.json", Index(after).to_bytes())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._root / "oci-layout", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


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
