"""The pure rules: which files are packed as what, what metadata says, which findings stop a pack."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput, Malformed
from artifact.filetypes import is_pickle_name
from artifact.weights.shards import misplaced, weight_map
from packager.description import from_checkpoint, from_gguf, front_matter, licenses_of, slug, spdx
from packager.files import Kind, is_filtered_out, is_license, kind_of, shards_of
from packager.findings import RULES, Finding, FindingsRefused, Severity, check_allowed, enforce
from packager.template import chosen, named_templates


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.safetensors", Kind.WEIGHT), ("model-Q4_K_M.gguf", Kind.WEIGHT), ("config.json", Kind.CONFIG),
        ("tokenizer.model", Kind.CONFIG), ("merges.txt", Kind.CONFIG), ("chat_template.jinja", Kind.CONFIG),
        ("qwen.tiktoken", Kind.CONFIG), ("README.md", Kind.DOC), ("LICENSE", Kind.DOC), ("LICENSE.txt", Kind.DOC),
        ("LICENCE-2.0", Kind.DOC), ("NOTICE", Kind.DOC), ("USE_POLICY.md", Kind.DOC), ("modeling.py", Kind.CODE),
        ("notebook.ipynb", Kind.CODE), (".gitattributes", None), ("pytorch_model.bin", None), ("model.onnx", None),
        ("image.png", None), ("run.sh", None), ("1_Pooling/config.json", Kind.CONFIG), ("1_Pooling/.x.json", None),
    ],
)  # fmt: skip
def test_kinds(path: str, kind: Kind | None) -> None:
    assert kind_of(path) is kind


@given(st.text())
def test_a_pickle_is_never_packed_by_name(name: str) -> None:
    for suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".BIN"):
        assert is_pickle_name(name + suffix)
    assert kind_of("x" + ".bin") is None


def test_licences() -> None:
    assert all(map(is_license, ("LICENSE", "LICENSE.md", "license.txt", "LICENCE", "COPYING", "sub/LICENSE-MIT")))
    assert not any(map(is_license, ("README.md", "unlicensed.txt", "licenses.json")))


def test_shards() -> None:
    assert shards_of("m-00002-of-00003.gguf") == tuple(f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert shards_of("model.gguf") is None
    assert shards_of("m-1-of-3.gguf") is None
    for name in ("m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-00000.safetensors"):
        with pytest.raises(InvalidInput):
            shards_of(name)


@pytest.mark.parametrize(
    ("path", "globs", "out"),
    [
        ("a.bin", [], False), ("a.bin", ["!*.bin"], True), ("b.json", ["!*.bin"], False), ("b.json", ["*.json"], False),
        ("c.txt", ["*.json"], True), ("b.json", ["*.json", "!b.*"], True), ("b.json", ["!b.*", "*.json"], False),
    ],
)  # fmt: skip
def test_filters(path: str, globs: list[str], out: bool) -> None:
    assert is_filtered_out(path, globs) is out


def test_findings_that_stop_a_pack() -> None:
    harmless = [Finding(code, "x") for code, rule in RULES.items() if rule.severity is not Severity.ERROR]
    enforce(harmless)
    for code, rule in RULES.items():
        if rule.severity is Severity.ERROR:
            with pytest.raises(FindingsRefused, match=rf"\[{code}\]"):
                enforce([*harmless, Finding(code, "x", "file")])
    enforce([Finding("auto-map", "x")], check_allowed(["auto-map"]))
    with pytest.raises(FindingsRefused):
        enforce([Finding("tag-mismatch", "x")], {"tag-mismatch"})
    with pytest.raises(InvalidInput, match="cannot be allowed"):
        check_allowed(["tag-mismatch"])


def test_many_findings_are_told_in_one_line() -> None:
    with pytest.raises(FindingsRefused) as caught:
        enforce([Finding("python-code", "x", f"{n}.py") for n in range(9)])
    assert "and 6 more (--allow python-code" in str(caught.value) and "\n" not in str(caught.value)


CARD = "---\nlicense: other\nlicense_name: my licence\ntags:\n- x\n---\n# The Model\ntext\n"


def test_descriptions_of_checkpoints() -> None:
    config = {"model_type": "llama", "max_position_embeddings": 8192, "_name_or_path": "/home/me/run-7"}
    stated = from_checkpoint(config, CARD)
    assert (stated.name, stated.architecture, stated.context_length) == ("The Model", "llama", 8192)
    assert stated.licenses == ("LicenseRef-my-licence",)
    assert from_checkpoint(config, "").name == "run-7"
    assert from_checkpoint({"text_config": {"max_position_embeddings": 7}}, "").context_length == 7
    for bad in (True, -1, "8192", 1e3, 10**30, None, [8192]):
        assert from_checkpoint({"max_position_embeddings": bad}, "").context_length is None
    assert from_checkpoint({"model_type": ["x"], "_name_or_path": 7, "text_config": 1}, "---\n- a\n---").name == "7"


def test_descriptions_of_gguf() -> None:
    stated = from_gguf(
        {
            "general.architecture": "qwen3",
            "general.name": "Qwen3",
            "qwen3.context_length": 40960,
            "general.license": "mit",
        }
    )
    assert (stated.name, stated.architecture, stated.context_length) == ("Qwen3", "qwen3", 40960)
    assert stated.licenses == ("MIT",)
    assert from_gguf({}).context_length is None


@given(st.text())
def test_any_readme_can_be_read(text: str) -> None:
    for readme in (text, f"---\n{text}\n---\n"):
        assert isinstance(front_matter(readme), dict)
        assert from_checkpoint({}, readme).name.isprintable()


@pytest.mark.parametrize(
    "value",
    [
        "!!bool foo", "!!int ''", "!!timestamp foo", "!!float ''", "!!binary x", "? [a]",
        "!!set [a]", "!!omap {a: 1}", "*none", "!!python/object:os.system {}",
    ],
)  # fmt: skip
def test_values_that_are_not_what_they_say(value: str) -> None:
    assert front_matter(f"---\nlicense: {value}\n---\n") == {}


@given(st.sampled_from(["bool", "int", "float", "timestamp", "binary", "set", "omap", "pairs", "null"]), st.text())
def test_any_value_of_any_type_can_be_read(kind: str, text: str) -> None:
    assert isinstance(front_matter(f"---\nlicense: !!{kind} {text}\n---\n"), dict)


@given(st.text())
def test_any_licence_and_name_become_plain_text(text: str) -> None:
    assert all(char.isalnum() or char in ".-" for char in spdx(text) if char.isascii())
    assert spdx(text).isascii() and slug(text).isascii() and "/" not in slug(text)
    assert slug(text)[0].isalnum() or slug(text)[0] == "_"


def test_licence_identifiers() -> None:
    assert licenses_of({"license": ["apache-2.0", "mit", "mit"]}) == ("Apache-2.0", "MIT")
    assert licenses_of({"license": "llama3.1"}) == ("LicenseRef-llama3.1",)
    assert licenses_of({"license": "other"}) == licenses_of({"license": 3}) == licenses_of({}) == ()
    assert spdx("Apache-2.0") == "Apache-2.0"


def test_templates_in_configs() -> None:
    assert chosen(named_templates({"chat_template": "x"})) == "x"
    both = {"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}
    assert chosen(named_templates(both)) == "d"
    assert (
        chosen(named_templates({"chat_template": [{"name": "a", "template": "1"}, {"name": "b", "template": "2"}]}))
        is None
    )
    twice = {"chat_template": [{"name": "default", "template": "1"}, {"name": "default", "template": "2"}]}
    assert sorted(named_templates(twice).values()) == ["1", "2"]
    for nothing in (
        {},
        {"chat_template": ""},
        {"chat_template": 3},
        {"chat_template": [3, {}]},
        {"chat_template": None},
    ):
        assert named_templates(nothing) == {}


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda item: st.dictionaries(st.text(), item))
)
def test_any_index_is_read_or_refused(value: object) -> None:
    for document in (value, {"weight_map": value}, {"weight_map": {"a": value}}):
        try:
            mapping = weight_map(json.dumps(document).encode(), "index")
        except Malformed:
            continue
        assert all(file.endswith(".safetensors") and "/" not in file for file in mapping.values())


def test_tensors_an_index_puts_elsewhere() -> None:
    mapping = weight_map(b'{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}', "index")
    assert misplaced(mapping, {"1.safetensors": {"a"}, "2.safetensors": {"b", "c"}}) is None
    assert misplaced(mapping, {"1.safetensors": {"a", "b"}, "2.safetensors": set()}) == ("b", "2.safetensors")
    for bad in ("../x.safetensors", "a\\b.safetensors", "x.bin", "sub/x.safetensors", ""):
        with pytest.raises(Malformed, match="not the name of a safetensors file"):
            weight_map(json.dumps({"weight_map": {"a": bad}}).encode(), "index")
