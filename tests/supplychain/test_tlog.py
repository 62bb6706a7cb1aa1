"""Tiles, notes, checkpoints and proofs, against what C2SP and the Go checksum database publish."""

from __future__ import annotations

import base64
import string

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from artifact import merkle
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, Refused
from supplychain.tlog.checkpoint import Checkpoint
from supplychain.tlog.entry import Entry, Replay, moment
from supplychain.tlog.evidence import Evidence, consistent
from supplychain.tlog.note import Note, SignerKey, Unsigned, VerifierKey
from supplychain.tlog.proofs import Tree
from supplychain.tlog.tiles import WIDTH, Tile, bundle, bundles_of, entries_of, hashes_of, root_of, tiles_of

# golang.org/x/mod/sumdb/note, the example of its documentation.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    f"{GO_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyB"
    "wJnAM=\n"
)
# c2sp.org/tlog-checkpoint, the example of its introduction.
C2SP_CHECKPOINT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeM"
    "cTOAYQ8=\n"
)
KEY = SignerKey("example.org/log", Ed25519PrivateKey.generate())
DIGEST = Digest.of(b"a manifest")


class Log:
    """A log in memory, tiled as a server would."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = entries
        self.levels = [[merkle.leaf_hash(entry) for entry in entries]]
        while len(self.levels[-1]) >= WIDTH:
            below = self.levels[-1]
            self.levels.append([merkle.root_hash(below[i : i + 256]) for i in range(0, len(below) // 256 * 256, 256)])
        self.reads = 0

    def read(self, tile: Tile) -> bytes:
        self.reads += 1
        assert tile.level is not None
        level = self.levels[tile.level]
        assert tile.index * WIDTH + tile.width <= len(level), "a tile that is not part of the tree"
        return b"".join(level[tile.index * WIDTH :][: tile.width])

    def checkpoint(self) -> Checkpoint:
        return Checkpoint("example.org/log", len(self.entries), merkle.root_hash(self.levels[0]))


LOG = Log([f"entry {number}".encode() for number in range(70_000)])


def test_the_note_of_the_go_documentation() -> None:
    """Their signature is verified, and signing with their key makes their note byte for byte."""
    key = VerifierKey.parse(GO_KEY)
    assert str(key) == GO_KEY
    assert Note.parse(GO_NOTE.encode()).verified([key]) == GO_TEXT
    signer = SignerKey("PeterNeumann", Ed25519PrivateKey.from_private_bytes(_go_private()))
    assert str(signer.verifier) == GO_KEY
    assert signer.sign(GO_TEXT) == GO_NOTE


def _go_private() -> bytes:
    """``PRIVATE+KEY+PeterNeumann+c74f20a3+...`` of the same documentation: a type byte and the seed."""
    return base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]


def test_the_checkpoint_of_the_specification() -> None:
    note = Note.parse(C2SP_CHECKPOINT.encode())
    checkpoint = Checkpoint.parse(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == note.text
    assert note.signatures[0].name == "example.com/behind-the-sofa"
    assert note.signatures[0].key_id == bytes.fromhex("033de0ae")


def test_the_tiles_of_the_specification() -> None:
    """c2sp.org/tlog-tiles, "Merkle Tree" and "Partial Tiles"."""
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(None, 1234067, 8).path == "tile/entries/x001/x234/067.p/8"
    tiles = list(tiles_of(70_000))
    assert len([tile for tile in tiles if tile.level == 0 and tile.width == 256]) == 273
    assert [tile.path for tile in tiles[273:]] == [
        "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1",
    ]  # fmt: skip
    assert [tile.path for tile in tiles_of(256)] == ["tile/0/000", "tile/1/000.p/1"]
    assert list(tiles_of(0)) == []
    assert [tile.path for tile in bundles_of(257)] == ["tile/entries/000", "tile/entries/001.p/1"]


@given(st.none() | st.integers(0, 63), st.integers(0, 10**15), st.integers(1, 256))
def test_every_tile_has_a_path_of_its_own(level: int | None, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert Tile.parse(tile.path) == tile


@given(st.text(alphabet="tile/entries0123456789x.p", max_size=40).map(lambda text: f"tile/{text}") | st.text())
def test_a_path_that_is_read_is_the_only_one(path: str) -> None:
    try:
        tile = Tile.parse(path)
    except InvalidInput:
        return
    assert tile.path == path
    assert 1 <= tile.width <= 256


@pytest.mark.parametrize(
    "path",
    [
        "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/0", "tile/0/1000", "tile/0/x000/001", "tile/0/001/001",
        "tile/0/x001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/07", "tile/0/000.p/", "tile/0/000/",
        "/tile/0/000", "tile/entries/000.p/300", "tile/0/٠٠٠", "tile/0/../0/000", "tile/0/000\n", "checkpoint",
    ],
)  # fmt: skip
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidInput):
        Tile.parse(path)


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_bundles(entries: list[bytes]) -> None:
    raw = bundle(entries)
    assert entries_of(raw, len(entries)) == entries
    assert entries_of(raw, len(entries) // 2) == entries[: len(entries) // 2]
    with pytest.raises(Malformed):
        entries_of(raw, len(entries) + 1)
    with pytest.raises(Malformed):
        entries_of(raw + b"\0", len(entries))


def test_an_entry_too_long_for_a_bundle() -> None:
    with pytest.raises(ValueError, match="65536"):
        bundle([b"x" * 65536])
    with pytest.raises(Malformed):
        hashes_of(bytes(33), 1)
    with pytest.raises(Malformed):
        hashes_of(bytes(32), 2)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 511, 512, 65_536, 70_000])
def test_proofs_from_tiles(size: int) -> None:
    """They are those of the whole tree, hold against its root, and need a handful of tiles."""
    log = Log(LOG.entries[:size])
    leaves, root = log.levels[0], log.checkpoint().root
    assert Tree(size, log.read).root() == root
    assert root_of([level[len(level) // WIDTH * WIDTH :] for level in log.levels]) == root
    for index in sorted({0, size // 3, size // 2, size - 1} & set(range(size))):
        log.reads = 0
        proof = Tree(size, log.read).inclusion_proof(index)
        assert log.reads <= 6
        merkle.check_inclusion(leaves[index], index, size, proof, root)
        if size < 1000:
            assert proof == merkle.inclusion_proof(leaves, index)
    for first in sorted({1, 2, size // 3, size // 2, size - 1, size} & set(range(1, size + 1))):
        proof = Tree(size, log.read).consistency_proof(first)
        before = Checkpoint("o", first, merkle.root_hash(leaves[:first]))
        consistent(before, log.checkpoint(), proof)
        if size < 1000:
            assert proof == merkle.consistency_proof(leaves, first)
        if first < size:
            other = Checkpoint("o", first, merkle.root_hash([*leaves[: first - 1], bytes(32)]))
            with pytest.raises(Malformed):
                consistent(other, log.checkpoint(), proof)


_NAMES = st.text(alphabet=string.ascii_letters + string.digits + "./-é", min_size=1, max_size=30)
_TEXTS = st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=20), max_size=6)


@given(_NAMES, _TEXTS)
def test_notes(name: str, lines: list[str]) -> None:
    """Any text comes back, blank lines included; one character more or less does not."""
    signer = SignerKey(name, Ed25519PrivateKey.generate())
    text = "\n".join(["first", *lines]) + "\n"
    note = signer.sign(text)
    assert VerifierKey.parse(str(signer.verifier)) == signer.verifier
    assert Note.parse(note.encode()).verified([signer.verifier]) == text
    with pytest.raises(Unsigned):
        Note.parse(("x" + note).encode()).verified([signer.verifier])
    with pytest.raises(Unsigned):
        Note.parse(note.encode()).verified([KEY.verifier])


@given(st.binary(max_size=200) | st.text().map(lambda text: f"{text}\n\n— a {text}\n".encode()))
def test_anything_else_is_no_note(raw: bytes) -> None:
    try:
        note = Note.parse(raw)
    except Malformed:
        return
    with pytest.raises(Unsigned):
        note.verified([KEY.verifier])


@pytest.mark.parametrize(
    "note",
    [
        "text\n", "text\n\n", "text\n\n— a AAAA\n", "text\n\n— a AAAAAAAA", "text\n\n- a AAAAAAAA\n",
        "t\tt\n\n— a AAAAAAAA\n", "text\n\n— a+b AAAAAAAA\n", "text\n\n— AAAAAAAA\n", "text\n\n— a AAAAAAAA\r\n",
        "text\n\n" + "— a AAAAAAAA\n" * 101,
    ],
)  # fmt: skip
def test_notes_that_are_none(note: str) -> None:
    with pytest.raises(Malformed):
        Note.parse(note.encode())


def test_other_signatures_on_a_note() -> None:
    """Those of unknown keys are passed over, also with a known name; a wrong one of a known key spoils the note."""
    note = KEY.sign("example.org/log\n0\n")
    other = SignerKey("example.org/log", Ed25519PrivateKey.generate())
    cosigned = note + other.sign("example.org/log\n0\n").rpartition("\n\n")[2]
    assert Note.parse(cosigned.encode()).verified([KEY.verifier])
    forged = base64.b64encode(KEY.verifier.id + bytes(64)).decode()
    with pytest.raises(Unsigned):
        Note.parse((note + f"— example.org/log {forged}\n").encode()).verified([KEY.verifier])


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a",
        "a+b+c",
        GO_KEY.replace("c74f20a3", "c74f20a4"),
        GO_KEY.replace("+AR", "+AB"),
        GO_KEY[:-4],
        "a b+" + GO_KEY,
    ],
)
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(InvalidInput):
        VerifierKey.parse(key)


@pytest.mark.parametrize(
    "text",
    [
        "o\n1\n", "\n1\nAAAA\n", "o\n01\n{root}\n", "o\n-1\n{root}\n", "o\n1\nAAAA\n", "o\n1\n{root}\n\n",
        "o\n1\n{root}", "o\n9999999999999999999\n{root}\n", "o\n0\n{root}\n", "o\n١\n{root}\n", "o\n1\n {root}\n",
    ],
)  # fmt: skip
def test_checkpoints_that_are_none(text: str) -> None:
    with pytest.raises(Malformed):
        Checkpoint.parse(text.format(root=base64.b64encode(bytes(32)).decode()))


def test_a_checkpoint_of_another_log() -> None:
    with pytest.raises(Malformed, match="not of example"):
        Checkpoint.open(KEY.sign(Checkpoint("example.org/other", 1, bytes(32)).text).encode(), KEY.verifier)


def evidence(index: int = 300, size: int = 1000) -> Evidence:
    log = Log(LOG.entries[:size])
    proof = Tree(size, log.read).inclusion_proof(index)
    return Evidence(log.entries[index], index, tuple(proof), KEY.sign(log.checkpoint().text).encode())


def test_evidence_is_a_text() -> None:
    found = evidence()
    text = found.to_text()
    assert text.startswith("c2sp.org/tlog-proof@v1\nextra ZW50cnkgMzAw\nindex 300\n")
    assert Evidence.parse(text.encode()) == found
    assert found.check(KEY.verifier).size == 1000


@given(st.data())
def test_evidence_that_was_changed(data: st.DataObject) -> None:
    """Whatever is put in place of a byte, either it cannot be read, or it is refused, or it says the same."""
    raw = evidence().to_text().encode()
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:at] + data.draw(st.binary(max_size=2)) + raw[at + 1 :]
    try:
        found = Evidence.parse(changed)
        found.check(KEY.verifier)
    except (Malformed, Refused):
        return
    assert (found.entry, found.index) == (b"entry 300", 300)


def test_sigstore_accepts_our_proofs() -> None:
    """Another implementation of inclusion proofs and of signed checkpoints: sigstore-python's, for Rekor."""
    checkpoints = pytest.importorskip("sigstore._internal.rekor.checkpoint", reason="PEER NOT ASKED: no sigstore")
    found = evidence()
    signed = checkpoints.SignedCheckpoint.from_text(found.checkpoint.decode())
    assert (signed.checkpoint.log_size, signed.checkpoint.origin) == (1000, "example.org/log")
    (signature,) = signed.signed_note.signatures
    assert signature.sig_hash == KEY.verifier.id
    assert KEY.verifier.accepts(base64.b64decode(signature.signature), signed.signed_note.note)
    merkles = pytest.importorskip("sigstore._internal.merkle")
    inner, border = merkles._decomp_inclusion_proof(found.index, 1000)
    assert len(found.proof) == inner + border
    node = merkles._chain_inner(merkles._hash_leaf(found.entry), list(found.proof[:inner]), found.index)
    root = merkles._chain_border_right(node, list(found.proof[inner:]))
    assert root.hex() == signed.checkpoint.log_hash


# Entries.


def entry(action: str = "tag", tag: str | None = "v1", digest: Digest | None = DIGEST, **more: object) -> Entry:
    return Entry(action, "team/model", moment(0), "0" * 32, digest, tag, **more)  # type: ignore[arg-type]


def test_an_entry_has_one_spelling() -> None:
    raw = entry(previous=Digest.of(b"before"), principal="älice").to_bytes()
    assert Entry.parse(raw).principal == "älice"
    assert b'"time":"1970-01-01T00:00:00.000Z"' in raw
    for other in (raw.replace(b":", b": ", 1), raw.replace("ä".encode(), b"\\u00e4"), raw + b" ", b" " + raw):
        with pytest.raises(Malformed):
            Entry.parse(other)


@pytest.mark.parametrize(
    "raw",
    [
        entry("push"), entry("untag"), entry("tag", None), entry("tag", "v1", None), entry("tag", "no tag"),
        entry("move"), entry("delete", None, None),
    ],
)  # fmt: skip
def test_entries_that_make_no_sense(raw: Entry) -> None:
    with pytest.raises(Malformed):
        Entry.parse(raw.to_bytes())


@given(st.binary(max_size=100) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: repr(v).encode()))
def test_anything_else_is_no_entry(raw: bytes) -> None:
    with pytest.raises(Malformed):
        Entry.parse(raw)


def test_replay() -> None:
    other = Digest.of(b"other")
    replay = Replay()
    replay.take(
        [
            entry("push", None).to_bytes(),
            entry().to_bytes(),
            entry(digest=other, previous=DIGEST).to_bytes(),
            entry("untag", digest=None, previous=other).to_bytes(),
            entry(tag="v2").to_bytes(),
        ]
    )
    assert replay.tags == {("team/model", "v2"): (DIGEST, 4)}
    assert replay.gone == {("team/model", "v1"): 3}
    assert replay.problems == []
    replay.take([entry(tag="v2", digest=other).to_bytes(), entry(tag="v3", previous=other).to_bytes()])
    assert [problem.partition(":")[0] for problem in replay.problems] == ["entry 5", "entry 6"]
