"""Converted files in a real llama.cpp: what it answers, what it computes, how it cuts text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from artifact.progress import Quiet
from packager.convert import convert
from packager.convert.families import llama as family
from tests.checkpoints.tiny import LLAMA31_ROPE, write_tiny_llama
from tests.packager.convert import oracle
from tests.packager.convert.reference import next_token
from tests.packager.convert.sentencepiece import write_sentencepiece
from tests.packager.convert.texts import PIECES, RANDOM, TEXT

pytestmark = pytest.mark.engine

QUESTION = "What is the capital of France?"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CHECKPOINTS = {
    "tied": {},
    "untied": {"tied": False, "heads": 8, "kv_heads": 2, "rope_theta": 500.0},
    "no grouped queries": {"kv_heads": 4, "layers": 3},
    "YaRN": {"rope_scaling": YARN, "hidden": 128},
    "YaRN with a factor for attention": {"rope_scaling": {**YARN, "attention_factor": 0.8}, "hidden": 128},
    "Llama 3.1 rope": {"rope_scaling": LLAMA31_ROPE, "tokenizer": "llama-bpe", "hidden": 128},
}
REAL_DISTANCE = 1e-3
REAL_DIVERGENCE = {"F32": 1e-9, "BF16": 2e-3}
PROMPT = [(number * 37 + 11) % 300 for number in range(96)]


@pytest.fixture(scope="module")
def smollm2_f16(smollm2, tmp_path_factory):
    return convert(smollm2, "F16", tmp_path_factory.mktemp("smollm2") / "f16.gguf", Quiet()).path


@pytest.fixture(scope="module")
def served(smollm2_f16, llama) -> Iterator:
    with llama(smollm2_f16) as server:
        yield server


def test_the_real_model_answers(served):
    assert "Paris" in served.answer(QUESTION)


REAL = json.loads(oracle.REAL.read_text(encoding="utf-8"))["answers"]


@pytest.mark.parametrize("precision", REAL_DIVERGENCE)
def test_the_real_models_logits_are_those_of_transformers(smollm2, tmp_path, llama, precision):
    """Over the likeliest tokens. The bars are wider than those of the tiny models: llama.cpp multiplies in the type of
    the weights, and what that rounds adds up over thirty layers."""
    converted = convert(smollm2, precision, tmp_path / "model.gguf", Quiet())
    with llama(converted.path) as server:
        for case in REAL:
            expected = {int(token): value for token, value in case["likeliest"].items()}
            found = server.next_token(case["tokens"], 2 * len(expected))
            pairs = [(value, found[token]) for token, value in expected.items() if token in found]
            assert len(pairs) > 0.9 * len(expected), case["text"]
            if precision == "F32":
                assert max(abs(value - other) for value, other in pairs) < REAL_DISTANCE, case["text"]
            assert divergence(pairs) < REAL_DIVERGENCE[precision], case["text"]


def divergence(pairs: list[tuple[float, float]]) -> float:
    """Kullback-Leibler, in nats, of two distributions over the same tokens, given as log probabilities of more."""
    first, second = (math.log(sum(map(math.exp, values))) for values in zip(*pairs, strict=True))
    return sum(math.exp(a - first) * (a - first - b + second) for a, b in pairs)


def test_the_real_model_answers_in_bf16(smollm2, tmp_path, llama):
    converted = convert(smollm2, "BF16", tmp_path / "bf16.gguf", Quiet())
    with llama(converted.path) as server:
        assert "Paris" in server.answer(QUESTION)


def test_without_the_row_order_of_q_and_k_it_does_not(smollm2, tmp_path, llama, monkeypatch):
    monkeypatch.setattr("packager.convert.tensors.interleave", lambda rows, head: rows)
    converted = convert(smollm2, "F16", tmp_path / "mutant.gguf", Quiet())
    with llama(converted.path) as server:
        assert "Paris" not in server.answer(QUESTION)


def worst_difference(folder, tmp_path, llama) -> float:
    """How far llama.cpp's likeliest next tokens are from the reference's, in log probability."""
    with llama(convert(folder, "F32", tmp_path / "model.gguf", Quiet()).path) as server:
        found = server.next_token(PROMPT, 20)
    expected = next_token(folder, PROMPT)
    assert len(found) == 20
    return max(abs(expected[token] - probability) for token, probability in found.items())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_same_next_tokens_as_a_reference(tmp_path, llama, name):
    folder = write_tiny_llama(tmp_path / "model", **CHECKPOINTS[name])
    assert worst_difference(folder, tmp_path, llama) < 1e-4


def without_factors(monkeypatch):
    monkeypatch.setattr("packager.convert.rope.factors", lambda config, dimensions: None)


def without_row_order(monkeypatch):
    monkeypatch.setattr("packager.convert.tensors.interleave", lambda rows, head: rows)


def with_another_epsilon(monkeypatch):
    number = family.Fields.number
    monkeypatch.setattr(
        family.Fields, "number", lambda self, key, *rest: 1e-3 if key == "rms_norm_eps" else number(self, key, *rest)
    )


@pytest.mark.parametrize("mutation", [without_factors, without_row_order, with_another_epsilon])
def test_a_mistake_in_the_conversion_shows(tmp_path, llama, monkeypatch, mutation):
    folder = write_tiny_llama(tmp_path / "model", **CHECKPOINTS["Llama 3.1 rope"])
    mutation(monkeypatch)
    assert worst_difference(folder, tmp_path, llama) > 1e-3


def test_text_is_cut_as_the_tokenizer_cuts_it(smollm2, served):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))

    @RANDOM
    @given(st.one_of(TEXT, PIECES))
    def check(text: str) -> None:
        assert served.tokens(text) == tokenizer.encode(text).ids

    check()


@pytest.mark.parametrize("kind", ["llama-bpe", "gpt-2"])
def test_other_pre_tokenizers(tmp_path, llama, kind):
    folder = write_tiny_llama(tmp_path / "model", tokenizer=kind, vocab=420)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:

        @RANDOM
        @given(st.one_of(TEXT, PIECES))
        def check(text: str) -> None:
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()
        body = {"content": "The capital", "add_special": True}
        assert server.post("/tokenize", body)["tokens"] == tokenizer.encode("The capital").ids


def test_sentencepiece_is_cut_as_the_tokenizer_cuts_it(tmp_path, llama):
    folder = write_tiny_llama(tmp_path / "model", vocab=380)
    write_sentencepiece(folder, 380)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:

        @RANDOM
        @given(st.one_of(TEXT, st.text("the capitlofrnsu .", max_size=60)))
        def check(text: str) -> None:
            assert server.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids

        check()
        body = {"content": "the capital", "add_special": True}
        assert server.post("/tokenize", body)["tokens"] == tokenizer.encode("the capital").ids


def test_the_chat_template_arrives(tmp_path, llama):
    folder = write_tiny_llama(tmp_path / "model")
    with llama(convert(folder, "F16", tmp_path / "model.gguf", Quiet()).path) as server:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        prompt = server.post("/apply-template", body)["prompt"]
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
