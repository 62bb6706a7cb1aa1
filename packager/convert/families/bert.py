"""BERT and its descendants that make embeddings: MiniLM, BGE, E5, GTE."""

from __future__ import annotations

from artifact.errors import Malformed
from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata

_MAX_LAYERS = 1024


def _dimensions(config: Fields) -> dict[str, int]:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers")
    if hidden % heads or layers > _MAX_LAYERS:
        raise Malformed(f"{config.where}: {heads} heads in {hidden}, {layers} layers do not fit")
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "inner": config.integer("intermediate_size"),
        "positions": config.integer("max_position_embeddings"),
        "kinds": config.integer("type_vocab_size", 2),
        "vocabulary": config.integer("vocab_size"),
    }


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.expect(config, "hidden_act", "gelu", "gelu")
    decoder.expect(config, "position_embedding_type", "absolute", "absolute")
    decoder.expect(config, "is_decoder", False, False)
    metadata.uint32("bert.block_count", dimensions["layers"])
    metadata.uint32("bert.context_length", dimensions["positions"])
    metadata.uint32("bert.embedding_length", dimensions["hidden"])
    metadata.uint32("bert.feed_forward_length", dimensions["inner"])
    metadata.uint32("bert.attention.head_count", dimensions["heads"])
    metadata.float32("bert.attention.layer_norm_epsilon", config.number("layer_norm_eps", 1e-12))
    metadata.flag("bert.attention.causal", False)
    metadata.uint32("tokenizer.ggml.token_type_count", dimensions["kinds"])


def _renamed(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _biased(source: str, target: str, rows: str, columns: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{target}.weight", (rows, columns)),
        Rule(f"{source}.bias", f"{target}.bias", (rows,)),
    )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{target}.weight", ("hidden",)),
        Rule(f"{source}.bias", f"{target}.bias", ("hidden",)),
    )


_LAYER = "encoder.layer.{}."

BERT = Family(
    architecture="bert",
    models=("BertModel", "BertForMaskedLM"),
    rules=(
        Rule("embeddings.word_embeddings.weight", "token_embd.weight", ("vocabulary", "hidden")),
        Rule("embeddings.position_embeddings.weight", "position_embd.weight", ("positions", "hidden")),
        Rule("embeddings.token_type_embeddings.weight", "token_types.weight", ("kinds", "hidden")),
        *_norm("embeddings.LayerNorm", "token_embd_norm"),
        *_biased(f"{_LAYER}attention.self.query", "blk.{}.attn_q", "hidden", "hidden"),
        *_biased(f"{_LAYER}attention.self.key", "blk.{}.attn_k", "hidden", "hidden"),
        *_biased(f"{_LAYER}attention.self.value", "blk.{}.attn_v", "hidden", "hidden"),
        *_biased(f"{_LAYER}attention.output.dense", "blk.{}.attn_output", "hidden", "hidden"),
        *_norm(f"{_LAYER}attention.output.LayerNorm", "blk.{}.attn_output_norm"),
        *_biased(f"{_LAYER}intermediate.dense", "blk.{}.ffn_up", "inner", "hidden"),
        *_biased(f"{_LAYER}output.dense", "blk.{}.ffn_down", "hidden", "inner"),
        *_norm(f"{_LAYER}output.LayerNorm", "blk.{}.layer_output_norm"),
    ),
    dimensions=_dimensions,
    describe=_describe,
    renamed=_renamed,
    ignored=("embeddings.position_ids", "pooler.dense.*", "cls.predictions.*", "cls.seq_relationship.*"),
    pooled=True,
)
