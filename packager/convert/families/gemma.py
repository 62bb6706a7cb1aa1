"""Gemma, Gemma 2 and the text models of Gemma 3.

Norms are stored as their distance from one. llama.cpp scales the embedding by the root of its width itself, and takes
every second layer of Gemma 2, five of six of Gemma 3, to have the sliding window.
"""

from __future__ import annotations

from dataclasses import replace

from packager.convert import rope
from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family
from packager.convert.gguf_header import Metadata

_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""The number of layers of the 27B models, in which llama.cpp scales queries by another rule."""


def _describe_gemma(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    # Configs of the first models say gelu and mean its approximation by tanh.
    decoder.expect(config, "hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh", "gelu")
    _describe(metadata, "gemma", config, dimensions)


def _describe_gemma2(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    _describe(metadata, "gemma2", config, dimensions)
    _check_stated(config, "attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
    _check_query_scale(config, "gemma2", dimensions)
    _check_layers(config, 2, 2)
    metadata.float32("gemma2.attn_logit_softcapping", config.number("attn_logit_softcapping", 50.0))
    metadata.float32("gemma2.final_logit_softcapping", config.number("final_logit_softcapping", 30.0))
    metadata.uint32("gemma2.attention.sliding_window", config.integer("sliding_window", 4096))


def _describe_gemma3(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    _describe(metadata, "gemma3", config, dimensions, theta=1e6, context=131072)
    _check_stated(config, "sliding_window")
    _check_query_scale(config, "gemma3", dimensions)
    _check_layers(config, config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6)), 6)
    decoder.expect(config, "attn_logit_softcapping", None, None)
    if config.get("final_logit_softcapping") is not None:
        metadata.float32("gemma3.final_logit_softcapping", config.number("final_logit_softcapping"))
    metadata.float32("gemma3.rope.freq_base_swa", rope.local_theta(config))
    metadata.uint32("gemma3.attention.sliding_window", config.integer("sliding_window", 4096))


def _describe(
    metadata: Metadata,
    architecture: str,
    config: Fields,
    dimensions: Dimensions,
    *,
    theta: float | None = None,
    context: int | None = None,
) -> None:
    decoder.expect(config, "hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    decoder.expect(config, "tie_word_embeddings", True, True)
    decoder.describe_decoder(metadata, architecture, config, dimensions, context=context)
    decoder.describe_rotation(metadata, architecture, config, dimensions, theta=theta)


def _check_query_scale(config: Fields, architecture: str, dimensions: Dimensions) -> None:
    by_width = dimensions["layers"] == _SCALED_BY_WIDTH[architecture]
    known = dimensions["hidden"] // dimensions["heads"] if by_width else dimensions["head"]
    decoder.expect(config, "query_pre_attn_scalar", 256, known)


def _check_stated(config: Fields, *keys: str) -> None:
    """A key that is there and null means that there is none, a missing one the usual value; llama.cpp has only that."""
    for key in keys:
        if key in config.values and config.get(key) is None:
            raise Unsupported(f"{config.where}: {key} is null: llama.cpp has no such model without one")


def _check_layers(config: Fields, pattern: int, standard: int) -> None:
    """Every `pattern`-th layer, and no other, must see the whole text: the `standard` of the family."""
    kinds = config.items("layer_types")
    window = [kind == "sliding_attention" for kind in kinds]
    if pattern != standard or window != [(number + 1) % standard != 0 for number in range(len(kinds))]:
        raise Unsupported(
            f"{config.where}: llama.cpp expects every layer but each {standard}th to have the sliding window"
        )


def _dimensions(config: Fields) -> dict[str, int]:
    return decoder.dimensions_of(config, head=256)


_FINAL_NORM = replace(decoder.NORM, plus_one=True)
_ENDS = (decoder.EMBEDDING, _FINAL_NORM, decoder.OUTPUT)
_SANDWICH = decoder.layer_norms(decoder.SANDWICH, plus_one=True)
_HEAD_NORMS = tuple(replace(rule, plus_one=True) for rule in decoder.HEAD_NORMS)

GEMMA = Family(
    architecture="gemma",
    models=("GemmaForCausalLM",),
    rules=(
        *_ENDS,
        *(replace(rule, plus_one=True) for rule in decoder.NORMS),
        *decoder.PLAIN,
        *decoder.MLP,
    ),
    dimensions=_dimensions,
    describe=_describe_gemma,
    computed=decoder.refuse_rope_factors,
    tied=True,
)

GEMMA2 = Family(
    architecture="gemma2",
    models=("Gemma2ForCausalLM",),
    rules=(*_ENDS, *_SANDWICH, *decoder.PLAIN, *decoder.MLP),
    dimensions=_dimensions,
    describe=_describe_gemma2,
    computed=decoder.refuse_rope_factors,
    tied=True,
)

GEMMA3 = Family(
    architecture="gemma3",
    models=("Gemma3ForCausalLM",),
    rules=(*_ENDS, *_SANDWICH, *decoder.PLAIN, *_HEAD_NORMS, *decoder.MLP),
    dimensions=_dimensions,
    describe=_describe_gemma3,
    computed=decoder.refuse_rope_factors,
    tied=True,
)
