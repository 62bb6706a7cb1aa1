"""deploy/kubernetes, deploy/argocd and the examples: rendered, and held against the schemas of Kubernetes and ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from artifact.digest import Digest
from artifact.errors import StowageError
from artifact.reference import Reference
from registry.config.read import load
from runner.compose.lock import Lock
from runner.compose.project import load_project
from supplychain.keys import generate
from supplychain.policy import Policy
from tests.registry.servers import ROOT

DEPLOY = ROOT / "deploy"
FOLDERS = sorted(
    file.parent
    for file in DEPLOY.rglob("kustomization.yaml")
    if yaml.safe_load(file.read_text())["kind"] == "Kustomization"
)
VERSION = "1.34"
FOREIGN = ("ServiceMonitor", "Application", "InferenceService")
"""Kinds of operators, whose schemas no package brings."""


def render(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder, and nothing on stderr."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: THE MANIFESTS WERE NOT RENDERED")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods that workloads make, by the workloads' names."""
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if item["kind"] in ("Deployment", "CronJob", "Job", "StatefulSet"):
            yield item["metadata"]["name"], spec["template"]["spec"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(DEPLOY)))
def test_every_folder_renders_and_is_of_the_schema(folder: Path) -> None:
    objects = render(folder)
    assert objects
    for item in objects:
        if item["kind"] not in FOREIGN:
            kubernetes_validate.validate(item, VERSION, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(DEPLOY)))
def test_every_pod_is_confined(folder: Path) -> None:
    """What the Pod Security Standard `restricted` asks for, and more: no writable root, no token, no moving tag."""
    for name, pod in pods(render(folder)):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            image = container["image"]
            own = image.startswith("stowage-")  # given a digest in an overlay
            assert own or "@sha256:" in image or re.search(r":v\d+\.\d+\.\d+$", image), image


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(DEPLOY)))
def test_no_secret_is_shipped_and_selectors_select(folder: Path) -> None:
    objects = render(folder)
    assert not [item for item in objects if item["kind"] == "Secret"]
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in objects if item["kind"] == "Deployment"]
    for item in objects:
        spec, selector = item.get("spec", {}), None
        if item["kind"] == "Service":
            selector = spec["selector"]
        elif item["kind"] == "PodDisruptionBudget":
            selector = spec["selector"]["matchLabels"]
        elif item["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        if selector is not None and labels:
            matched = [item for item in labels if selector.items() <= item.items()]
            assert len(matched) == 1, item["metadata"]["name"]


def of(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(item for item in objects if item["kind"] == kind and item["metadata"]["name"].startswith(name))


def test_the_production_overlay_is_pinned_and_complete() -> None:
    objects = render(DEPLOY / "kubernetes" / "overlays" / "production")
    kinds = {(item["kind"], item["metadata"]["name"]) for item in objects}
    assert {
        ("Deployment", "registry"), ("Deployment", "runner"), ("HorizontalPodAutoscaler", "registry"),
        ("PodDisruptionBudget", "registry"), ("NetworkPolicy", "registry"), ("NetworkPolicy", "runner"),
        ("Ingress", "registry"), ("ServiceMonitor", "registry"), ("PersistentVolumeClaim", "runner-cache"),
    } <= kinds  # fmt: skip
    assert ("CronJob", "audit") in kinds
    for _, pod in pods(objects):
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert "@sha256:" in container["image"]
    assert all(item["metadata"].get("namespace") == "stowage" for item in objects if item["kind"] != "Namespace")
    names = {port["name"] for port in of(objects, "Service", "registry")["spec"]["ports"]}
    monitor = of(objects, "ServiceMonitor", "registry")["spec"]
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= names
    assert (
        monitor["selector"]["matchLabels"].items() <= of(objects, "Service", "registry")["metadata"]["labels"].items()
    )


def test_the_registry_takes_its_configuration(tmp_path: Path) -> None:
    made = of(render(DEPLOY / "kubernetes" / "base" / "registry"), "ConfigMap", "registry")
    (tmp_path / "registry.toml").write_text(made["data"]["registry.toml"])
    (tmp_path / "htpasswd").write_text("")
    config = load(tmp_path / "registry.toml")
    assert config.restricted
    assert config.server.listen.endswith(":5000")


@pytest.mark.parametrize("place", ["kubernetes/base/runner", "kubernetes/overlays/gpu", "argocd/models"])
def test_the_runner_takes_its_models_at_the_locked_digests(place: str, tmp_path: Path) -> None:
    made = of(render(DEPLOY / place), "ConfigMap", "models")["data"]
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    project = load_project([tmp_path / "compose.yaml"], {}, None)
    lock = Lock.load(tmp_path / "models.lock")
    assert lock is not None
    assert {model.key: model.written for model in project.models} == {
        key: entry.reference for key, entry in lock.entries.items()
    }
    with pytest.raises(StowageError):
        Policy.load(tmp_path / "policy.yaml")  # until the key is replaced, nothing is allowed: not even a start
    (tmp_path / "release.pub").unlink()
    generate(tmp_path / "release", b"")
    assert Policy.load(tmp_path / "policy.yaml")


def test_a_change_of_the_lock_file_rolls_out(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes" / "base" / "runner", tmp_path / "runner")
    before = of(render(tmp_path / "runner"), "ConfigMap", "models")["metadata"]["name"]
    lock = tmp_path / "runner" / "models.lock"
    lock.write_text(lock.read_text().replace("sha256:00", "sha256:11"))
    objects = render(tmp_path / "runner")
    after = of(objects, "ConfigMap", "models")["metadata"]["name"]
    assert before != after
    (pod,) = [pod for _, pod in pods(objects)]
    assert after in {volume.get("configMap", {}).get("name") for volume in pod["volumes"]}


def test_containers_call_the_runner_as_it_is(tmp_path: Path) -> None:
    """Every command line in the manifests is one the programs take: what they complain of is not their options."""
    for folder in FOLDERS:
        for _, pod in pods(render(folder)):
            for container in (*pod.get("initContainers", []), *pod["containers"]):
                image = container["image"].rpartition("/")[2]
                if program := re.search(r"(registry|runner)", image):
                    check_options(program[1], container["args"])


def check_options(program: str, words: list[str]) -> None:
    from typer.main import get_command

    app = __import__(f"{program}.cli", fromlist=["app"]).app
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    context = command.make_context(command.name, [word for word in rest if word != "--help"], resilient_parsing=False)
    assert context.params is not None


def test_the_image_volume_is_mounted_where_the_engine_looks() -> None:
    (pod,) = [pod for _, pod in pods(render(DEPLOY / "kubernetes" / "overlays" / "image-volume"))]
    (volume,) = [volume for volume in pod["volumes"] if "image" in volume]
    reference = Reference.parse(volume["image"]["reference"])
    assert reference.digest is not None
    (container,) = pod["containers"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert f"--model={mount['mountPath']}" in container["args"]
    assert mount["readOnly"] is True


def test_argocd_names_the_folder() -> None:
    made = yaml.safe_load((DEPLOY / "argocd" / "application.yaml").read_text())
    assert (made["apiVersion"], made["kind"]) == ("argoproj.io/v1alpha1", "Application")
    assert made["spec"]["source"]["path"] == "models"
    assert (DEPLOY / "argocd" / "models" / "models.lock").is_file()


def test_the_examples_for_other_stacks_pull_by_digest() -> None:
    kserve = yaml.safe_load((DEPLOY / "kserve" / "inferenceservice.yaml").read_text())
    predictor = kserve["spec"]["predictor"]
    pod = {key: predictor[key] for key in ("containers", "volumes", "securityContext")}
    template = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "qwen3"}, "spec": pod}
    kubernetes_validate.validate(template, VERSION, strict=True)
    (container,) = predictor["containers"]
    check_options("runner", container["args"])
    assert Reference.parse(container["args"][1]).digest is not None


def test_the_production_stack_gets_the_path_of_a_digest() -> None:
    stack = yaml.safe_load((DEPLOY / "vllm-production-stack" / "values.yaml").read_text())
    (model,) = stack["servingEngineSpec"]["modelSpec"]
    pull = model["initContainer"]
    assert (pull["command"], pull["args"][0], pull["mountPvcStorage"]) == (["runner"], "pull", True)
    check_options("runner", pull["args"])
    assert model["modelURL"] == f"/data/bundles/sha256/{pinned(pull['args']).hex}"
    assert "--store=/data" in pull["args"]


def test_the_nodes_of_a_ray_cluster_read_what_one_job_pulled() -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "vllm-production-stack" / "pull.yaml").read_text()))
    for item in objects:
        kubernetes_validate.validate(item, VERSION, strict=True)
    ((_, pod),) = pods(objects)
    (container,) = pod["containers"]
    check_options("runner", container["args"])
    stack = yaml.safe_load((DEPLOY / "vllm-production-stack" / "values-ray.yaml").read_text())
    (model,) = stack["servingEngineSpec"]["modelSpec"]
    assert model["modelURL"] == f"/models/bundles/sha256/{pinned(container['args']).hex}"
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in model["extraVolumes"]}
    assert claims == {item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"}
    assert model["vllmConfig"]["extraArgs"][:2] == ["--distributed-executor-backend", "ray"]


def pinned(arguments: list[str]) -> Digest:
    digest = Reference.parse(arguments[1]).digest
    assert digest is not None
    return digest
