"""A TOML document knows on which line everything stands."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from registry.config.document import Node, parse, parse_duration

DOCUMENT = """\
# a comment with [brackets] = "and" 'quotes'
top = 1

[server]          # tail
listen = "a # b"
"quoted.key" = 'x'
nested.deep = { a = 1, "b c" = [1, 2] }

[server.tls]
key = \"\"\"
three
lines\"\"\"

[[access]]
principals = [
  "alice",   # first
  "bob",
]
[[access]]
rights = ['''
literal''', "]"]
[access.inner]
x = 2024-01-01T00:00:00Z
[[access.list]]
y = 1
[[access.list]]
y = 2
"""


def lines(text: str) -> dict[str, int]:
    root = parse(text.encode(), "x.toml")
    return {".".join(map(str, path)): line for path, line in root.lines.items()}


def test_lines() -> None:
    found = lines(DOCUMENT)
    expected = {
        "top": 2, "server": 4, "server.listen": 5, "server.quoted.key": 6, "server.nested": 7, "server.nested.deep": 7,
        "server.nested.deep.a": 7, "server.nested.deep.b c.1": 7, "server.tls": 9, "server.tls.key": 10, "access": 14,
        "access.0": 14, "access.0.principals": 15, "access.0.principals.0": 16, "access.0.principals.1": 17,
        "access.1": 19, "access.1.rights": 20, "access.1.rights.0": 20, "access.1.rights.1": 21,
        "access.1.inner": 22, "access.1.inner.x": 23, "access.1.list": 24, "access.1.list.0.y": 25,
        "access.1.list.1": 26, "access.1.list.1.y": 27,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in children:
        found += paths(item, (*path, key))
    return found


KEYS = st.sampled_from(["a", "b-1", '"q.u"', "'l i'", '"\\u00e9"', "a.b.c"])
SCALARS = st.sampled_from(
    ["1", "-2.5e3", "true", "1979-05-27 07:32:00", '"text # = ]"', '"\\"esc\\\\"', "'lit\\'", '""', "0x1F", "inf",
     '"""m\nl"""', "'''m\n\"'''", '""""q"""""']
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n" + " ,# c ]\n".join(items) + "\n]"),
        st.lists(inner, max_size=3).map(lambda items: "[" + ",".join(items) + "]"),
        st.dictionaries(st.sampled_from(["x", '"y z"']), inner.filter(lambda text: "\n" not in text), max_size=2).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        ),
    ),
    max_leaves=6,
)
STATEMENTS = st.one_of(
    st.tuples(KEYS, VALUES).map(lambda pair: f" {pair[0]} = {pair[1]} # end"),
    KEYS.map(lambda key: f"[ {key} ]"),
    KEYS.map(lambda key: f"[[{key}]] # c"),
    st.just("# [nothing]"),
    st.just(""),
)


@given(st.lists(STATEMENTS, max_size=8).map("\n".join))
def test_everything_has_a_line(text: str) -> None:
    """Whatever tomllib accepts is walked to its end, and every value is found where a line says it is."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(InvalidInput, match=r"^x\.toml"):
            parse(text.encode(), "x.toml")
        return
    root = parse(text.encode(), "x.toml")
    assert root.value == value or "nan" in text
    for path in paths(value):
        assert 1 <= root.lines[path] <= text.count("\n") + 1


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    try:
        parse(text.encode("utf-8", "surrogatepass"), "x.toml")
    except InvalidInput as error:
        assert str(error).startswith("x.toml")


def test_messages_point_at_the_line() -> None:
    root = parse(DOCUMENT.encode(), "x.toml")
    second = root.table()["access"].items()[0].table()["principals"].items()[1]
    with pytest.raises(InvalidInput, match=r"^x\.toml:17: access\.principals: no$"):
        second.fail("no")
    with pytest.raises(InvalidInput, match=r"^x\.toml:5: server\.listen: .* known here: nested, other"):
        root.table()["server"].table("other", "quoted.key", "nested", "tls")
    with pytest.raises(InvalidInput, match=r"^x\.toml:3: "):
        parse(b"a = 1\n\nb = = 2\n", "x.toml")
    with pytest.raises(InvalidInput, match=r"x\.toml"):
        parse(b"a = " + b"[" * 100_000, "x.toml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("0s", None), ("1", None), ("1w", None), ("", None),
     ("-1s", None), ("1.5h", None), ("9999999999d", None)],
)  # fmt: skip
def test_durations(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "read"),
    [(1, Node.text), ("", Node.text), ([], Node.texts), (1, Node.boolean), (True, lambda n: n.integer(0, 2)),
     (True, lambda n: n.number(0, 2)), (1.5, lambda n: n.integer(0, 2)), (3, lambda n: n.integer(0, 2)),
     (float("nan"), lambda n: n.number(0, 2)), ("x", Node.items), ("x", Node.table), ("5", lambda n: n.duration(1, 9)),
     ("1h", lambda n: n.duration(1, 9)), ("c", lambda n: n.choice("a", "b")), ("a\0b", Node.file)],
)  # fmt: skip
def test_values_of_the_wrong_kind(value: Any, read: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^x\.toml:7: key: "):
        read(Node(value, ("key",), "x.toml", {("key",): 7}))
