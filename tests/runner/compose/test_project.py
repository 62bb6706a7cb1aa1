"""Compose files: what is read of them, and what is told about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import InvalidInput, NotFound
from runner.compose.project import Project, find_files, load_project, variable_prefix
from runner.compose.yamlfile import Document

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "compose.yaml"


def load(folder: Path, *texts: str, env: str = "", **environment: str) -> Project:
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"compose{number}.yaml")
        paths[-1].write_text(text)
    if env:
        (folder / ".env").write_text(env)
    return load_project(paths, environment)


def test_the_example_in_the_documentation() -> None:
    project = load_project([EXAMPLE], {"REGISTRY": "localhost:5000"})
    llm, embedder, big = project.models
    assert str(llm.reference) == "localhost:5000/team/qwen3-4b:4B-Q4_K_M"
    assert (llm.driver, llm.context_size, llm.flags) == ("llama.cpp", 4096, ("--temp", "0.2", "--parallel", "4"))
    assert (embedder.context_size, embedder.flags) == (512, ("--embeddings", "--pooling", "mean"))
    assert (big.driver, big.gpus, big.context_size, big.flags[-1]) == ("vllm", "all", 4096, "2")
    names = {model.key: model.written for model in project.models}
    variables = project.variables("http://127.0.0.1:12434/v1", names)
    assert sorted(variables) == [
        "BIG_LLM_ENDPOINT", "BIG_LLM_MODEL", "BIG_LLM_URL", "EMBEDDINGS_MODEL", "EMBEDDINGS_URL",
        "LLM_ENDPOINT", "LLM_MODEL", "LLM_URL",
    ]  # fmt: skip
    assert variables["EMBEDDINGS_MODEL"] == "localhost:5000/team/minilm-l6:23M-F16"


def test_variables_come_from_the_environment_before_the_env_file(tmp_path):
    text = "models: {m: {model: 'a/${NAME}:${TAG:?which}'}}"
    assert load(tmp_path, text, env="NAME=file\nTAG=v1").models[0].written == "a/file:v1"
    assert load(tmp_path, text, NAME="outside").models[0].written == "a/outside:v1"
    (tmp_path / ".env").unlink()
    with pytest.raises(InvalidInput, match=r"compose0\.yaml:1: the variable TAG is required but not set: which"):
        load(tmp_path, text)


def test_merge_keys_anchors_and_what_overrides_what(tmp_path):
    project = load(
        tmp_path,
        """
x-a: &a {context_size: 1, gpus: all}
services: {app: {ports: !reset [], models: [one]}}
x-b: &b {context_size: 2, driver: vllm}
models:
  one: {<<: [*a, *b], model: "a/b:v1"}
  two:
    context_size: 3
    <<: *b
    model: &name a/c:v1
    name: *name
""",
    )
    one, two = project.models
    assert (one.context_size, one.gpus, one.driver) == (1, "all", "vllm")
    assert (two.context_size, two.driver) == (3, "vllm")


def test_several_files_are_merged(tmp_path):
    project = load(
        tmp_path,
        "services: {app: {models: [m]}}\nmodels: {m: {model: a/b:v1, context_size: 1, runtime_flags: [--temp, 0]}}",
        "services: {app: {models: {m: {model_var: NAME}, n: }}}\n"
        "models: {m: {context_size: 2, runtime_flags: [--seed, 1]}, n: {model: a/c:v1}}",
    )
    m, n = project.models
    assert (m.written, m.context_size, m.flags, n.written) == ("a/b:v1", 2, ("--temp", "0", "--seed", "1"), "a/c:v1")
    assert project.variables("U", {"m": "M", "n": "N"}) == {
        "M_URL": "U", "M_ENDPOINT": "U", "NAME": "M", "N_URL": "U", "N_ENDPOINT": "U", "N_MODEL": "N",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n  m:\n    modle: a/b:v1", r":3: unknown key 'modle'"),
        ("models:\n  m:\n    driver: vllm", r":3: the model 'm' has no reference"),
        ("models:\n  m:\n    model: A/b:v1", r":3: bad reference"),
        ("models:\n  m: {model: a/b:v1,\n    context_size: many}", r":3: 'context_size' must be a whole number"),
        ("models:\n  m:\n    model: a/b:v1\n    runtime_flags: '--x \"'", r":4: .*cannot be split"),
        (
            "models: {m: {model: a/b:v1}}\nservices:\n  s:\n    models: [other]",
            r":4: service 's' uses the model 'other'",
        ),
        ("models: {m: {model: a/b:v1}}\nservices: {s: {models: {m: {endpoint_var: 1x}}}}", r":2: '1x' is not the name"),
        ("models: {m: {model: a/b:v1}}\nservices: {s: {models: {m: {url_var: X}}}}", r":2: unknown key 'url_var'"),
        ("models:\n  m: {model: a/b:v1}\n  m: {model: a/c:v1}", r":3: 'm' is given twice"),
        ("models: {m: {model: !env x}}", r":1: the tag !env is not read"),
        ("include: [x.yaml]\nmodels: {m: {model: a/b:v1}}", r":1: include is not read"),
        ("models: {m: &m {model: a/b:v1, runtime_flags: [*m]}}", r"too large or nested too deeply|a flag must be text"),
        ("models: {m: {<<: 1, model: a/b:v1}}", r":1: << must name a mapping"),
        ("a: [\n", r":\d: not valid YAML"),
        ("- 1", "its top level must be a mapping"),
        ("", "its top level must be a mapping"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tmp_path, text, message):
    with pytest.raises(InvalidInput, match=rf"compose0\.yaml.*{message}|{message}"):
        load(tmp_path, text)


def test_one_variable_cannot_mean_two_things(tmp_path):
    project = load(
        tmp_path,
        "models: {m: {model: a/b:v1}, n: {model: a/c:v1}}\nservices:\n  s: {models: {m: {model_var: X}}}\n"
        "  t:\n    models:\n      n: {model_var: X}",
    )
    with pytest.raises(InvalidInput, match=r":6: the variable X would have to be both 'M' and 'N'"):
        project.variables("U", {"m": "M", "n": "N"})


def test_aliases_cannot_blow_a_file_up():
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    document = Document("\n".join([*bomb, "models: {m: *a8}"]).encode(), "compose.yaml")
    with pytest.raises(InvalidInput, match="too large or nested too deeply"):
        document.value("models", str, "models")
    merges = ["m0: &m0 {k: 1}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    document = Document("\n".join([*merges, "models: {<<: *m8}"]).encode(), "compose.yaml")
    with pytest.raises(InvalidInput, match="too large"):
        document.value("models", str, "models")


def test_depth_is_bounded():
    with pytest.raises(InvalidInput):
        Document(("models: " + "[" * 5000 + "]" * 5000).encode(), "c").value("models", str, "models")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        Document(text.encode("utf-8", "surrogatepass"), "c").value("models", str, "models")
    except InvalidInput:
        return


def test_files_are_found_where_compose_finds_them(tmp_path):
    with pytest.raises(NotFound, match="name one with -f"):
        find_files([], tmp_path)
    (tmp_path / "docker-compose.yml").touch()
    assert [path.name for path in find_files([], tmp_path)] == ["docker-compose.yml"]
    (tmp_path / "compose.yaml").touch()
    (tmp_path / "compose.override.yaml").touch()
    assert [path.name for path in find_files([], tmp_path)] == ["compose.yaml", "compose.override.yaml"]
    with pytest.raises(NotFound, match="no Compose file"):
        find_files([tmp_path / "other.yaml"], tmp_path)


def test_names_of_variables():
    assert variable_prefix("my-llm.v2") == "MY_LLM_V2"
