"""Merkle trees: the published vectors, and proofs of every size against trees computed by definition."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact import merkle
from artifact.errors import Malformed

# The entries and roots that certificate transparency implementations share as test vectors.
ENTRIES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("size", ROOTS)
def test_the_published_roots(size):
    assert merkle.root_hash(merkle.leaf_hash(entry) for entry in ENTRIES[:size]).hex() == ROOTS[size]


def test_a_tree_without_leaves():
    assert merkle.root_hash([]) == hashlib.sha256(b"").digest()


def tree(size):
    return [merkle.leaf_hash(index.to_bytes(4, "big")) for index in range(size)]


def by_definition(leaves):
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + by_definition(leaves[:split]) + by_definition(leaves[split:])).digest()


@given(st.integers(1, 200))
def test_the_root_is_the_one_of_the_definition(size):
    assert merkle.root_hash(tree(size)) == by_definition(tree(size))


@given(st.integers(1, 130), st.data())
def test_inclusion(size, data):
    leaves, index = tree(size), data.draw(st.integers(0, size - 1))
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root_hash(leaves)
    merkle.check_inclusion(leaves[index], index, size, proof, root)
    other = data.draw(st.integers(0, size - 1).filter(lambda value: value != index)) if size > 1 else None
    for claim in (
        (merkle.leaf_hash(b"another"), index, size, proof, root),
        (leaves[index], index, size, [*proof, root], root),
        (leaves[index], index, size, proof, merkle.leaf_hash(b"another")),
        (leaves[index], size, size, proof, root),
        *([(leaves[index], index, size, proof[:-1], root)] if proof else []),
        *([(leaves[index], other, size, proof, root)] if other is not None else []),
    ):
        with pytest.raises(Malformed):
            merkle.check_inclusion(*claim)


@given(st.integers(1, 130), st.data())
def test_consistency(second, data):
    first = data.draw(st.integers(1, second))
    leaves = tree(second)
    old, new = merkle.root_hash(leaves[:first]), merkle.root_hash(leaves)
    proof = merkle.consistency_proof(leaves, first)
    merkle.check_consistency(first, second, proof, old, new)
    stranger = merkle.leaf_hash(b"a rewritten history")
    for claim in (
        (first, second, proof, stranger, new),
        (first, second, proof, old, stranger),
        (first, second, [*proof, stranger], old, new),
        (second + 1, second, proof, old, new),
        *([(first, second, proof[:-1], old, new)] if proof else []),
    ):
        with pytest.raises(Malformed):
            merkle.check_consistency(*claim)


def test_everything_follows_from_an_empty_log():
    merkle.check_consistency(0, 3, [], merkle.EMPTY_ROOT, merkle.root_hash(tree(3)))
    with pytest.raises(Malformed):
        merkle.check_consistency(0, 3, [merkle.EMPTY_ROOT], merkle.EMPTY_ROOT, merkle.root_hash(tree(3)))
