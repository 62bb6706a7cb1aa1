"""Chat templates are looked through as Jinja reads them: what a template can do is not hidden by how it is written."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager import template
from packager.template import MAX_TEMPLATE, unsafe_uses

PIECES = (
    "{{", "}}", "{%", "%}", "{#", "#}", "{", "}", "(", ")", "[", "]", "'", '"', "\\", "%", "#", "-", " ", "\n", "x",
   "~",    "'}}'", '"%}"', "set x =", ".__class__", "{{ x }}", "{% set x = 1 %}", "{% raw %}", "{% endraw %}",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.mark.parametrize(
    "text",
    [
        "{{ '}}' ~ ''.__class__ }}", "{% set x = '%}' ~ ''.__class__ %}{{ x }}", "{{ '\\'}}' ~ x.__class__ }}",
        "{{ {'a': {'b': 1}}.__class__ }}", "{% set x = {'%}': ''.__class__} %}", '{{ "}}".__class__ }}',
        "{% raw %}{# {% endraw %}{{ x.__class__ }}{# #}", "{{ x }} {{ x.__class__", "{# #}{{ x.__class__ }}",
    ],
)  # fmt: skip
def test_an_end_in_a_string_or_in_brackets_is_none(text: str) -> None:
    assert unsafe_uses(text) == ["uses double-underscore names"]


@pytest.mark.parametrize(
    "text",
    ["__init__", "{# x.__class__ #}{{ x }}", "{{ '{{' }} a __b__ {{ '}}' }}", "{{ {'a': {}} }} __class__ {{ x }}"],
)
def test_text_and_comments_do_nothing(text: str) -> None:
    jinja2.Environment().from_string(text)
    assert unsafe_uses(text) == []


@settings(max_examples=2000)
@given(TEXT)
def test_what_jinja_takes_for_a_name_is_seen(text: str) -> None:
    try:
        tokens = list(jinja2.Environment().lex(text))
    except jinja2.TemplateSyntaxError:
        return
    if any(kind == "name" and "__" in value for _, kind, value in tokens):
        assert unsafe_uses(text)


@given(st.one_of(TEXT, st.text(), st.text("'\"\\{}%")))
def test_each_character_of_a_template_is_passed_once(text: str) -> None:
    assert "".join(template._PARTS.findall(text)) == text
    blocks = list(template._code(text))
    assert sum(map(len, blocks)) <= len(text)


@pytest.mark.parametrize("unit", ["'\\", "\\'", "'\"", "{{", "{{'", "{%(", "{#", "}}", "{{ {", "'{{\\"])
def test_the_longest_template_is_looked_through(unit: str) -> None:
    """In a time that grows with its length alone: with its square it would not end before the test's limit."""
    unsafe_uses("{{" + unit * (MAX_TEMPLATE // len(unit)))
