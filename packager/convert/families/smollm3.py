"""SmolLM 3: Llama without rotation in every fourth layer, which llama.cpp takes for granted."""

from __future__ import annotations

from packager.convert.documents import Fields
from packager.convert.errors import Unsupported
from packager.convert.families import decoder
from packager.convert.family import Dimensions, Family
from packager.convert.gguf_header import Metadata

_INTERVAL = 4


def _describe(metadata: Metadata, config: Fields, dimensions: Dimensions) -> None:
    decoder.silu(config)
    decoder.refuse_window(config, "smollm3", used=False)
    decoder.expect(config, "no_rope_layer_interval", _INTERVAL, _INTERVAL)
    rotated = config.items("no_rope_layers")
    if rotated and rotated != [int((number + 1) % _INTERVAL != 0) for number in range(dimensions["layers"])]:
        raise Unsupported(f"{config.where}: llama.cpp expects each {_INTERVAL}th layer, no other, to have no rotation")
    decoder.describe_decoder(metadata, "smollm3", config, dimensions)
    decoder.describe_rotation(metadata, "smollm3", config, dimensions)


SMOLLM3 = Family(
    architecture="smollm3",
    models=("SmolLM3ForCausalLM",),
    rules=(*decoder.ENDS, *decoder.NORMS, *decoder.ROTATED, *decoder.MLP),
    dimensions=decoder.dimensions_of,
    describe=_describe,
    computed=decoder.refuse_rope_factors,
    tied=True,
)
