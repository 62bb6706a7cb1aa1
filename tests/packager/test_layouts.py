"""What is packed, read by the rules of those who read it: Docker Model Runner, CRI-O, Podman, Ollama, and ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from safetensors.numpy import save_file

from artifact.digest import Digest
from artifact.layout import LayoutRepository
from artifact.locate import open_repository
from artifact.manifest import Manifest
from artifact.reference import Reference
from artifact.repository import Repository
from tests.packager.gguf_files import write_lora, write_projector, write_shards

OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
TITLE, PATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
CONVERT = ("--format", "gguf", "--precision", "F16")


@dataclass
class Fetched:
    """A manifest, as a client gets it."""

    repository: Repository
    raw: dict
    config: dict

    @property
    def layers(self) -> list[dict]:
        return self.raw["layers"]

    def blob(self, descriptor: dict) -> bytes:
        from artifact.descriptor import Descriptor

        return self.repository.read_blob(Descriptor.from_json(descriptor))


def fetched(repository: Repository, reference: str | Digest) -> Fetched:
    raw = json.loads(repository.manifest(reference)[1])
    found = Fetched(repository, raw, {})
    found.config = json.loads(found.blob(raw["config"]))
    return found


def local(place: Path, tag: str) -> Fetched:
    return fetched(LayoutRepository(place), tag)


def docker_model_runner(model: Fetched) -> dict[str, list[str]]:
    """What Docker Model Runner would unpack: weights, projectors and templates by path (wire-formats, 1 and 2)."""
    assert model.raw["mediaType"] == OCI and "manifests" not in model.raw
    assert len(json.dumps(model.raw)) <= 4 * 1024 * 1024
    # Which of its two readers is used depends on these alone.
    is_modelpack = any(
        [
            "createdAt" in model.config.get("descriptor", {}), "paramSize" in model.config["config"],
            "modelfs" in model.config,
        ]
    )  # fmt: skip
    assert model.config["config"]["format"] in ("gguf", "safetensors")
    paths = [layer["annotations"][PATH] for layer in model.layers]
    assert len(set(paths)) == len(paths) and not any(PurePosixPath(path).is_absolute() for path in paths)
    found: dict[str, list[str]] = {"weights": [], "mmproj": [], "template": []}
    for layer, path in zip(model.layers, paths, strict=True):
        assert layer["digest"].startswith("sha256:")
        type_ = layer["mediaType"]
        if is_modelpack:
            assert model.raw["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
            assert type_.startswith("application/vnd.cncf.model.") and type_.endswith(".raw")
            weight = ".weight.v1." in type_
            kind = "mmproj" if weight and "mmproj" in path else "weights" if weight else ""
            kind = "template" if path.endswith(".jinja") and "/" not in path else kind
        else:
            assert "artifactType" not in model.raw
            kind = {
                "application/vnd.docker.ai.gguf.v3": "weights", "application/vnd.docker.ai.safetensors": "weights",
                "application/vnd.docker.ai.mmproj": "mmproj",
                "application/vnd.docker.ai.chat.template.jinja": "template",
            }.get(type_, "")  # fmt: skip
        if kind:
            found[kind].append(path)
    identifiers = model.config["modelfs"]["diffIds"] if is_modelpack else model.config["rootfs"]["diff_ids"]
    assert identifiers == [layer["digest"] for layer in model.layers]
    assert len(found["mmproj"]) <= 1 and len(found["template"]) <= 1
    return found


def files_by_title(model: Fetched) -> list[str]:
    """The names under which CRI-O mounts the layers and Podman extracts them: flat, and no two the same."""
    names = [layer["annotations"][TITLE] for layer in model.layers]
    assert len(set(names)) == len(names)
    assert all(name and "/" not in name and name not in (".", "..") for name in names)
    return names


def ollama(model: Fetched) -> dict[str, list[bytes]]:
    """What Ollama would create from a manifest (wire-formats, section 3): contents by the last word of their type."""
    assert model.raw["mediaType"] == DOCKER and model.raw["schemaVersion"] == 2
    assert "subject" not in model.raw and "artifactType" not in model.raw
    assert model.raw["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert model.config["model_format"] == "gguf" and model.config["model_families"] == [model.config["model_family"]]
    found: dict[str, list[bytes]] = {}
    for layer in model.layers:
        prefix, _, kind = layer["mediaType"].rpartition(".")
        assert prefix == "application/vnd.ollama.image"
        found.setdefault(kind, []).append(model.blob(layer))
    (weights,) = found["model"]
    assert weights.startswith(b"GGUF")
    for raw in found.get("params", []):
        assert all(isinstance(stop, str) for stop in json.loads(raw)["stop"])
    return found


@pytest.mark.parametrize("layout", ["modelpack", "docker"])
@pytest.mark.parametrize("options", [(), CONVERT], ids=["safetensors", "gguf"])
def test_every_reader_finds_the_files(
    packager, tiny: Path, tmp_path: Path, layout: str, options: tuple[str, ...]
) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--layout", layout, *options)
    model = local(tmp_path / "out", line.rpartition("@")[0].rpartition(":")[2])
    found = docker_model_runner(model)
    assert found["template"] == ["chat_template.jinja"] and found["mmproj"] == []
    expected = ["Tiny-F16.gguf"] if options else [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert found["weights"] == expected
    assert set(expected) < set(files_by_title(model))


@pytest.mark.parametrize("layout", ["modelpack", "docker"])
def test_shards_are_in_order(packager, tmp_path: Path, layout: str) -> None:
    first = write_shards(tmp_path, 11)
    line = packager.ok("pack", first, f"oci:{tmp_path}/out", "--layout", layout)
    found = docker_model_runner(local(tmp_path / "out", line.rpartition("@")[0].rpartition(":")[2]))
    assert found["weights"] == [f"m-{number:05d}-of-00011.gguf" for number in range(1, 12)]


@pytest.fixture
def seeing(tiny_gguf: Path, tmp_path: Path) -> Path:
    """A folder as hubs have them: a model in GGUF, its projector, its licence, its card."""
    folder = tmp_path / "seeing"
    folder.mkdir()
    shutil.copyfile(tiny_gguf, folder / "model-F16.gguf")
    write_projector(folder / "mmproj-model-F16.gguf")
    (folder / "LICENSE").write_text("Apache License")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "imatrix.dat").write_bytes(b"x")
    return folder


@pytest.mark.parametrize(("layout", "type_"), [
    ("modelpack", "application/vnd.cncf.model.weight.v1.raw"), ("docker", "application/vnd.docker.ai.mmproj"),
])  # fmt: skip
def test_a_projector_is_packed_as_one(packager, seeing: Path, tmp_path: Path, layout: str, type_: str) -> None:
    result = packager("pack", seeing, f"oci:{tmp_path}/out", "--layout", layout)
    assert result.status == 0 and "imatrix.dat" in result.stderr, result.stderr
    model = local(tmp_path / "out", "95K-F16")  # the projector's parameters are not the model's
    found = docker_model_runner(model)
    assert (found["weights"], found["mmproj"]) == (["model-F16.gguf"], ["mmproj-model-F16.gguf"])
    assert {layer["annotations"][PATH]: layer["mediaType"] for layer in model.layers}["mmproj-model-F16.gguf"] == type_
    assert set(files_by_title(model)) == {
        "model-F16.gguf", "mmproj-model-F16.gguf", "chat_template.jinja", "LICENSE", "README.md",
    }  # fmt: skip
    if layout == "modelpack":
        assert model.config["config"]["capabilities"]["inputTypes"] == ["text", "image"]
    card = json.loads(packager("inspect", f"oci:{tmp_path}/out:95K-F16", "--json").stdout)
    assert card["parameters"] == 94528 and card["findings"] == []


def test_one_model_of_a_folder_is_chosen(packager, seeing: Path, tmp_path: Path) -> None:
    shutil.copyfile(seeing / "model-F16.gguf", seeing / "model-copy.gguf")
    message = packager.fails(2, "pack", seeing, "tiny")
    assert "several models (model-F16.gguf, model-copy.gguf)" in message
    line = packager.ok("pack", seeing, f"oci:{tmp_path}/out", "--file-filter", "!model-copy.gguf")
    assert ":95K-F16@" in line
    write_projector(seeing / "mmproj-model-F16.gguf", "llama")
    assert "not clip" in packager.fails(1, "pack", seeing, "tiny", "--file-filter", "!model-copy.gguf")


@pytest.mark.parametrize("options", [(), ("--split-max-size", "1M")], ids=["one file", "cut"])
def test_a_model_whose_name_says_projector_is_none(packager, tiny: Path, tmp_path: Path, options) -> None:
    """Whoever reads an artifact knows projectors by their names."""
    card = (tiny / "README.md").read_text()
    (tiny / "README.md").write_text(card.replace("# Tiny", "# An MMproj finetune"))
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", *CONVERT, "--ollama", *options)
    model = fetched(LayoutRepository(tmp_path / "out"), "95K-F16")
    assert [name for name in files_by_title(model) if name.endswith(".gguf")] == ["An-model-finetune-F16.gguf"]
    packager.ok("pack", f"oci:{tmp_path}/out:95K-F16", f"oci:{tmp_path}/again")


MESSAGES = "{% for message in messages %}"
TEMPLATES = {
    "ChatML": ("'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'", "<|im_start|>"),
    "Phi 3": ("'<|user|>\\n' + message['content'] + '<|end|>\\n<|assistant|>\\n'", "<|end|>"),
    "Phi 4": ("'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'", ""),
    "Phi 4 mini": ("'<|' + message['role'] + '|>' + message['content'] + '<|end|>' + '<|assistant|>'", ""),
    "gpt-oss": ("'<|start|>user<|message|>' + message['content'] + '<|end|><|start|>assistant'", ""),
    "half of ChatML": ("'<|im_start|>' + message['content']", ""),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_another_layout_is_not_taken_for_a_known_one(
    packager, tiny: Path, tmp_path: Path, name: str
) -> None:
    jinja, mark = TEMPLATES[name]
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    config["chat_template"] = f"{MESSAGES}{{{{ {jinja} }}}}{{% endfor %}}"
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--ollama", *CONVERT)
    found = ollama(fetched(LayoutRepository(tmp_path / "out"), "95K-F16-ollama")).get("template", [])
    assert [mark in raw.decode() for raw in found] == ([True] if mark else [])


def test_ollama_reads_the_sibling(packager, tiny: Path, tmp_path: Path, registry_server) -> None:
    host = registry_server(tmp_path / "storage").host
    (tiny / "LICENSE").write_text("Apache License")
    line = packager.ok("pack", tiny, f"{host}/acme/tiny", "--push", "--ollama", *CONVERT)
    repository = open_repository(Reference.parse(line))
    model = fetched(repository, "95K-F16")
    sibling = fetched(repository, "95K-F16-ollama")
    found = ollama(sibling)
    assert found["license"] == [b"Apache License"]
    assert b"<|im_start|>{{ .Role }}" in found["template"][0]
    assert json.loads(found["params"][0]) == {"stop": ["<|im_start|>", "<|im_end|>"]}
    assert (sibling.config["model_type"], sibling.config["file_type"]) == ("95K", "F16")
    # The same blob, and the artifact (so its signature too) says which manifest is its sibling.
    weights = {layer["digest"] for layer in model.layers if layer["mediaType"].endswith("weight.v1.raw")}
    assert weights == {layer["digest"] for layer in sibling.layers if layer["mediaType"].endswith("image.model")}
    assert model.raw["annotations"]["dev.stowage.ollama"] == str(repository.resolve("95K-F16-ollama").digest)
    assert docker_model_runner(model)["weights"] == ["Tiny-F16.gguf"]


def test_the_sibling_travels_with_its_artifact(packager, tiny_gguf: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny_gguf, f"oci:{tmp_path}/out", "--ollama")
    packager.ok("copy", f"oci:{tmp_path}/out:95K-F16", f"oci:{tmp_path}/there:v1")
    there = LayoutRepository(tmp_path / "there")
    assert there.tags() == ["v1", "v1-ollama"]
    stated = fetched(there, "v1").raw["annotations"]["dev.stowage.ollama"]
    assert stated == str(there.resolve("v1-ollama").digest)
    assert ollama(fetched(there, "v1-ollama"))["template"]


def test_what_ollama_cannot_load(packager, tiny: Path, tmp_path: Path) -> None:
    assert "--format gguf" in packager.fails(2, "pack", tiny, "tiny", "--ollama")
    assert "join them first" in packager.fails(2, "pack", write_shards(tmp_path, 2), "tiny", "--ollama")
    assert packager.stored == []


def write_peft(folder: Path, **config: object) -> Path:
    import numpy as np

    folder.mkdir()
    stated = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(stated | config))
    tensor = np.ones((8, 32), dtype=np.float32)
    save_file({"base_model.model.q.lora_A.weight": tensor}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# My adapter\n")
    return folder


def test_adapters_name_the_model_they_are_for(packager, tiny: Path, tmp_path: Path) -> None:
    base = packager.ok("pack", tiny, f"oci:{tmp_path}/base")
    digest = base.rpartition("@")[2]
    cases = {
        "256-F32-safetensors-lora": (write_peft(tmp_path / "peft"), ["adapter_model.safetensors", "adapter_config.json",
                                                                    "README.md"]),
        "512-F32-lora": (write_lora(tmp_path / "lora.gguf"), ["lora.gguf"]),
    }  # fmt: skip
    for ending, (source, paths) in cases.items():
        line = packager.ok("pack", source, f"oci:{tmp_path}/out", "--base", base)
        tag = line.rpartition("@")[0].rpartition(":")[2]
        assert tag.endswith(ending.partition("-")[2])
        model = local(tmp_path / "out", tag)
        assert model.raw["annotations"]["dev.stowage.base"] == digest
        assert model.raw["annotations"]["dev.stowage.architecture"] == "llama"
        assert files_by_title(model) == paths
        card = json.loads(packager("inspect", f"oci:{tmp_path}/out:{tag}", "--json").stdout)
        assert (card["base"], card["tag"]) == (digest, tag)


def test_adapters_without_a_base_or_for_another(packager, tiny: Path, tmp_path: Path) -> None:
    base = packager.ok("pack", tiny, f"oci:{tmp_path}/base")
    peft = write_peft(tmp_path / "peft")
    assert "--base REF" in packager.fails(2, "pack", peft, "tiny")
    assert "whole model" in packager.fails(2, "pack", tiny, "tiny", "--base", base)
    other = write_lora(tmp_path / "other.gguf", "gemma2")
    assert "for gemma2" in packager.fails(2, "pack", other, "tiny", "--base", base)
    assert "cannot be converted" in packager.fails(2, "pack", peft, "tiny", "--base", base, *CONVERT)
    assert "ModelPack" in packager.fails(2, "pack", peft, "tiny", "--base", base, "--layout", "docker")
    assert "no tag" in packager.fails(1, "pack", peft, "tiny", "--base", f"oci:{tmp_path}/base:none")
    ia3 = write_peft(tmp_path / "ia3", peft_type="IA3")
    assert "only LORA" in packager.fails(1, "pack", ia3, "tiny", "--base", base)
    (peft / "adapter_model.bin").write_bytes(b"\x80\x02.")
    assert "[pickle]" in packager.fails(1, "pack", peft, "tiny", "--base", base)
    assert packager.stored == []


def test_an_adapter_can_be_rebuilt(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("keygen", tmp_path / "release")
    base = packager.ok("pack", tiny, f"oci:{tmp_path}/base")
    peft = write_peft(tmp_path / "peft")
    line = packager.ok("pack", peft, f"oci:{tmp_path}/out", "--base", base, "--sign", tmp_path / "release.key")
    assert packager.ok("verify", line, "--rebuild", "--source", peft) == line


def test_a_manifest_parses_to_the_bytes_it_was(packager, tiny: Path, tmp_path: Path) -> None:
    line = packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    raw = LayoutRepository(tmp_path / "out").manifest(line.rpartition("@")[0].rpartition(":")[2])[1]
    assert Manifest.parse(raw).to_bytes() == raw
