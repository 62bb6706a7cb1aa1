"""One model in several GGUF files: named, keyed and filled as llama.cpp's own tools do it, and loaded by it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from artifact.errors import InvalidInput, Malformed
from artifact.progress import Quiet
from artifact.weights.gguf import read_header
from packager.convert import convert, plan_conversion
from packager.convert.split import parse_size, plan_copy, shard_names, split
from packager.files import shards_of
from tests.checkpoints.tiny import write_tiny_llama
from tests.packager.conftest import manifest_of
from tests.packager.convert.parity import prompt

LIMIT = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("split") / "model", layers=3)


def written(plans, target):
    target.mkdir(exist_ok=True)
    names = shard_names("model", len(plans))
    for plan, name in zip(plans, names, strict=True):
        plan.write(target / name, Quiet())
    return [target / name for name in names]


def contents(paths):
    return [(tensor.name, tensor.data.tobytes()) for path in paths for tensor in gguf.GGUFReader(path).tensors]


def test_the_files_hold_the_tensors_in_their_order(folder, tmp_path):
    whole = convert(folder, "F16", tmp_path / "whole.gguf", Quiet()).path
    paths = written(split(plan_conversion(folder, "F16"), LIMIT), tmp_path / "a")
    assert len(paths) > 2
    assert contents(paths) == contents([whole])
    copied = written(split(plan_copy(whole), LIMIT), tmp_path / "b")
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in paths]


def test_no_file_holds_more_than_is_allowed_but_for_one_large_tensor(folder, tmp_path):
    paths = written(split(plan_conversion(folder, "F16"), LIMIT), tmp_path / "a")
    headers = [read_header(path) for path in paths]
    sizes = [sum(-(-tensor.length // 32) * 32 for tensor in header.tensors) for header in headers]
    assert all(size <= LIMIT or len(header.tensors) == 1 for size, header in zip(sizes, headers, strict=True))
    for size, following in zip(sizes, headers[1:], strict=False):
        assert size + following.tensors[0].length > LIMIT  # none is cut before it is full


def test_keys_are_those_of_another_writer(folder, tmp_path):
    """The gguf library's, which llama.cpp's converter splits with: same names, same keys of the same types."""
    paths = written(split(plan_conversion(folder, "F16"), LIMIT), tmp_path / "a")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_size=LIMIT)
    writer.add_name("x")
    for tensor in gguf.GGUFReader(convert(folder, "F16", tmp_path / "whole.gguf", Quiet()).path).tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    others = sorted(tmp_path.glob("model-*.gguf"))
    assert [path.name for path in paths] == [path.name for path in others]
    for ours, theirs in zip(paths, others, strict=True):
        ours_fields, fields = gguf.GGUFReader(ours).fields, gguf.GGUFReader(theirs).fields
        for key in ("split.no", "split.count", "split.tensors.count"):
            assert (ours_fields[key].contents(), ours_fields[key].types) == (fields[key].contents(), fields[key].types)
        assert [tensor.name for tensor in gguf.GGUFReader(ours).tensors] == [
            tensor.name for tensor in gguf.GGUFReader(theirs).tensors
        ]
    assert "general.architecture" in gguf.GGUFReader(paths[0]).fields
    assert set(read_header(paths[1]).metadata) == {"split.no", "split.count", "split.tensors.count"}


def test_what_fits_is_left_whole(folder):
    plan = plan_conversion(folder, "F16")
    assert split(plan, 10**9) == [plan]
    assert shard_names("m", 1) == ["m.gguf"]


def test_the_names_are_those_of_a_set():
    names = shard_names("m", 3)
    assert names == ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    assert shards_of(names[0]) == tuple(names)


@pytest.mark.parametrize(("text", "size"), [("500M", 500_000_000), ("4g", 4_000_000_000), ("1M", 1_000_000)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0M", "5", "5K", "-1G", "1.5G", "1 G", "99999999999G", "500MB"])
def test_what_is_no_size(text):
    with pytest.raises(InvalidInput, match="--split-max-size"):
        parse_size(text)


def test_what_is_cut_already_is_not_cut_again(folder, tmp_path):
    first = written(split(plan_conversion(folder, "F16"), LIMIT), tmp_path / "a")[0]
    with pytest.raises(InvalidInput, match="one of several files already"):
        plan_copy(first)


@pytest.mark.parametrize("key", ["split.no", "split.count", "split.tensors.count"])
def test_half_of_the_keys_of_a_set_are_too_many(packager, tmp_path, key):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16(key, 0)
    for number in range(2):
        writer.add_tensor(f"t{number}", np.zeros((600, 1000), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    told = packager.fails(2, "pack", tmp_path / "m.gguf", "tiny", "--split-max-size", "1M")
    assert "already, by its split keys" in told


def test_a_file_with_another_alignment_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Malformed, match="aligned"):
        plan_copy(tmp_path / "m.gguf")


@pytest.mark.engine
def test_llama_cpp_loads_the_set_and_says_the_same(folder, tmp_path, llama):
    whole = convert(folder, "F32", tmp_path / "whole.gguf", Quiet()).path
    first = written(split(plan_conversion(folder, "F32"), LIMIT), tmp_path / "a")[0]
    with llama(whole) as one, llama(first) as several:
        assert several.next_token(prompt(24), 50) == one.next_token(prompt(24), 50)


def test_a_pack_in_several_files(packager, tmp_path):
    folder = write_tiny_llama(tmp_path / "model", hidden=128, layers=4, intermediate=512)
    options = ("--format", "gguf", "--precision", "F32", "--split-max-size", "1M")
    line = packager.ok("pack", folder, f"oci:{tmp_path}/out", *options)
    tag = line.rpartition("@")[0].rpartition(":")[2]
    paths = [layer.annotations["org.cncf.model.filepath"] for layer in manifest_of(tmp_path / "out", tag).layers]
    shards = [path for path in paths if path.endswith(".gguf")]
    assert len(shards) > 2 and tuple(shards) == shards_of(shards[0]) and shards[0].startswith("Tiny-F32-00001-of-")
    assert packager.ok("pack", folder, f"oci:{tmp_path}/again", *options).rpartition("@")[2] == line.rpartition("@")[2]
    whole = packager.ok("pack", folder, f"oci:{tmp_path}/whole", *options[:4]).removeprefix("oci:")
    packed = packager.ok("pack", f"oci:{whole.rpartition('@')[0]}", f"oci:{tmp_path}/cut", "--split-max-size", "1M")
    assert [layer.digest for layer in manifest_of(tmp_path / "cut", tag).layers if layer.size > 10_000] == [
        layer.digest for layer in manifest_of(tmp_path / "out", tag).layers if layer.size > 10_000
    ], packed
