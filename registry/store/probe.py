"""Whether conditional writes of a store are atomic, found out by racing them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from registry.store.protocol import Conflict, ObjectStore

_RACERS = 3  # some services make each loser wait for a second


def conditional_writes_are_atomic(store: ObjectStore, rounds: int = 1) -> bool:
    """Whether, of several writers with the same condition, exactly one wins, both creating and replacing."""
    key = f"probe/{secrets.token_hex(8)}"
    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            for _ in range(rounds):
                store.delete(key)
                if _winners(pool, lambda data: store.put(key, data, if_none_match=True)) != 1:
                    return False
                etag = store.get(key).etag
                if _winners(pool, lambda data, etag=etag: store.put(key, data, if_match=etag)) != 1:  # type: ignore[misc]
                    return False
        return True
    finally:
        store.delete(key)


def deletes_are_conditional(store: ObjectStore) -> bool:
    """Whether a DELETE with If-Match leaves an object alone that has been written again since it was read."""
    key = f"probe/{secrets.token_hex(8)}"
    try:
        before = store.put(key, b"before")
        store.put(key, b"after")
        try:
            store.delete(key, if_match=before)
        except Conflict:
            return store.get(key).data == b"after"
        return False
    finally:
        store.delete(key)


def _winners(pool: ThreadPoolExecutor, write: Callable[[bytes], str]) -> int:
    barrier = Barrier(_RACERS)

    def race(_: int) -> bool:
        barrier.wait()
        try:
            write(secrets.token_bytes(16))
        except Conflict:
            return False
        return True

    return sum(pool.map(race, range(_RACERS)))
