"""What decoder-only families share: Llama's names of tensors, its dimensions, its hyperparameters.

`ROTATED` rules reorder the rows of queries and keys for architectures in which llama.cpp rotates neighbouring pairs;
`PLAIN` ones do not, for those in which it rotates halves as transformers does (llama.cpp, llama_model_rope_type).
"""

from __future__ import annotations

from collections.abc import Iterable

from artifact.errors import Malformed
from packager.convert import rope
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.family import Dimensions, Rule
from packager.convert.gguf_header import Metadata

LAYER = "model.layers.{}."
_MAX_LAYERS = 1024
_MAX_EXPERTS = 4096


def dimensions_of(config: Fields, head: int | None = None) -> dict[str, int]:
    """The sizes of a model with Llama's field names; `head` is head_dim where the config does not say. Raises
    `Malformed` if they do not fit together."""
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    head = config.integer("head_dim", head or (hidden // heads if hidden % heads == 0 else 1))
    kv_heads = config.integer("num_key_value_heads", heads)
    layers = config.integer("num_hidden_layers")
    if head % 2 or heads % kv_heads or layers > _MAX_LAYERS:
        raise Malformed(f"{config.where}: {heads} heads of {head}, {kv_heads} for keys, {layers} layers do not fit")
    return {
        "layers": layers,
        "hidden": hidden,
        "inner": config.integer("intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "queries": heads * head,
        "keys": kv_heads * head,
        "vocabulary": config.integer("vocab_size"),
    }


def expert_count(config: Fields, key: str, default: int) -> int:
    """How many experts a layer has. Raises `Malformed` for more than any model could."""
    count = config.integer(key, default)
    if count > _MAX_EXPERTS:
        raise Malformed(f"{config.where}: {key} must be at most {_MAX_EXPERTS}, not {count}")
    return count


def describe_decoder(
    metadata: Metadata, architecture: str, config: Fields, dimensions: Dimensions, *, context: int | None = None
) -> None:
    """Write what every such architecture has, all but its norm's epsilon and rotation; `context` is for configs that
    may leave the context length out."""
    context = config.integer("max_position_embeddings", *([] if context is None else [context]))
    metadata.uint32(f"{architecture}.block_count", dimensions["layers"])
    metadata.uint32(f"{architecture}.context_length", context)
    metadata.uint32(f"{architecture}.embedding_length", dimensions["hidden"])
    metadata.uint32(f"{architecture}.feed_forward_length", dimensions["inner"])
    metadata.uint32(f"{architecture}.attention.head_count", dimensions["heads"])
    metadata.uint32(f"{architecture}.attention.head_count_kv", dimensions["kv_heads"])
    metadata.uint32(f"{architecture}.attention.key_length", dimensions["head"])
    metadata.uint32(f"{architecture}.attention.value_length", dimensions["head"])
    metadata.uint32(f"{architecture}.vocab_size", dimensions["vocabulary"])


def describe_rotation(
    metadata: Metadata, architecture: str, config: Fields, dimensions: Dimensions, *, theta: float | None = None
) -> None:
    """Write the rotary settings and the epsilon of RMS norms; `theta` is the base where the config does not say."""
    rope.describe(metadata, architecture, config, theta)
    metadata.uint32(f"{architecture}.rope.dimension_count", dimensions["head"])
    metadata.float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", 1e-6))


def describe_sparse(
    metadata: Metadata, architecture: str, config: Fields, dimensions: Dimensions, *, used: int
) -> None:
    """Write the counts and sizes of experts, `used` of them for a token where the config does not say. Raises
    `Unsupported` if some layers have none."""
    expect(config, "decoder_sparse_step", 1, 1)
    expect(config, "mlp_only_layers", [], [])
    metadata.uint32(f"{architecture}.expert_count", dimensions["experts"])
    metadata.uint32(f"{architecture}.expert_used_count", config.integer("num_experts_per_tok", used))
    metadata.uint32(f"{architecture}.expert_feed_forward_length", dimensions["expert_inner"])


def rope_factors(config: Fields, dimensions: Dimensions) -> dict[str, Floats]:
    """Llama 3.1's frequency factors, where a config has them; for architectures that llama.cpp reads them in."""
    factors = rope.factors(config, dimensions["head"])
    return {} if factors is None else {"rope_freqs.weight": factors}


def refuse_rope_factors(config: Fields, dimensions: Dimensions) -> dict[str, Floats]:
    """For architectures in which llama.cpp has no place for frequency factors. Raises `Unsupported`."""
    if rope.kind_of(config) == "llama3":
        raise Unsupported(f"{config.where}: rope scaling llama3 is not supported in this architecture")
    return {}


def expect(config: Fields, key: str, default: object, *allowed: object) -> None:
    """Refuse a setting that llama.cpp has no key for and takes to be one of `allowed`. Raises `Unsupported`."""
    value = config.get(key)
    value = default if value is None else value
    if value not in allowed:
        known = " or ".join(map(str, allowed))
        raise Unsupported(f"{config.where}: {key} must be {known} in this architecture, not {value!r:.60}")


def refuse_window(config: Fields, architecture: str, *, used: bool = True) -> None:
    """Refuse a sliding window that is shorter than the context and `used`, if the config does not say otherwise.
    Raises `Unsupported`."""
    context = config.integer("max_position_embeddings")
    if config.flag("use_sliding_window", used) and config.integer("sliding_window", context) < context:
        raise Unsupported(
            f"{config.where}: GGUF's {architecture} architecture has no sliding window: pack it as safetensors"
        )


def require_output(config: Fields, architecture: str, tied: bool = False) -> None:
    """Refuse tied embeddings where llama.cpp wants an output matrix. Raises `Unsupported`."""
    if config.flag("tie_word_embeddings", tied):
        raise Unsupported(f"{config.where}: GGUF's {architecture} architecture has no tied embeddings")


def require_even_heads(config: Fields, dimensions: Dimensions) -> None:
    """Refuse heads that do not make up a row, where llama.cpp computes their size. Raises `Unsupported`."""
    if dimensions["queries"] != dimensions["hidden"]:
        raise Unsupported(f"{config.where}: head_dim must be hidden_size / num_attention_heads in this architecture")


EMBEDDING = Rule("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden"))
NORM = Rule("model.norm.weight", "output_norm.weight", ("hidden",))
OUTPUT = Rule("lm_head.weight", "output.weight", ("vocabulary", "hidden"), untied=True)
ENDS = (EMBEDDING, NORM, OUTPUT)


def layer_norms(names: Iterable[tuple[str, str]], *, plus_one: bool = False) -> tuple[Rule, ...]:
    """Norms over a whole row, by their names on both sides."""
    return tuple(
        Rule(f"{LAYER}{source}.weight", f"blk.{{}}.{target}.weight", ("hidden",), plus_one=plus_one)
        for source, target in names
    )


NORMS = layer_norms((("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")))
SANDWICH = (
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
)
HEAD_NORMS = (
    Rule(f"{LAYER}self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("head",)),
    Rule(f"{LAYER}self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("head",)),
)

_ROTATED_ATTENTION = (
    ("q_proj", "attn_q", "queries", "heads"),
    ("k_proj", "attn_k", "keys", "kv_heads"),
    ("v_proj", "attn_v", "keys", None),
)
_PLAIN_ATTENTION = tuple((source, target, rows, None) for source, target, rows, _ in _ROTATED_ATTENTION)
_OUT = Rule(f"{LAYER}self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("hidden", "queries"))


def _attention(table: Iterable[tuple[str, str, str, str | None]]) -> tuple[Rule, ...]:
    return *(
        Rule(f"{LAYER}self_attn.{source}.weight", f"blk.{{}}.{target}.weight", (rows, "hidden"), heads=heads)
        for source, target, rows, heads in table
    ), _OUT


def _biases(table: Iterable[tuple[str, str, str, str | None]]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{LAYER}self_attn.{source}.bias", f"blk.{{}}.{target}.bias", (rows,), heads=heads, optional=True)
        for source, target, rows, heads in table
    )


ROTATED, ROTATED_BIASES = _attention(_ROTATED_ATTENTION), _biases(_ROTATED_ATTENTION)
PLAIN, PLAIN_BIASES = _attention(_PLAIN_ATTENTION), _biases(_PLAIN_ATTENTION)
OTHER_BIASES = tuple(
    Rule(f"{LAYER}{source}.bias", f"blk.{{}}.{target}.bias", (shape,), optional=True)
    for source, target, shape in (
        ("self_attn.o_proj", "attn_output", "hidden"),
        ("mlp.gate_proj", "ffn_gate", "inner"),
        ("mlp.up_proj", "ffn_up", "inner"),
        ("mlp.down_proj", "ffn_down", "hidden"),
    )
)

MLP = (
    Rule(f"{LAYER}mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("inner", "hidden")),
    Rule(f"{LAYER}mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("inner", "hidden")),
    Rule(f"{LAYER}mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("hidden", "inner")),
)


def experts(names: tuple[str, ...], inner: str) -> tuple[Rule, ...]:
    """The matrices of experts, stacked: the patterns of gate, up and down, and the name of their inner dimension."""
    gate, up, down = names
    wide, narrow = (inner, "hidden"), ("hidden", inner)
    return tuple(
        Rule(f"{LAYER}{source}.weight", f"blk.{{}}.ffn_{target}_exps.weight", shape, each="experts")
        for source, target, shape in ((gate, "gate", wide), (up, "up", wide), (down, "down", narrow))
    )


SPARSE = (
    Rule(f"{LAYER}mlp.gate.weight", "blk.{}.ffn_gate_inp.weight", ("experts", "hidden")),
    *experts(tuple(f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down")), "expert_inner"),
)


def silu(config: Fields) -> None:
    """Refuse another activation than SiLU."""
    expect(config, "hidden_act", "silu", "silu", "swish")
