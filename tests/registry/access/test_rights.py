"""The rules as functions: what holds whatever the rules say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from registry.access.rights import ALL, NOBODY, Caller, Grant, Principal, Right, Rule, grants_to
from registry.access.scopes import granted, parse

NAMES = st.sampled_from(["alice", "robot+ci", "oidc:gh:repo:a/b", "cert:CN=x,O=y", "anonymous"])
PATTERNS = st.sampled_from(
    ["alice", "robot+*", "oidc:gh:**", "*", "**", "authenticated", "anonymous", "cert:CN=*", "oidc:gh"]
)
REPOSITORIES = st.sampled_from(["a", "a/b", "a/b/c", "ab", "b"])
GRANTS = st.builds(
    Grant,
    st.lists(st.sampled_from(["a", "a/*", "a/**", "**", "*", "a*", "b"]), min_size=1, max_size=2).map(tuple),
    st.sets(st.sampled_from(list(Right)), min_size=1).map(frozenset),
)
RULES = st.lists(st.builds(Rule, st.lists(PATTERNS, min_size=1, max_size=2).map(tuple), GRANTS), max_size=5)


@given(RULES, REPOSITORIES)
def test_nobody_gets_only_what_is_given_to_nobody(rules: list[Rule], repository: str) -> None:
    """No pattern, however wide, is about the anonymous caller."""
    named = [rule for rule in rules if "anonymous" in rule.principals]
    assert grants_to(NOBODY, rules) == tuple(rule.grant for rule in named)
    without = Caller(NOBODY, grants_to(NOBODY, [rule for rule in rules if rule not in named]))
    assert not any(without.may(right, repository) for right in Right)


@given(RULES, RULES, NAMES, REPOSITORIES)
def test_rules_only_add(rules: list[Rule], more: list[Rule], name: str, repository: str) -> None:
    principal = Principal(name)
    before = Caller(principal, grants_to(principal, rules)).granted(repository)
    assert before <= Caller(principal, grants_to(principal, rules + more)).granted(repository)


@given(st.lists(GRANTS).map(tuple), st.none() | st.lists(GRANTS).map(tuple), REPOSITORIES)
def test_bounds_only_take_away(grants: tuple[Grant, ...], bounds: tuple[Grant, ...] | None, repository: str) -> None:
    caller = Caller(Principal("alice"), grants, bounds)
    for right in Right:
        assert not caller.may(right, repository) or right in Caller(Principal("alice"), grants).granted(repository)
    if caller.may_pull_everything:
        assert caller.may(Right.PULL, repository)


@given(
    st.lists(GRANTS).map(tuple),
    REPOSITORIES,
    st.sampled_from(["pull", "push", "pull,push", "delete", "*", "pull,delete"]),
)
def test_a_token_is_no_more_than_was_asked_for_and_is_granted(
    grants: tuple[Grant, ...], repository: str, actions: str
) -> None:
    caller = Caller(Principal("alice"), grants)
    for scope in granted(caller, parse([f"repository:{repository}:{actions}"])):
        assert scope.name == repository
        assert actions == "*" or set(scope.actions) <= set(actions.split(","))
        assert all(action in {"pull", "push", "delete"} for action in scope.actions)
        for action in scope.actions:
            wanted = {"push": {Right.PUSH, Right.OVERWRITE}}.get(action, {action})
            assert wanted & caller.granted(repository)


def test_each_right_stands_alone() -> None:
    for right in Right:
        caller = Caller(Principal("alice"), (Grant(("a",), frozenset({right})),))
        assert {other for other in ALL if caller.may(other, "a")} == {right}
        assert not any(caller.may(other, "ab") for other in ALL)
