"""Mistakes in what a policy says about attestations."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from artifact.errors import InvalidInput
from supplychain.policy import Policy

Parse = Callable[[str], Policy]
AUTHORITIES = "version: 1\nauthorities: {release: {key: release}, ops: {key: ops}, audit: {key: audit}}\n"
HEAD = f"{AUTHORITIES}rules:\n  - match: ['**']\n    require: {{any-of: [release]}}\n    attestations:\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("      - provenance\n", 7, "not a predicate type"),
        ("      - https://sigstore.dev/cosign/sign/v1\n", 7, "type of a signature"),
        ("      - {types: scan}\n", 7, "unknown key 'types'"),
        ("      - {require: {any-of: [ops]}}\n", 7, "'type' is missing"),
        ("      - {type: [scan]}\n", 7, "must be text"),
        ("      - {type: scan, require: nothing}\n", 7, "nobody"),
        ("      - {type: scan, require: {any-of: [none]}}\n", 7, "no authority"),
        ("      - {type: scan, which: some}\n", 7, "any or every"),
        ("      - type: scan\n        conditions:\n          - {}\n", 9, "a condition is"),
        ("      - type: scan\n        conditions:\n          - {verdicts: pass}\n", 9, "unknown key 'verdicts'"),
        ("      - type: scan\n        conditions:\n          - {builder: x}\n", 9, "condition on slsaprovenance1"),
        ("      - type: scan\n        conditions:\n          - {verdict: pass, license: x}\n", 9, "a condition is"),
        ("      - type: scan\n        conditions:\n          - {verdict: {is: pass}}\n", 9, "unknown key 'is'"),
        ("      - type: scan\n        conditions:\n          - {verdict: {}}\n", 9, "equals, one-of, glob or max-age"),
        ("      - type: scan\n        conditions:\n          - {verdict: [pass]}\n", 9, "must be a mapping"),
        ("      - type: scan\n        conditions:\n          - {verdict: {one-of: []}}\n", 9, "empty"),
        ("      - type: scan\n        conditions:\n          - {verdict: {one-of: pass}}\n", 9, "must be a list"),
        ("      - type: scan\n        conditions:\n          - {verdict: {glob: '***'}}\n", 9, "pattern"),
        ("      - type: scan\n        conditions:\n          - {verdict: null}\n", 9, "in quotes"),
        ("      - type: scan\n        conditions:\n          - {path: verdict, equals: x}\n", 9, "not a path"),
        ("      - type: scan\n        conditions:\n          - {path: /a~2, equals: x}\n", 9, "not a path"),
        ("      - type: scan\n        conditions:\n          - {path: /verdict}\n", 9, "equals, one-of, glob or max"),
        ("      - type: scan\n        conditions:\n          - {path: /v, equals: x, glob: y}\n", 9, "one of equals"),
        ("      - type: scan\n        conditions:\n          - {path: /v, verdict: x}\n", 9, "unknown key 'verdict'"),
        ("      - type: scan\n        conditions: {verdict: pass}\n", 8, "must be a list"),
    ],
)
def test_a_mistake_is_pointed_at(policy: Parse, text: str, line: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        policy(HEAD + text)
    assert str(error.value).startswith(f"policy.yaml:{line}: ")


def test_nobody_is_no_default(policy: Parse) -> None:
    with pytest.raises(InvalidInput, match="nobody"):
        policy(HEAD.replace("{any-of: [release]}", "nothing") + "      - scan\n")
