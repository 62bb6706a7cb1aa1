"""The families that are converted, one module each."""

from __future__ import annotations

from packager.convert.families.bert import BERT
from packager.convert.families.gemma import GEMMA, GEMMA2, GEMMA3
from packager.convert.families.gpt2 import GPT2
from packager.convert.families.granite import GRANITE
from packager.convert.families.llama import LLAMA, MIXTRAL
from packager.convert.families.olmo2 import OLMO2
from packager.convert.families.phi3 import PHI3
from packager.convert.families.qwen2 import QWEN2, QWEN2_MOE
from packager.convert.families.qwen3 import QWEN3, QWEN3_MOE
from packager.convert.families.smollm3 import SMOLLM3
from packager.convert.families.stablelm import STABLELM
from packager.convert.family import Family

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MIXTRAL,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    GRANITE,
    SMOLLM3,
    STABLELM,
    GPT2,
    BERT,
)
