"""Rotary position scaling: what config.json states, as GGUF metadata and as per-frequency factors."""

from __future__ import annotations

import math

import numpy as np

from artifact.errors import Malformed
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata

_DEFAULT_THETA = 10000.0
_LEAST_THETA = 1.0
_YARN_KEYS = {"extrapolation_factor": "yarn_ext_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_YARN: dict[str, tuple[float, ...]] = {
    "extrapolation_factor": (1,), "beta_fast": (32,), "beta_slow": (1,), "truncate": (True,), "mscale": (),
    "mscale_all_dim": (), "attn_factor": (),
}  # fmt: skip
"""YaRN's settings that llama.cpp reads nowhere, or not in these architectures, and the value it goes by. Of the last
three transformers makes another attention factor, or an older program did."""

_TURN = float(np.float32(2 * math.pi))


def scaling_of(config: Fields) -> Fields:
    """The scaling a config states, under its name of today (``rope_parameters``) or the older ``rope_scaling``."""
    scaling = config.object("rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling")
    return scaling if scaling.get("full_attention") is None else scaling.object("full_attention")


def theta(config: Fields, default: float | None = None) -> float:
    """The base of the rotary frequencies."""
    return _base(scaling_of(config), "rope_theta", _base(config, "rope_theta", default or _DEFAULT_THETA))


def local_theta(config: Fields) -> float:
    """The base in layers with a sliding window, where they have one of their own."""
    local = config.object("rope_parameters").object("sliding_attention")
    return _base(local, "rope_theta", _base(config, "rope_local_base_freq", _DEFAULT_THETA))


def _base(fields: Fields, key: str, default: float) -> float:
    base = fields.number(key, default)
    if base < _LEAST_THETA:
        raise Malformed(f"{fields.where}: {key} must be at least {_LEAST_THETA:g}, not {base:g}")
    return base


def rotated_share(config: Fields, default: float) -> float:
    """How much of a head is rotated: above zero, 1 at most. Raises `Malformed` for more."""
    share = config.number("partial_rotary_factor", scaling_of(config).number("partial_rotary_factor", default))
    if share > 1:
        raise Malformed(f"{config.where}: partial_rotary_factor must be 1 at most, not {share:g}")
    return share


def kind_of(config: Fields, others: tuple[str, ...] = ()) -> str:
    """``default``, ``linear``, ``yarn``, ``llama3`` or one of `others`. Raises `Unsupported` for another."""
    scaling = scaling_of(config)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind not in ("default", "linear", "yarn", "llama3", *others):
        raise Unsupported(f"{scaling.where}: rope scaling {kind!r} is not supported: linear, yarn and llama3 are")
    return kind


def describe(metadata: Metadata, prefix: str, config: Fields, default_theta: float | None = None) -> None:
    """Write the scaling keys of `prefix` (an architecture) and the frequency base."""
    scaling, kind = scaling_of(config), kind_of(config)
    if kind in ("linear", "yarn"):
        metadata.string(f"{prefix}.rope.scaling.type", kind)
        metadata.float32(f"{prefix}.rope.scaling.factor", scaling.number("factor"))
    if kind == "yarn":
        _describe_yarn(metadata, prefix, scaling)
    metadata.float32(f"{prefix}.rope.freq_base", theta(config, default_theta))


def _describe_yarn(metadata: Metadata, prefix: str, scaling: Fields) -> None:
    """Write YaRN's own keys. Raises `Unsupported` for settings that llama.cpp takes to be the usual ones."""
    for key, allowed in _YARN.items():
        if scaling.get(key) not in (None, *allowed):
            usual = f"{allowed[0]}" if allowed else "absent"
            raise Unsupported(
                f"{scaling.where}: {key} must be {usual} for llama.cpp, not {scaling.get(key)!r:.40}: pack the "
                "checkpoint as safetensors instead"
            )
    key = "original_max_position_embeddings"
    metadata.uint32(f"{prefix}.rope.scaling.original_context_length", scaling.integer(key))
    for key, ours in _YARN_KEYS.items():
        if scaling.get(key) is not None:
            metadata.float32(f"{prefix}.rope.scaling.{ours}", scaling.number(key))
    if scaling.get("attention_factor") is not None:
        # llama.cpp scales by YaRN's own factor whatever the file says, and by this one besides.
        own = max(1.0, 1 + 0.1 * math.log(scaling.number("factor")))
        metadata.float32(f"{prefix}.rope.scaling.attn_factor", scaling.number("attention_factor") / own)


def factors(config: Fields, dimensions: int) -> Floats | None:
    """Llama 3.1's divisor of each rotary frequency; None for any other scaling.

    Computed in double precision and rounded to float32 at each step, so that every machine finds the same bits, those
    of llama.cpp's converter: torch divides a number by a tensor as the number times the tensor's reciprocal.
    Source: transformers, modeling_rope_utils.py, _compute_llama3_parameters.
    """
    if kind_of(config) != "llama3":
        return None
    scaling = scaling_of(config)
    base = theta(config)
    factor = scaling.number("factor", 8.0)
    low, high = scaling.number("low_freq_factor", 1.0), scaling.number("high_freq_factor", 4.0)
    context = scaling.integer("original_max_position_embeddings", 8192)
    if high <= low:
        raise Unsupported(f"{scaling.where}: high_freq_factor must be above low_freq_factor")
    return np.array(
        [
            _factor(_single(1 / _single(base ** _single(index / dimensions))), context, factor, low, high)
            for index in range(0, dimensions, 2)
        ],
        dtype=np.float32,
    )


def _factor(frequency: float, context: int, factor: float, low: float, high: float) -> float:
    wavelength = _single(_single(1 / frequency) * _TURN)
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return factor
    smooth = _single(_single(_single(_single(1 / wavelength) * context) - low) / (high - low))
    return _single(1 / _single(_single(_single(1 - smooth) / factor) + smooth))


def _single(value: float) -> float:
    return float(np.float32(value))
