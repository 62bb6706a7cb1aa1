"""The tensor index: what is cut, that equal tensors give equal chunks, and that nothing but an index is read as one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import Malformed, NotFound
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.source import bytes_source
from artifact.tensorindex import Chunk, Chunker, Cut, FileIndex, TensorIndex, cut
from artifact.tensorindex.attach import annotated, push_index, push_referrer, read_index
from artifact.weights.tensor import Tensor
from tests.artifact.exchanges import QUIET

SIZES = {"chunk_size": 64, "join_size": 16}
"""Small ones, so that small files have all the cases."""


@st.composite
def files(draw: st.DrawFn, *, zero_gaps: bool = True) -> tuple[bytes, list[Tensor]]:
    """A file's bytes and its tensors: headers, gaps and tensors of every length, also none."""
    out, tensors = bytearray(draw(st.binary(max_size=200))), []
    for index, (length, gap) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), max_size=12))
    ):
        tensors.append(Tensor(f"t{index}", "U8", (length,), len(out), length))
        out += draw(st.binary(min_size=length, max_size=length))
        out += bytes(gap) if zero_gaps else draw(st.binary(min_size=gap, max_size=gap))
    return bytes(out), tensors


def chunks_of(data: bytes, tensors: Sequence[Tensor], step: int = 1 << 20) -> tuple[Chunk, ...]:
    chunker = Chunker(tensors, len(data), **SIZES)
    for start in range(0, len(data), step):
        chunker.update(memoryview(data)[start : start + step])
    return chunker.finish()


def index_of(*contents: tuple[bytes, list[Tensor]]) -> TensorIndex:
    listed = [
        FileIndex(f"m{number}.gguf", Digest.of(data), len(data), tuple(tensors), chunks_of(data, tensors))
        for number, (data, tensors) in enumerate(contents)
    ]
    return TensorIndex(tuple(listed), **SIZES)


@given(files())
def test_the_cuts_cover_the_file_exactly_once(content: tuple[bytes, list[Tensor]]) -> None:
    data, tensors = content
    parts = list(cut(tensors, len(data), **SIZES))
    position = 0
    for part in parts:
        assert part.offset == position and 0 < part.length <= 64
        position = part.end
    assert position == len(data)


@given(files(zero_gaps=False), st.integers(1, 100))
def test_the_chunks_are_the_file_but_for_zeros(content: tuple[bytes, list[Tensor]], step: int) -> None:
    data, tensors = content
    rebuilt = bytearray(len(data))
    for chunk in chunks_of(data, tensors, step):
        part = data[chunk.offset : chunk.end]
        assert hashlib.sha256(part).digest() == chunk.digest
        rebuilt[chunk.offset : chunk.end] = part
    assert rebuilt == data
    assert chunks_of(data, tensors, step) == chunks_of(data, tensors), "whatever the buffers"


@given(
    files(),
    files(),
    st.integers(0, 300).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.integers(0, 999),
)
def test_a_tensor_has_the_same_chunks_wherever_it_lies(
    one: tuple[bytes, list[Tensor]], other: tuple[bytes, list[Tensor]], moved: bytes, where: int
) -> None:
    moved = moved.ljust(16, b"m")  # as long as what stands alone
    found = []
    for data, tensors in (one, other):
        at = where % (len(tensors) + 1)
        start = tensors[at].offset if at < len(tensors) else len(data)
        behind = [Tensor(t.name, t.dtype, t.shape, t.offset + len(moved), t.length) for t in tensors[at:]]
        tensor = Tensor("moved", "U8", (len(moved),), start, len(moved))
        chunks = chunks_of(data[:start] + moved + data[start:], [*tensors[:at], tensor, *behind])
        found.append([(c.offset - start, c.digest) for c in chunks if start <= c.offset < start + len(moved)])
    assert (
        found[0]
        == found[1]
        == [(start, hashlib.sha256(moved[start : start + 64]).digest()) for start in range(0, len(moved), 64)]
    )


def test_the_rule() -> None:
    tensors = [
        Tensor("a", "U8", (5,), 100, 5), Tensor("b", "U8", (6,), 108, 6), Tensor("c", "U8", (4,), 116, 4),
        Tensor("none", "U8", (0,), 120, 0), Tensor("large", "U8", (150,), 160, 150), Tensor("d", "U8", (1,), 320, 1),
    ]  # fmt: skip
    assert list(cut(tensors, 400, **SIZES)) == [
        Cut(0, 64, False), Cut(64, 36, False),  # the header
        Cut(100, 14, False), Cut(114, 2, True),  # a and b together, c would make them 20 bytes
        Cut(116, 4, False), Cut(120, 40, True),
        Cut(160, 64, False), Cut(224, 64, False), Cut(288, 22, False), Cut(310, 10, True),
        Cut(320, 1, False), Cut(321, 64, True), Cut(385, 15, True),
    ]  # fmt: skip
    assert list(cut([], 70, **SIZES)) == [Cut(0, 64, False), Cut(64, 6, False)]
    assert list(cut([], 0, **SIZES)) == []


@pytest.mark.parametrize(
    "tensors", [[("a", 0, 10), ("b", 9, 5)], [("a", 90, 11)], [("a", -1, 5)], [("a", 5, -1)]], ids=str
)
def test_impossible_tensors_are_refused(tensors: list[tuple[str, int, int]]) -> None:
    with pytest.raises(Malformed, match=r"m\.gguf: tensor"):
        Chunker([Tensor(name, "U8", (1,), offset, length) for name, offset, length in tensors], 100, name="m.gguf")


def test_a_file_that_changes_while_it_is_read() -> None:
    chunker = Chunker([], 10, name="m.gguf")
    chunker.update(b"12345")
    with pytest.raises(Malformed, match="ended at 5 of 10"):
        chunker.finish()
    with pytest.raises(Malformed, match="more than 10 bytes"):
        chunker.update(b"1234567890")


@given(files(), st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 500)), max_size=8))
def test_what_a_transfer_reads_twice_counts_once(
    content: tuple[bytes, list[Tensor]], reads: list[tuple[int, int]]
) -> None:
    data, tensors = content
    chunker = Chunker(tensors, len(data), **SIZES)
    source = chunker.tap(bytes_source(data))
    for back, count in [*reads, (0, len(data) + 1)]:
        with source(max(0, chunker.position - back)) as reader:
            buffer = memoryview(bytearray(count + back))
            got = reader.readinto(buffer)
            assert buffer[:got] == data[max(0, chunker.position - got) : chunker.position][-got or len(data) :]
    assert chunker.finish() == chunks_of(data, tensors)


def test_a_reader_may_not_jump_ahead() -> None:
    source = Chunker([], 10, **SIZES).tap(bytes_source(b"0123456789"))
    with source(5) as reader, pytest.raises(ValueError, match="were not read"):
        reader.readinto(memoryview(bytearray(5)))


@given(st.lists(files(zero_gaps=False), max_size=4))
def test_what_is_written_is_read_back(contents: list[tuple[bytes, list[Tensor]]]) -> None:
    index = index_of(*contents)
    raw = index.to_bytes()
    assert TensorIndex.parse(raw) == index
    assert TensorIndex.parse(raw).to_bytes() == raw


def test_the_order_in_which_files_and_tensors_are_given_does_not_matter() -> None:
    data, tensors = bytes(100), [Tensor("b", "U8", (5,), 10, 5), Tensor("a", "U8", (5,), 15, 5)]
    one = FileIndex("a.gguf", Digest.of(data), 100, tensors, ())
    other = FileIndex("b.gguf", Digest.of(data), 100, tensors[::-1], ())
    assert TensorIndex.of([other, one]).to_bytes() == TensorIndex.of([one, other]).to_bytes()
    assert [file.path for file in TensorIndex.of([other, one]).files] == ["a.gguf", "b.gguf"]


SAMPLE = index_of(
    (bytes(range(200)), [Tensor("a", "F16", (3, 5), 20, 30), Tensor("β", "Q4_K", (80,), 60, 80)]), (b"x" * 70, [])
).to_bytes()


def places(value: object) -> Iterator[tuple[object, object]]:
    """Every container and key in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])  # type: ignore[index]


COUNT = len(list(places(json.loads(SAMPLE))))


@given(
    st.integers(0, COUNT - 1),
    st.sampled_from([None, True, -1, 0, 1, 7, 10**30, 1.5, "", "x", "../x", "a" * 64, [], [1], {}, "\ud800"]),
)
@settings(max_examples=400)
def test_no_value_can_be_another_one(place: int, replacement: object) -> None:
    value = json.loads(SAMPLE)
    container, key = list(places(value))[place]
    if container[key] == replacement and type(container[key]) is type(replacement):  # type: ignore[index]
        return
    container[key] = replacement  # type: ignore[index]
    raw = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()
    try:
        index = TensorIndex.parse(raw)
    except Malformed:
        return
    # What nothing in an index can contradict: names, types and shapes, the digest of a whole file, and no files at all.
    assert index.to_bytes() == raw
    before = TensorIndex.parse(SAMPLE)
    for ours, theirs in zip(index.files, before.files, strict=bool(index.files)):
        assert (ours.chunks, ours.size) == (theirs.chunks, theirs.size)
        assert [(t.offset, t.length) for t in ours.tensors] == [(t.offset, t.length) for t in theirs.tensors]


@given(st.integers(0, COUNT - 1))
def test_nothing_can_be_missing_or_more(place: int) -> None:
    value = json.loads(SAMPLE)
    container, key = list(places(value))[place]
    shape = isinstance(container, list) and all(isinstance(item, int) for item in container)
    if shape or (container is value["files"]):
        return  # a shape and a list of files can have any length
    removed = container[key]  # type: ignore[index]
    del container[key]  # type: ignore[attr-defined]
    with pytest.raises(Malformed):
        TensorIndex.parse(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
    if isinstance(container, list):
        container.insert(key, removed)  # type: ignore[arg-type]
        container.insert(key, removed)  # type: ignore[arg-type]
    else:
        container[key] = removed  # type: ignore[index]
        container["more"] = 1  # type: ignore[index]
    with pytest.raises(Malformed):
        TensorIndex.parse(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())


@given(st.integers(0, len(SAMPLE) * 8 - 1))
@settings(max_examples=300)
def test_a_flipped_bit_is_refused_or_another_name(bit: int) -> None:
    """No flipped bit leaves a chunk another place or digest, or a file another size or digest of its chunks."""
    raw = bytearray(SAMPLE)
    raw[bit // 8] ^= 1 << bit % 8
    try:
        index = TensorIndex.parse(bytes(raw))
    except Malformed:
        return
    sample = TensorIndex.parse(SAMPLE)
    for ours, theirs in zip(index.files, sample.files, strict=True):
        assert (ours.chunks, ours.size) == (theirs.chunks, theirs.size)


def test_a_root_is_that_of_the_chunks() -> None:
    value = json.loads(SAMPLE)
    value["files"][0]["root"] = value["files"][1]["root"]
    with pytest.raises(Malformed, match="the root of"):
        TensorIndex.parse(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())


@given(st.binary(max_size=300))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        TensorIndex.parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        SAMPLE + b"\n", SAMPLE.replace(b":64,", b": 64,"), SAMPLE.replace("β".encode(), b"\\u03b2"),
        SAMPLE.replace(b'"m1.gguf"', b'"m0.gguf"'), SAMPLE.replace(b'"m1.gguf"', b'"A.gguf"'),
        SAMPLE.replace(b'"m1.gguf"', b'"../m1.gguf"'), SAMPLE.replace(b'"a"', "β".encode().join([b'"', b'"'])),
        SAMPLE.replace(b'"version":1', b'"version":2'), SAMPLE.replace(b'"chunkSize":64', b'"chunkSize":65'),
        SAMPLE.replace(b'"joinSize":16', b'"joinSize":160'), b"[" * 3_000_000, b'{"a":[' + b"1," * 9_000_000 + b"1]}",
    ],
    ids=range(12),
)  # fmt: skip
def test_other_spellings_are_refused(raw: bytes) -> None:
    assert raw != SAMPLE
    with pytest.raises(Malformed):
        TensorIndex.parse(raw)


def test_the_work_is_bounded_before_it_is_done() -> None:
    """A file of all zeros behind one tensor states no chunk for what would be cut into more parts than there are."""
    value = json.loads(TensorIndex((), **SIZES).to_bytes())
    value["files"] = [
        {
            "chunks": [],
            "digest": str(Digest.of(b"")),
            "path": "a",
            "root": "",
            "size": 2**62,
            "tensors": [["a", "U8", [], 0, 1]],
        }
    ]
    with pytest.raises(Malformed, match="the size of the files"):
        TensorIndex.parse(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def test_what_a_byte_belongs_to() -> None:
    index = TensorIndex.parse(SAMPLE)
    named = {
        "the header": (0, 19), "tensor a": (20, 49), "padding behind a": (50, 59), "tensor β": (60, 139),
        "padding behind β": (140, 199),
    }  # fmt: skip
    assert all(index.files[0].name_at(offset) == name for name, offsets in named.items() for offset in offsets)
    assert index.files[1].name_at(3) == "a file without tensors"


DATA = bytes(range(256)) * 40
WEIGHTS = Descriptor.of(DATA, mediatypes.MODEL_WEIGHT)


def model(raw: bytes) -> Manifest:
    config = Descriptor.of(b"{}", mediatypes.MODEL_CONFIG)
    return Manifest(config, (WEIGHTS,), mediatypes.MODEL_MANIFEST, annotations=annotated({}, raw))


def stored(repository: LayoutRepository, raw: bytes) -> Manifest:
    for descriptor, data in ((WEIGHTS, DATA), (Descriptor.of(b"{}", mediatypes.MODEL_CONFIG), b"{}")):
        repository.push_blob(descriptor, bytes_source(data), QUIET)
    index = push_index(repository, raw)
    manifest = model(raw)
    subject = repository.push_manifest(manifest.to_bytes(), manifest.media_type, "1")
    referrer = push_referrer(repository, subject, index)
    assert [item.digest for item in repository.referrers(subject.digest, mediatypes.TENSOR_INDEX)] == [referrer.digest]
    return manifest


def sample(descriptor: Descriptor = WEIGHTS) -> bytes:
    chunks = Chunker([], descriptor.size)
    chunks.update(bytes(descriptor.size) if descriptor is not WEIGHTS else DATA)
    return TensorIndex.of([FileIndex("m.gguf", descriptor.digest, descriptor.size, (), chunks.finish())]).to_bytes()


def test_an_index_is_found_beside_its_model(tmp_path) -> None:
    repository, raw = LayoutRepository(tmp_path), sample()
    found = read_index(repository, stored(repository, raw))
    assert found is not None and found[0].to_bytes() == raw and found[1].digest == Digest.of(raw)


def test_a_model_without_an_index(tmp_path) -> None:
    assert read_index(LayoutRepository(tmp_path), Manifest(WEIGHTS, (WEIGHTS,))) is None


def test_an_index_that_is_gone(tmp_path) -> None:
    repository, raw = LayoutRepository(tmp_path), sample()
    manifest = stored(repository, raw)
    repository.blob_path(Digest.of(raw)).unlink()
    with pytest.raises(NotFound, match="does not have the tensor index"):
        read_index(repository, manifest)


def test_an_index_of_another_model(tmp_path) -> None:
    repository, raw = LayoutRepository(tmp_path), sample(Descriptor.of(bytes(77), mediatypes.MODEL_WEIGHT))
    with pytest.raises(Malformed, match=r"speaks of m\.gguf"):
        read_index(repository, stored(repository, raw))


def test_an_annotation_that_is_no_digest(tmp_path) -> None:
    manifest = Manifest(WEIGHTS, (WEIGHTS,), annotations={mediatypes.INDEX: "sha256:../../x"})
    with pytest.raises(Malformed, match=r"annotation dev\.stowage\.index"):
        read_index(LayoutRepository(tmp_path), manifest)
