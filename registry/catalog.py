"""Which repositories there are: read off the keys, skipping from one repository to the next."""

from __future__ import annotations

from registry import keys
from registry.store.protocol import ObjectStore


def exists(store: ObjectStore, name: str) -> bool:
    """Whether anything was ever pushed to a repository and is still there."""
    return bool(store.list(keys.repository(name), limit=1))


def repositories(store: ObjectStore, last: str, limit: int) -> list[str]:
    """At most `limit` repository names after `last`, in the store's order. Costs one listing per name."""
    names: list[str] = []
    after = f"{keys.repository(last)}~" if last else ""
    while len(names) < limit:
        entries = store.list(keys.REPOSITORIES, start_after=after, limit=1)
        if not entries:
            break
        name = entries[0].key.removeprefix(keys.REPOSITORIES).partition("/_")[0]
        names.append(name)
        after = f"{keys.repository(name)}~"
    return names
