"""Merkle trees over SHA-256, with proofs of inclusion and consistency. Source: RFC 6962 and RFC 9162, section 2.1.

One shape for everything that proves a part of a whole: the chunks of a tensor index, the entries of a transparency
log, and the entries of Rekor. Pure functions; a proof that does not hold raises `Malformed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from artifact.errors import Malformed

HASH_SIZE = 32
"""Bytes of a node."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """The node of one entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The node above two others."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_hash(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, in memory that grows with the logarithm of their number."""
    peaks: list[tuple[int, bytes]] = []  # the roots of whole subtrees, with their heights, from left to right
    for leaf in leaves:
        height, node = 0, leaf
        while peaks and peaks[-1][0] == height:
            node = node_hash(peaks.pop()[1], node)
            height += 1
        peaks.append((height, node))
    if not peaks:
        return EMPTY_ROOT
    _, root = peaks.pop()
    while peaks:
        root = node_hash(peaks.pop()[1], root)
    return root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The nodes that prove leaf `index` to be in the tree over `leaves`, from the bottom up."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root_hash(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root_hash(leaves[:split])]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """The nodes that prove the tree over the first `size` leaves to be the beginning of the tree over all."""
    if not 0 < size <= len(leaves):
        raise IndexError(size)
    return _subproof(leaves, size, whole=True)


def _subproof(leaves: Sequence[bytes], size: int, *, whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [root_hash(leaves)]
    split = _split(len(leaves))
    if size <= split:
        return [*_subproof(leaves[:split], size, whole=whole), root_hash(leaves[split:])]
    return [*_subproof(leaves[split:], size - split, whole=False), root_hash(leaves[:split])]


def _split(count: int) -> int:
    """The largest power of two smaller than `count`: what stands in the left half of a tree."""
    return 1 << (count - 1).bit_length() - 1


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the node `leaf` stands at `index` in the tree of `size` leaves with that `root`.

    Source: RFC 9162 section 2.1.3.2. Raises `Malformed` if it does not.
    """
    if not 0 <= index < size:
        raise Malformed(f"an entry numbered {index} cannot be in a log of {size} entries")
    position, last, node = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise Malformed("the inclusion proof is longer than the tree is high")
        if position & 1 or position == last:
            node = node_hash(step, node)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, step)
        position, last = position >> 1, last >> 1
    if last != 0 or node != root:
        raise Malformed("the inclusion proof does not lead to the log's root")


def check_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """Check that a tree of `first` leaves is the beginning of a tree of `second` leaves.

    Source: RFC 9162 section 2.1.4.2. Raises `Malformed` if it is not, or a size is out of order.
    """
    if not 0 <= first <= second:
        raise Malformed(f"a log of {first} entries cannot be the beginning of one of {second}")
    if first in (0, second):
        if proof or (first and first_root != second_root) or (not first and first_root != EMPTY_ROOT):
            raise Malformed("the consistency proof does not fit the two logs")
        return
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        raise Malformed("the consistency proof is empty")
    position, last = first - 1, second - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for step in path[1:]:
        if last == 0:
            raise Malformed("the consistency proof is longer than the tree is high")
        if position & 1 or position == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, step)
        position, last = position >> 1, last >> 1
    if last != 0 or old != first_root or new != second_root:
        raise Malformed("the consistency proof does not lead from one log's root to the other's")
