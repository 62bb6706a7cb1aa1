"""Nothing that runs code gets into an artifact unasked: Python, auto_map, pickles, templates that reach outside."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.errors import Malformed, StowageError
from artifact.layout import LayoutRepository
from artifact.manifest import Manifest
from artifact.modelconfig import ModelConfig
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.source import bytes_source
from packager.findings import FindingsRefused
from packager.pack import Options, pack
from packager.packed import open_packed
from packager.source import open_path
from packager.template import unsafe_uses
from tests.checkpoints.tiny import CHAT_TEMPLATE, write_tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


def packed_paths(folder: Path, **options: frozenset[str]) -> list[str]:
    repository = LayoutRepository(folder.parent / "out")
    _, tag = pack(open_path(folder), repository, None, Options(**options), Quiet())
    manifest = Manifest.parse(repository.manifest(tag)[1])
    return [layer.annotations[mediatypes.FILEPATH] for layer in manifest.layers]


class Runs:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("ran",)


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs()))
    return buffer.getvalue()


PICKLES = {
    "pytorch_model.bin": torch_zip(),
    "model.pt": torch_zip(),
    "model.pth": pickle.dumps(Runs(), 0),
    "MODEL.PKL": pickle.dumps(Runs(), 1),
    "weights.pickle": pickle.dumps(Runs(), 2),
    "last.ckpt": b"",
    "pipeline.joblib": pickle.dumps(Runs(), 5),
    "merges.txt": pickle.dumps(Runs(), 4),  # a pickle under an innocent name
    "tokenizer.model": pickle.dumps(Runs(), 2),
    "README.md": pickle.dumps(Runs(), 3),
}


@pytest.mark.parametrize(("name", "data"), PICKLES.items(), ids=PICKLES.keys())
def test_a_pickle_is_denied_by_its_format_and_cannot_be_allowed(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(FindingsRefused, match=r"\[pickle\]"):
        packed_paths(folder)
    with pytest.raises(FindingsRefused, match=r"\[pickle\]"):
        packed_paths(folder, allowed=frozenset({"pickle"}))
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    "name", ["model.npy", "archive.zip", "model.h5", "model.onnx", "run.sh", "lib.so", "model.tar.gz"]
)
def test_a_file_of_an_unknown_kind_is_left_out(folder: Path, name: str) -> None:
    (folder / name).write_bytes(torch_zip())
    assert name not in packed_paths(folder)


def test_python_is_refused_unless_allowed(folder: Path) -> None:
    (folder / "modeling_tiny.py").write_text("import os")
    with pytest.raises(FindingsRefused, match=r"modeling_tiny\.py.*\[python-code\]"):
        packed_paths(folder)
    assert "modeling_tiny.py" in packed_paths(folder, allowed=frozenset({"python-code"}))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "other.json"]
)
@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"auto_map": {"AutoConfig": "org/repo--configuration.Config"}},  # code from another repository
        {"vision_config": {"deep": [{"auto_map": {"AutoModel": "m.M"}}]}},
        {"custom_pipelines": {"x": {"impl": "pipeline.Pipeline"}}},
    ],
)
def test_configuration_that_names_code_is_refused(folder: Path, name: str, change: dict) -> None:
    path = folder / name
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | change))
    with pytest.raises(FindingsRefused, match=r"\[auto-map\]"):
        packed_paths(folder)


def test_a_second_auto_map_key_cannot_hide_behind_the_first(folder: Path) -> None:
    raw = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(raw + ',"auto_map":{"A":"m.M"},"auto_map":null}')
    with pytest.raises(Malformed, match="given twice"):
        packed_paths(folder)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('id') }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ messages|attr('__class__') }}",
    "{{ messages | attr ('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ [messages]|map('attr', 'a')|list }}",
    "{{ messages['__cl' ~ 'ass__'] }}",
    "{{ (x|attr)('y') }}",
    "{%- filter attr('x') -%}{%- endfilter -%}",
    "{% import 'os' as os %}",
    "{%- from 'x' import y -%}",
    "{% include '/etc/passwd' %}",
    "{%+ extends 'x' %}",
    "{{ ''.format_map({}) }}",
    "{{ x.gi_frame.f_globals }}",
    "{{ unfinished.__class__",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_outside_is_refused_wherever_it_stands(folder: Path, template: str) -> None:
    assert unsafe_uses(template)
    config = folder / "tokenizer_config.json"
    original = json.loads(config.read_text())
    for spoilt in (template, [{"name": "default", "template": "x"}, {"name": "tool_use", "template": template}]):
        config.write_text(json.dumps(original | {"chat_template": spoilt}))
        with pytest.raises(FindingsRefused, match=r"\[template-unsafe\]"):
            packed_paths(folder)
    config.write_text(json.dumps(original))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(FindingsRefused, match=r"\[template-unsafe\]"):
        packed_paths(folder)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{%- set ns = namespace(first=true) %}{{ bos_token }}{{ raise_exception('from here, import nothing') }}",
        "{{ message.content | trim }}{{ tools | tojson(indent=4) }}{% generation %}{{ x }}{% endgeneration %}",
        "You are __not__ code, from a | attr {# {{ ''.__class__ }} #}",
    ],
)
def test_ordinary_templates_pass(template: str) -> None:
    assert unsafe_uses(template) == []


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "/etc/passwd", "a/../../b", "~/x", "-rf", "a\\b", "a\n.gguf", "", "a//b", "./a", "a\0b"],
)
def test_a_path_out_of_an_artifact_is_checked_before_it_is_used(folder: Path, path: str) -> None:
    repository = LayoutRepository(folder.parent / "out")
    _, tag = pack(open_path(folder), repository, None, Options(), Quiet())
    manifest = Manifest.parse(repository.manifest(tag)[1])
    first, *rest = manifest.layers
    spoilt = Descriptor(first.media_type, first.digest, first.size, {**first.annotations, mediatypes.FILEPATH: path})
    spoilt_again = Descriptor(first.media_type, first.digest, first.size, {mediatypes.TITLE: path})
    for layer in (spoilt, spoilt_again):
        if not path:
            continue
        raw = Manifest(manifest.config, (layer, *rest), manifest.artifact_type).to_bytes()
        repository.push_manifest(raw, manifest.media_type, "evil")
        with pytest.raises(StowageError, match="unsafe file path"):
            open_packed(repository, Reference.parse(f"oci:{folder.parent}/out:evil"))


def test_a_config_that_names_other_layers_is_refused(folder: Path) -> None:
    repository = LayoutRepository(folder.parent / "out")
    config = ModelConfig("safetensors", "BF16", 1).to_bytes([])
    repository.push_blob(Descriptor.of(config, mediatypes.MODEL_CONFIG), bytes_source(config), Quiet())
    _, tag = pack(open_path(folder), repository, None, Options(), Quiet())
    manifest = Manifest.parse(repository.manifest(tag)[1])
    swapped = Manifest(Descriptor.of(config, mediatypes.MODEL_CONFIG), manifest.layers, mediatypes.MODEL_MANIFEST)
    repository.push_manifest(swapped.to_bytes(), swapped.media_type, "swapped")
    with pytest.raises(Malformed, match="diffIds"):
        open_packed(repository, Reference.parse(f"oci:{folder.parent}/out:swapped"))
