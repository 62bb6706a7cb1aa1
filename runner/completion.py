"""What the shell offers for a model's name: those in the store, read from its index alone."""

from __future__ import annotations

from artifact import mediatypes
from artifact.errors import StowageError
from artifact.layout import LayoutRepository
from runner.store import Store

_MOST = 200


def complete_reference(incomplete: str) -> list[str]:
    """Names of stored models that begin with `incomplete`; none if the store cannot be read."""
    store, names = Store(), set[str]()
    for root in (store.root, store.system):
        try:
            entries = LayoutRepository(root).entries() if root is not None else []
        except (StowageError, OSError):
            continue
        names |= {entry.annotations.get(mediatypes.REF_NAME, "") for entry in entries}
    fitting = {name for name in names if name.startswith(incomplete) and not name.endswith((".sig", ".att", ".sbom"))}
    return sorted(fitting - {""})[:_MOST]
