"""Names that say a file is code, or a pickle: one list for those who pack and those who run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.filetypes import (
    CODE_SUFFIXES,
    PICKLE_SUFFIXES,
    SOURCE_SUFFIXES,
    UNSAFE_WEIGHT_SUFFIXES,
    is_code_name,
    is_pickle_name,
    is_source_name,
    is_unsafe_weight_name,
    suffix_of,
)
from packager.files import Kind, kind_of


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("model.safetensors", ".safetensors"), ("a/b.tar.GZ", ".gz"), ("LICENSE", ""), (".bin", ".bin"),
        ("a.py/README", ""), ("x.", "."), ("..bin", ".bin"),
    ],
)  # fmt: skip
def test_suffixes(path: str, suffix: str) -> None:
    assert suffix_of(path) == suffix


def test_the_lists_contain_each_other() -> None:
    assert SOURCE_SUFFIXES < CODE_SUFFIXES
    assert PICKLE_SUFFIXES < UNSAFE_WEIGHT_SUFFIXES
    assert not CODE_SUFFIXES & UNSAFE_WEIGHT_SUFFIXES


@given(st.text(max_size=20), st.sampled_from(sorted(CODE_SUFFIXES | UNSAFE_WEIGHT_SUFFIXES)), st.booleans())
def test_what_is_refused_when_run_is_packed_only_as_code_that_was_allowed(name: str, suffix: str, upper: bool) -> None:
    path = name + (suffix.upper() if upper else suffix)
    assert is_code_name(path) or is_unsafe_weight_name(path)
    assert is_code_name(path) or not is_source_name(path)
    assert is_unsafe_weight_name(path) or not is_pickle_name(path)
    if not path.rpartition("/")[2].lower().startswith(("readme", "licen", "notice", "copying", "use_policy")):
        assert kind_of(path) in (None, Kind.CODE, Kind.DOC)
