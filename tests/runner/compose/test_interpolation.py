"""Variables in Compose files, by the table of the Compose specification."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from runner.compose.interpolation import interpolate

VARIABLES = {"SET": "value", "EMPTY": "", "_x1": "under"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$SET", "value"),
        ("${SET}", "value"),
        ("a${SET}b$SET-c", "avaluebvalue-c"),
        ("$_x1.", "under."),
        ("${UNSET}", ""),
        ("${SET:-d}", "value"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${UNSET-d}", "d"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:b-c?d}", "a:b-c?d"),
        ("${UNSET:-${SET}}", "value"),
        ("${UNSET:-${ALSO:-deep}}tail", "deeptail"),
        ("${SET:+r}", "r"),
        ("${EMPTY:+r}", ""),
        ("${EMPTY+r}", "r"),
        ("${UNSET+r}", ""),
        ("${SET:?needed}", "value"),
        ("${EMPTY?needed}", ""),
        ("$$SET $${SET}", "$SET ${SET}"),
        ("${UNSET:-$$}", "$"),
    ],
)
def test_what_a_variable_stands_for(text: str, expected: str) -> None:
    assert interpolate(text, VARIABLES) == expected


@pytest.mark.parametrize("text", ["$", "a$ b", "${", "${}", "${1x}", "$1", "${SET", "${SET!x}", "${SET:}", "${ SET}"])
def test_what_is_no_variable_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a variable"):
        interpolate(text, VARIABLES)


def test_a_required_variable_says_why() -> None:
    with pytest.raises(InvalidInput, match="the variable UNSET is required but not set: say who value is"):
        interpolate("${UNSET:?say who ${SET} is}", VARIABLES)
    with pytest.raises(InvalidInput, match="EMPTY is required"):
        interpolate("${EMPTY:?}", VARIABLES)


def test_what_is_missing_is_told() -> None:
    missing: set[str] = set()
    assert interpolate("$A${B:-x}$SET${C}", VARIABLES, missing) == "xvalue"
    assert missing == {"A", "C"}


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        interpolate("$A" * 2000, {"A": "x" * 100})
    with pytest.raises(InvalidInput, match="nested"):
        interpolate("${A:-" * 100 + "}" * 100, {})


@settings(deadline=None)
@given(st.text())
def test_dollar_signs_doubled_come_through(text: str) -> None:
    assert interpolate(text.replace("$", "$$"), {}) == text


@settings(deadline=None)
@given(st.text(alphabet="${}:-?+AB \n", max_size=40))
def test_any_text_is_either_filled_in_or_an_error(text: str) -> None:
    try:
        result = interpolate(text, {"A": "1"})
    except InvalidInput:
        return
    assert isinstance(result, str)
