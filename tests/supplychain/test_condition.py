"""Conditions on what an attestation says: where they look, and what passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from supplychain import strictyaml
from supplychain.condition import Place, read_condition
from supplychain.predicate import SCAN
from supplychain.scan import Scan, ScanFinding, Verdict


def unmet(condition: str, predicate: dict[str, Any]) -> str | None:
    return read_condition(strictyaml.load(condition.encode(), "policy.yaml"), SCAN).unmet(predicate)


@pytest.mark.parametrize(
    ("condition", "predicate", "holds"),
    [
        ("{path: /a, equals: x}", {"a": "x"}, True),
        ("{path: /a, equals: x}", {"a": "xx"}, False),
        ("{path: /a, equals: x}", {"b": "x"}, False),
        ("{path: /a/b, equals: x}", {"a": {"b": "x"}}, True),
        ("{path: /a/b, equals: x}", {"a": "x"}, False),
        ("{path: /a/b, equals: x}", {"a/b": "x"}, False),
        ("{path: /a~1b, equals: x}", {"a/b": "x"}, True),
        ("{path: /a~0b, equals: x}", {"a~b": "x"}, True),
        ("{path: /a~01, equals: x}", {"a~1": "x"}, True),
        ("{path: /, equals: x}", {"": "x"}, True),
        ("{path: /a/0, equals: x}", {"a": ["x", "y"]}, True),
        ("{path: /a/1, equals: x}", {"a": ["x", "y"]}, False),
        ("{path: /a/2, equals: x}", {"a": ["x", "y"]}, False),
        ("{path: /a/-1, equals: y}", {"a": ["x", "y"]}, False),
        ("{path: /a/0, equals: x}", {"a": {"0": "x"}}, True),
        ("{path: '/a/*', equals: x}", {"a": ["x", "x"]}, True),
        ("{path: '/a/*', equals: x}", {"a": ["x", "y"]}, False),
        ("{path: '/a/*', equals: x}", {"a": []}, False),
        ("{path: '/a/*', equals: x}", {"a": "x"}, False),
        ("{path: '/a/*', equals: x}", {"a": {"k": "x", "l": "x"}}, True),
        ("{path: '/a/*/b', equals: x}", {"a": [{"b": "x"}, {"c": "x"}]}, False),
        ("{path: '/a/*/b/*', equals: x}", {"a": [{"b": ["x"]}, {"b": []}]}, False),
        ("{path: /a, equals: 1}", {"a": 1}, True),
        ("{path: /a, equals: 1}", {"a": True}, False),
        ("{path: /a, equals: 1}", {"a": 1.0}, False),
        ("{path: /a, equals: 1}", {"a": "1"}, False),
        ("{path: /a, equals: '1'}", {"a": "1"}, True),
        ("{path: /a, equals: '1'}", {"a": 1}, False),
        ("{path: /a, equals: true}", {"a": True}, True),
        ("{path: /a, equals: true}", {"a": 1}, False),
        ("{path: /a, equals: false}", {"a": False}, True),
        ("{path: /a, equals: 'true'}", {"a": True}, False),
        ("{path: /a, equals: x}", {"a": None}, False),
        ("{path: /a, equals: x}", {"a": ["x"]}, False),
        ("{path: /a, one-of: [x, 2]}", {"a": 2}, True),
        ("{path: /a, one-of: [x, 2]}", {"a": "2"}, False),
        ("{path: /a, glob: 'x*'}", {"a": "xyz"}, True),
        ("{path: /a, glob: 'x*'}", {"a": "xy/z"}, False),
        ("{path: /a, glob: 'x**'}", {"a": "xy/z"}, True),
        ("{path: /a, glob: 'x?'}", {"a": "xy"}, False),
        ("{path: /a, glob: '**'}", {"a": 1}, False),
        ("{path: /a, glob: '**'}", {"a": "y" * 4097}, False),
        ("{verdict: pass}", {"verdict": "pass"}, True),
        ("{verdict: pass}", {"verdict": "allowed"}, False),
        ("{verdict: {one-of: [pass, allowed]}}", {"verdict": "allowed"}, True),
    ],
)
def test_what_holds(condition: str, predicate: dict[str, Any], holds: bool) -> None:
    why = unmet(condition, predicate)
    assert (why is None) is holds, why


def test_what_is_said_of_one_that_does_not_hold() -> None:
    assert unmet("{path: /a/b, equals: x}", {}) == "/a/b is missing, must be 'x'"
    assert unmet("{path: /a, one-of: [x, 2]}", {"a": "y\n\x1b"}) == "/a is 'y\\n\\x1b', must be one of 'x', 2"
    assert unmet("{path: /a, glob: 'x*'}", {"a": []}) == "/a is a list, must match 'x*'"
    told = unmet("{path: /a, equals: x}", {"a": "\ud800" * 100_000})
    assert told is not None and len(told) < 1000 and told.isprintable()
    told.encode()


def test_a_pattern_takes_bounded_time() -> None:
    """One that tried again what it has tried before would not end."""
    assert unmet("{path: /a, glob: '" + "**a" * 150 + "'}", {"a": "a" * 4000 + "b"}) is not None


@pytest.mark.parametrize("path", ["", "a", "a/b", "/~", "/~2", "/a" * 32, "/" + "a" * 600])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        Place.parse(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0"]), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.sampled_from(["a", "b", "0", "*", ""]), min_size=1, max_size=4), JSON)
def test_there_is_always_something_to_judge(segments: list[str], value: Any) -> None:
    """An empty selection would let a condition hold for want of anything against it."""
    path = "/" + "/".join(segments)
    assert Place.parse(path).select(value)
    text = f"{{path: '{path}', equals: a value that is nowhere}}"
    assert unmet(text, value if isinstance(value, dict) else {"a": value}) is not None


@given(st.text(max_size=60))
def test_arbitrary_conditions(text: str) -> None:
    try:
        unmet(text, {"a": 1})
    except InvalidInput as error:
        str(error).encode()


def finding(severity: str, allowed: bool = False) -> ScanFinding:
    return ScanFinding("code", severity, "path", "message", allowed)


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], "pass"),
        ([finding("warning"), finding("info")], "pass"),
        ([finding("error", True), finding("warning")], "allowed"),
        ([finding("error")], "fail"),
        ([finding("error", True), finding("error")], "fail"),
    ],
)
def test_the_verdict_of_a_scan(findings: list[ScanFinding], verdict: str) -> None:
    scan = Scan("https://example.com/scanner", "1", {"b", "a"}, findings)
    assert scan.verdict is Verdict(verdict)
    predicate = scan.to_predicate()
    assert (predicate["verdict"], predicate["checks"]) == (verdict, ["a", "b"])
    assert predicate["scanner"] == {"uri": "https://example.com/scanner", "version": "1"}
    assert [item["allowed"] for item in predicate["findings"]] == [item.allowed for item in findings]
