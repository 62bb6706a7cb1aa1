"""GPT-2: positions are learned, and matrices are stored as inputs by outputs."""

from __future__ import annotations

from artifact.errors import Malformed
from packager.convert.documents import Fields
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family, Rule
from packager.convert.gguf_header import Metadata

_MAX_LAYERS = 1024


def _dimensions(config: Fields) -> dict[str, int]:
    hidden, heads, layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
    if hidden % heads or layers > _MAX_LAYERS:
        raise Malformed(f"{config.where}: {heads} heads in {hidden}, {layers} layers do not fit")
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "fused": 3 * hidden,
        "inner": config.integer("n_inner", 4 * hidden),
        "positions": config.integer("n_positions", config.integer("n_ctx", 1024)),
        "vocabulary": config.integer("vocab_size"),
    }


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.expect(config, "activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    decoder.expect(config, "scale_attn_weights", True, True)
    decoder.expect(config, "scale_attn_by_inverse_layer_idx", False, False)
    decoder.expect(config, "tie_word_embeddings", True, True)
    metadata.uint32("gpt2.block_count", dimensions["layers"])
    metadata.uint32("gpt2.context_length", dimensions["positions"])
    metadata.uint32("gpt2.embedding_length", dimensions["hidden"])
    metadata.uint32("gpt2.feed_forward_length", dimensions["inner"])
    metadata.uint32("gpt2.attention.head_count", dimensions["heads"])
    metadata.float32("gpt2.attention.layer_norm_epsilon", config.number("layer_norm_epsilon", 1e-5))


def _renamed(name: str) -> str:
    return name.removeprefix("transformer.")


def _biased(source: str, target: str, rows: str, columns: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"h.{{}}.{source}.weight", f"blk.{{}}.{target}.weight", (rows, columns), transposed=True),
        Rule(f"h.{{}}.{source}.bias", f"blk.{{}}.{target}.bias", (columns,)),
    )


GPT2 = Family(
    architecture="gpt2",
    models=("GPT2LMHeadModel",),
    rules=(
        Rule("wte.weight", "token_embd.weight", ("vocabulary", "hidden")),
        Rule("wpe.weight", "position_embd.weight", ("positions", "hidden")),
        Rule("ln_f.weight", "output_norm.weight", ("hidden",)),
        Rule("ln_f.bias", "output_norm.bias", ("hidden",)),
        Rule("lm_head.weight", "output.weight", ("vocabulary", "hidden"), untied=True),
        *_biased("attn.c_attn", "attn_qkv", "hidden", "fused"),
        *_biased("attn.c_proj", "attn_output", "hidden", "hidden"),
        *_biased("mlp.c_fc", "ffn_up", "hidden", "inner"),
        *_biased("mlp.c_proj", "ffn_down", "inner", "hidden"),
        *(
            Rule(f"h.{{}}.{source}.{kind}", f"blk.{{}}.{target}.{kind}", ("hidden",))
            for source, target in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm"))
            for kind in ("weight", "bias")
        ),
    ),
    dimensions=_dimensions,
    describe=_describe,
    renamed=_renamed,
    ignored=("*.attn.bias", "*.attn.masked_bias"),
    tied=True,
)
