"""A small BERT that makes embeddings, and one that ranks: packed, with random weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from tests.checkpoints.families import write_tiny
from tests.runner.commands import packager


def encoders(folder: Path) -> tuple[str, str]:
    """The references of a BERT packed as GGUF, and of the same with the head of a cross-encoder."""
    checkpoint = write_tiny(folder / "bert", "bert")
    made = packager(folder / "packed", "pack", str(checkpoint), f"oci:{folder}/embedder", "--format", "gguf")
    embedder = made.partition("@")[0]
    repository = LayoutRepository(folder / "embedder")
    _, raw = repository.manifest(embedder.rpartition(":")[2])
    weights = max(Manifest.parse(raw).layers, key=lambda layer: layer.size)
    _with_head(repository.blob_path(weights.digest), folder / "ranker.gguf")
    made = packager(folder / "packed", "pack", str(folder / "ranker.gguf"), f"oci:{folder}/ranker")
    return embedder, made.partition("@")[0]


def _with_head(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_pooling_type(gguf.PoolingType.RANK)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "bert.pooling_type"):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if array else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    hidden = int(reader.fields["bert.embedding_length"].contents())
    random = np.random.default_rng(0)
    for name, shape in (("cls", (hidden, hidden)), ("cls.output", (1, hidden))):
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(shape[0], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
