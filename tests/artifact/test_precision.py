"""Precision: computed from tensors, written into tags, and what a tag is held to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import Malformed
from artifact.weights.precision import (
    GGUF_FILE_TYPES,
    Facts,
    canonical_tag,
    disagreement,
    facts_of,
    precision_word,
    shares_of,
    size_label,
)
from artifact.weights.tensor import Tensor, WeightFile


def tensor(name: str, dtype: str, *shape: int) -> Tensor:
    return Tensor(name, dtype, shape, 0, 0)


def file(format_: str, *tensors: Tensor, **metadata: object) -> WeightFile:
    return WeightFile(format_, tensors, {key.replace("_", ".", 1): value for key, value in metadata.items()})


def test_the_label_is_the_type_of_most_parameters_not_of_most_tensors() -> None:
    norms = [tensor(f"norm{n}", "F32", 10) for n in range(100)]
    facts = facts_of([file("safetensors", tensor("a", "BF16", 1000, 1000), *norms)])
    assert facts.precision == "BF16"
    assert facts.parameters == 1_001_000
    assert facts.shares == (("BF16", 1_000_000 / 1_001_000), ("F32", 1_000 / 1_001_000))
    assert facts.tag == "1M-BF16-safetensors"


@pytest.mark.parametrize(
    ("file_type", "held", "label"),
    [
        (15, "Q4_K", "Q4_K_M"),  # the recipe's own type dominates
        (15, "Q5_0", "Q5_0"),  # rows that fell back: labelled as what they are
        (15, "Q6_K", "Q6_K"),
        (1, "F16", "F16"),
        (7, "Q8_0", "Q8_0"),
        (7, "Q4_0", "Q4_0"),
        (26, "IQ3_S", "IQ3_S"),
        (27, "IQ3_S", "IQ3_M"),
        (None, "Q4_K", "Q4_K"),
        ("15", "Q4_K", "Q4_K"),
        (9999, "Q4_K", "Q4_K"),
    ],
)
def test_a_gguf_recipe_counts_only_if_the_tensors_bear_it_out(file_type: object, held: str, label: str) -> None:
    metadata = {} if file_type is None else {"general_file_type": file_type}
    assert facts_of([file("gguf", tensor("a", held, 100), tensor("b", "F32", 10), **metadata)]).precision == label


def test_several_files_are_one_model() -> None:
    facts = facts_of([file("gguf", tensor("a", "F16", 30)), file("gguf", tensor("b", "Q8_0", 70))])
    assert (facts.precision, facts.parameters) == ("Q8_0", 100)


def test_what_is_no_model_is_malformed() -> None:
    one = file("gguf", tensor("a", "F16", 30))
    for files in ([], [file("gguf")], [file("gguf", tensor("a", "F16", 0))], [one, one],
                  [one, file("safetensors", tensor("b", "F16", 1))]):  # fmt: skip
        with pytest.raises(Malformed):
            facts_of(files)


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        (134_515_008, "135M"), (1_711_376_384, "1.7B"), (4_022_468_096, "4B"), (235_093_634_560, "235B"),
        (7_241_732_096, "7.2B"), (999_999_999, "1B"), (999_000, "999K"), (500, "0.5K"), (10**12, "1T"), (0, "0.001K"),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(parameters: int, label: str) -> None:
    assert size_label(parameters) == label


def test_canonical_tags() -> None:
    assert canonical_tag("gguf", "Q4_K_M", 4_022_468_096) == "4B-Q4_K_M"
    assert canonical_tag("safetensors", "BF16", 4_022_468_096) == "4B-BF16-safetensors"


Q4 = Facts("gguf", "Q4_K_M", 4_022_468_096, (("Q4_K", 0.9), ("Q6_K", 0.1)))
BF16 = Facts("safetensors", "BF16", 4_022_468_096, (("BF16", 1.0),))


@pytest.mark.parametrize("tag", ["4B-Q4_K_M", "4b-q4_k_m", "latest", "v1", "Q4_K_M", "4B-instruct-Q4_K_M", "1.0", "4B",
                                 "3.9B-Q4_K_M", "main", "release-2026-01", "70B", "4B-Q4_K_M-gguf",
                                 "gguf"])  # fmt: skip
def test_tags_that_agree_or_claim_nothing(tag: str) -> None:
    assert disagreement(tag, Q4) is None


@pytest.mark.parametrize("tag", ["4B-Q8_0", "4B-F16", "4B-Q4_K_S", "8B-Q4_K_M", "4B-Q4_K_M-safetensors", "safetensors",
                                 "BF16", "fp16", "400M-Q4_K_M", "instruct-Q8_0"])  # fmt: skip
def test_tags_that_disagree(tag: str) -> None:
    told = disagreement(tag, Q4)
    assert told is not None and tag in told and "4B-Q4_K_M" in told


def test_a_bare_size_and_precision_claim_gguf() -> None:
    assert disagreement("4B-BF16", BF16) is not None
    assert disagreement("BF16", BF16) is not None
    assert disagreement("4B-BF16-safetensors", BF16) is None
    assert disagreement("instruct-BF16", BF16) is None


@given(
    st.sampled_from(["gguf", "safetensors"]),
    st.sampled_from([*GGUF_FILE_TYPES.values(), "BF16", "F8_E4M3", "NVFP4"]),
    st.integers(1000, 10**13),
)
def test_a_canonical_tag_never_disagrees(format_: str, precision: str, parameters: int) -> None:
    facts = Facts(format_, precision, parameters, ((precision, 1.0),))
    assert disagreement(facts.tag, facts) is None


@given(st.lists(st.tuples(st.sampled_from(["F16", "Q8_0", "F32"]), st.integers(0, 10**9)), max_size=20))
def test_shares_add_up(parts: list[tuple[str, int]]) -> None:
    shares = shares_of([tensor(str(n), dtype, count) for n, (dtype, count) in enumerate(parts)])
    assert shares == () or abs(sum(share for _, share in shares) - 1) < 1e-9
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)


def test_words_of_the_modelpack_config() -> None:
    assert [precision_word(label) for label in ("F16", "BF16", "F32", "Q4_K_M")] == [
        "float16", "bfloat16", "float32", None,
    ]  # fmt: skip
