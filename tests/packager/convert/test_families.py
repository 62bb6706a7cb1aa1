"""Every family in a real llama.cpp, against transformers: the same next tokens, and not the same after a mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.convert import rope, tensors
from packager.convert.families import phi3
from packager.convert.gguf_header import Metadata
from tests.checkpoints.families import TINY
from tests.packager.convert.checkpoints import CHECKPOINTS, write
from tests.packager.convert.parity import GELU, PRECISIONS, measured

pytestmark = pytest.mark.engine

Mutation = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_as_near_to_transformers_as_the_bars_ask(tmp_path, name, precision):
    parity = measured(name, write(tmp_path / "model", name), precision, tmp_path / "model.gguf")
    assert parity.within(name, precision), parity


def rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "interleave", lambda rows, head: rows)


def without_plus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "plus_one", tensors.floats)


def without_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "factors", lambda config, dimensions: None)


def factors_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    original = phi3._factors
    others = {"long_factor": "short_factor", "short_factor": "long_factor"}
    monkeypatch.setattr(phi3, "_factors", lambda config, key, sizes: original(config, others[key], sizes))


def another(kind: str, ending: str, value: float) -> Mutation:
    """A key of the metadata with another value."""

    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        write = getattr(Metadata, kind)
        monkeypatch.setattr(Metadata, kind, lambda self, key, v: write(self, key, value if key.endswith(ending) else v))

    return mutate


def experts_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tensors.plan

    def mutant(placement: tensors.Placement, precision: str) -> tensors.Planned:
        return plan(dataclasses.replace(placement, parts=placement.parts[::-1]), precision)

    monkeypatch.setattr("packager.convert.conversion.plan", mutant)


def not_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tensors.plan
    monkeypatch.setattr(
        "packager.convert.conversion.plan",
        lambda placement, precision: plan(dataclasses.replace(placement, transposed=False), precision),
    )


RMS, LAYER_NORM = "layer_norm_rms_epsilon", "layer_norm_epsilon"
ROTATED = ("llama", "llama-3.1", "mistral", "mixtral", "granite", "smollm3")
WINDOWED = ("gemma2", "gemma3")
MUTATIONS: list[tuple[str, str, Mutation]] = [
    *((name, "the order of rows of q and k", rows_in_order) for name in ROTATED),
    *((name, "Gemma's +1", without_plus_one) for name in ("gemma", "gemma2", "gemma3")),
    ("llama-3.1", "the frequency factors", without_factors),
    ("phi3-long", "long and short factors", factors_exchanged),
    ("phi3-short", "long and short factors", factors_exchanged),
    ("phi3-long", "longrope's scale", another("float32", "rope.scaling.attn_factor", 1.0)),
    ("stablelm", "the rotated part of a head", another("uint32", "rope.dimension_count", 8)),
    *((name, "the window", another("uint32", "attention.sliding_window", 64)) for name in WINDOWED),
    ("gemma3", "the base of layers with a window", another("float32", "rope.freq_base_swa", 10000.0)),
    ("gemma2", "the cap of attention", another("float32", "attn_logit_softcapping", 50.0)),
    ("gemma2", "the cap of logits", another("float32", "final_logit_softcapping", 30.0)),
    *(
        ("granite", f"Granite's {scale}", another("float32", scale, 1.0))
        for scale in ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
    ),
    *((name, "the order of experts", experts_exchanged) for name in ("mixtral", "qwen2-moe", "qwen3-moe")),
    ("qwen3-moe", "the number of experts used", another("uint32", "expert_used_count", 3)),
    ("bert", "pooling", another("uint32", "pooling_type", 2)),
    ("qwen3-embedding", "pooling", another("uint32", "pooling_type", 1)),
    ("gpt2", "transposing", not_transposed),
    *(
        (name, "the epsilon", another("float32", LAYER_NORM if "stablelm" in name else RMS, 1e-4))
        for name in TINY
        if name not in GELU
    ),
    *((name, "the epsilon", another("float32", RMS, 3e-2)) for name in ("gemma", "gemma2", "gemma3")),
    *((name, "the epsilon", another("float32", LAYER_NORM, 3e-2)) for name in ("gpt2", "bert")),
]


@pytest.mark.parametrize(("name", "what", "mutate"), MUTATIONS, ids=[f"{name}-{what}" for name, what, _ in MUTATIONS])
def test_a_mistake_shows(tmp_path: Path, monkeypatch, name: str, what: str, mutate: Mutation):
    folder = write(tmp_path / "model", name)
    mutate(monkeypatch)
    parity = measured(name, folder, "F32", tmp_path / "model.gguf")
    assert not parity.within(name, "F32"), parity
