"""Embedding models made of decoders, in the shape in which Qwen 3 Embedding is published."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer

from artifact.errors import Malformed
from artifact.progress import Quiet
from packager.convert import Unsupported, convert
from tests.packager.convert.checkpoints import CLOSING, STATED, write_embedding


def converted(folder: Path) -> Path:
    return convert(folder, "F32", folder.parent / "model.gguf", Quiet()).path


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_the_token_behind_a_text_is_eos_and_the_stated_one_ends_a_turn(tmp_path: Path, family: str) -> None:
    folder = write_embedding(tmp_path / "model", family, tie_word_embeddings=False)
    reader = gguf.GGUFReader(converted(folder))
    found = {key: field.contents() for key, field in reader.fields.items()}
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens[found["tokenizer.ggml.eos_token_id"]] == CLOSING
    assert tokens[found["tokenizer.ggml.eot_token_id"]] == STATED
    assert found["tokenizer.ggml.add_eos_token"] is True
    assert found[f"{family}.pooling_type"] == 3
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight"} <= names and "output.weight" not in names


@pytest.mark.engine
def test_llama_cpp_closes_a_text_as_the_tokenizer_does(tmp_path: Path, llama) -> None:
    folder = write_embedding(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama(converted(folder), "embedding") as server:
        for text in ("the capital", "", "a\n"):
            found = server.post("/tokenize", {"content": text, "add_special": True})["tokens"]
            assert found == tokenizer.encode(text).ids
        tokens = tokenizer.encode("the capital").ids
        whole = server.post("/v1/embeddings", {"input": "the capital"})["data"][0]["embedding"]
        assert whole == pytest.approx(server.embedding(tokens), abs=1e-6)


def test_a_model_that_pools_nothing_is_held_to_its_own_words(tmp_path: Path) -> None:
    """Without a pooling module it is asked for next tokens: it needs a head, and its EOS is the one it states."""
    folder = write_embedding(tmp_path / "model")
    (folder / "modules.json").unlink()
    with pytest.raises(Malformed, match=r"lacks tensor 'lm_head\.weight'"):
        converted(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(Unsupported, match="not the BOS and EOS"):
        converted(folder)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    folder = write_embedding(tmp_path / "model", is_causal=False)
    with pytest.raises(Unsupported, match="is_causal must be True"):
        converted(folder)
