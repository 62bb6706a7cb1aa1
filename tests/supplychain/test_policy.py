from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from supplychain import strictyaml
from supplychain.keys import PrivateKey, PublicKey
from supplychain.policy import Mode, Policy

Parse = Callable[[str], Policy]
HEAD = "version: 1\nauthorities: {a: {key: release}, b: {key: ops}, c: {key: audit}}\n"
KEY = PrivateKey.new().public


def rules(*requirements: str) -> str:
    return HEAD + "rules:\n" + "".join(f"  - {{match: ['**'], require: {item}}}\n" for item in requirements)


def test_requirements(policy: Parse) -> None:
    parsed = policy(rules("{any-of: [a, b]}", "{all-of: [a, b]}", "{at-least: {count: 2, of: [a, b, c]}}", "nothing"))
    requirements = [rule.requirement for rule in parsed.rules]
    assert [item.count for item in requirements] == [1, 2, 2, 0]
    assert [len(item.authorities) for item in requirements] == [2, 2, 3, 0]
    assert [rule.name for rule in parsed.rules] == ["rule 1", "rule 2", "rule 3", "rule 4"]


def test_a_mode_is_inherited_and_overridden(policy: Parse) -> None:
    text = (
        HEAD + "mode: warn\nrules:\n- {match: [x], require: nothing}\n- {match: [y], require: nothing, mode: enforce}"
    )
    parsed = policy(text)
    assert [parsed.mode, *(rule.mode for rule in parsed.rules)] == [Mode.WARN, Mode.WARN, Mode.ENFORCE]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("rules: []\n", 1, "no version"),
        ("version: 2\nrules: []\n", 1, "version 1"),
        ("version: '1'\nrules: []\n", 1, "whole number"),
        ("version: 1\n", 1, "no rules"),
        ("version: 1\nrules: []\n", 2, "no rules"),
        ("version: 1\nversion: 1\n", 2, "given twice"),
        ("version: 1\nrulez: []\n", 2, "unknown key 'rulez'"),
        ("version: 1\nrules:\n  - match: [a]\n    requires: nothing\n", 4, "unknown key 'requires'"),
        ("version: 1\nrules:\n  - match: [a]\n", 3, "'require' is missing"),
        ("version: 1\nrules:\n  - require: nothing\n", 3, "'match' is missing"),
        ("version: 1\nrules:\n  - match: []\n    require: nothing\n", 3, "empty"),
        ("version: 1\nrules:\n  - match: a\n    require: nothing\n", 3, "must be a list"),
        ("version: 1\nrules:\n  - match: [**]\n    require: nothing\n", 3, "in quotes"),
        ("version: 1\nrules:\n  - match: ['a b']\n    require: nothing\n", 3, "reference pattern"),
        ("version: 1\nrules:\n  - match: [a]\n    require: something\n", 4, "nothing"),
        ("version: 1\nrules:\n  - match: [a]\n    require: {any-of: [x]}\n", 4, "no authority 'x'"),
        ("version: 1\nrules:\n  - match: [yes]\n    require: nothing\n", 3, "in quotes"),
        ("version: 1\nrules: &r []\n", 2, "anchors"),
        ("version: 1\nrules: !!python/object:os.system {}\n", 2, "tags"),
        ("version: 1\nmode: off\nrules: []\n", 2, "enforce or warn"),
        ("version: 1\nrules: [\n", 3, "not valid YAML"),
        ("version: 1\n---\nversion: 1\n", 2, "second document"),
        (HEAD + "rules: [{match: [a], require: {any-of: []}}]\n", 3, "cannot be required"),
        (HEAD + "rules: [{match: [a], require: {any-of: [a, a]}}]\n", 3, "named twice"),
        (HEAD + "rules: [{match: [a], require: {any-of: [a], all-of: [b]}}]\n", 3, "one of"),
        (HEAD + "rules: [{match: [a], require: {at-least: {count: 3, of: [a, b]}}}]\n", 3, "cannot be required"),
        (HEAD + "rules: [{match: [a], require: {at-least: {count: 0, of: [a, b]}}}]\n", 3, "cannot be required"),
        (HEAD + "rules: [{match: [a], require: {at-least: {count: 010, of: [a, b]}}}]\n", 3, "whole number"),
        (HEAD + "rules: [{match: [a], require: nothing}]\nrevoked: {digests: ['sha256:0']}\n", 4, "digest"),
        (HEAD + "rules: [{match: [a], require: nothing}]\nrevoked: {keys: [{fingerprint: x}]}\n", 4, "fingerprint"),
        (HEAD + "rules: [{match: [a], require: nothing}]\nrevoked: {keys: [{reason: x}]}\n", 4, "by key or by"),
    ],
)
def test_a_mistake_is_pointed_at(policy: Parse, text: str, line: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        policy(text)
    assert str(error.value).startswith(f"policy.yaml:{line}: ")
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_one_key_is_not_two_authorities(policy: Parse) -> None:
    text = "version: 1\nauthorities: {a: {key: release}, b: {key: release}}\nrules: [{match: [x], require: nothing}]"
    with pytest.raises(InvalidInput, match="same key"):
        policy(text)


def test_an_alias_bomb_is_not_unfolded(policy: Parse) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    with pytest.raises(InvalidInput, match="anchors"):
        policy(bomb)
    with pytest.raises(InvalidInput, match="aliases"):
        policy("version: *a\n")


def test_size_and_depth_are_bounded(policy: Parse) -> None:
    with pytest.raises(InvalidInput, match="larger"):
        policy("#" * (strictyaml.MAX_BYTES + 1))
    for text in ("[" * 500_000, "{a: " * 200_000, "- " * 400_000):
        with pytest.raises(InvalidInput):
            policy(text)


def test_key_paths_are_relative_to_the_policy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "release.pub").write_bytes(KEY.pem)
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\nauthorities: {a: {key: keys/release.pub}}\nrules: [{match: ['**'], require: {any-of: [a]}}]\n"
    )
    monkeypatch.chdir("/")
    assert Policy.load(path).keys == (KEY,)
    (tmp_path / "keys" / "release.pub").unlink()
    with pytest.raises(InvalidInput, match=r"policy.yaml:2: .*release.pub"):
        Policy.load(path)
    with pytest.raises(InvalidInput, match="cannot read policy"):
        Policy.load(tmp_path / "none.yaml")


def test_a_key_may_stand_in_the_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = KEY.pem.decode().replace("\n", "\n      ")
    rule = "rules: [{match: ['**'], require: {any-of: [a]}}]\n"
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\nauthorities:\n  a:\n    key: |\n      {pem}\n{rule}")
    assert Policy.load(path).keys == (KEY,)
    monkeypatch.setenv("RELEASE_KEY", KEY.pem.decode())
    path.write_text(f"version: 1\nauthorities: {{a: {{key: 'env://RELEASE_KEY'}}}}\n{rule}")
    assert Policy.load(path).keys == (KEY,)


def test_the_example_policy(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "policy-key.yaml"
    key = tmp_path / "release: key #1.pub"
    key.write_bytes(KEY.pem)
    path = tmp_path / "policy.yaml"
    path.write_text(example.read_text().replace("PUBLIC_KEY", str(key)))
    assert Policy.load(path).keys == (KEY,)


def test_the_documented_policy(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "supply-chain.md").read_text()
    text = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    for name in ("release", "security", "partner", "lost"):
        (tmp_path / "keys").mkdir(exist_ok=True)
        (tmp_path / "keys" / f"{name}.pub").write_bytes(PrivateKey.new().public.pem)
    (tmp_path / "policy.yaml").write_text(text)
    assert len(Policy.load(tmp_path / "policy.yaml").rules) == 4


def parses_or_is_refused(raw: bytes) -> None:
    def read_key(location: str) -> PublicKey:
        return KEY

    try:
        Policy.parse(raw, "policy.yaml", read_key)
    except InvalidInput as error:
        str(error).encode()


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes(raw: bytes) -> None:
    parses_or_is_refused(raw)


WORDS = ["version", "1", "rules", "match", "require", "any-of", "nothing", "authorities", "key", "revoked", "digests"]
WORDS += ["attestations", "type", "scan", "conditions", "path", "/a/*", "equals", "one-of", "glob", "verdict", "which"]
TOKENS = [
    *WORDS,
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "\n",
    "\n  ",
    "'",
    '"',
    "&a ",
    "*a",
    "!!int ",
    "|",
    "#",
    "\\ud800",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=40).map("".join), st.booleans())
def test_arbitrary_yaml(text: str, headed: bool) -> None:
    parses_or_is_refused((HEAD + text if headed else text).encode())
