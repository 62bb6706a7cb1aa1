"""``docker-model``: the Docker CLI plugin that Docker Compose calls for ``models``, and its provider of that type.

Compose starts it as ``docker-model ls --json``, ``pull MODEL``, ``configure [--context-size N] MODEL [-- FLAGS]``,
``status --json``, and for ``provider: {type: model}`` as ``compose --project-name NAME up|stop|down SERVICE`` and
``compose metadata``. It reads stdout and stderr of ``ls`` and ``status`` together: these write their JSON alone.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from artifact.errors import InvalidInput, StowageError
from artifact.progress import Quiet
from artifact.reference import Reference
from artifact.terminal import JsonOption
from artifact.terminal import run as run_app
from artifact.version import __version__
from artifact.weights.precision import size_label
from runner.compose.shared import SharedGateway, endpoint, endpoint_on_host
from runner.engines.dispatch import DRIVERS
from runner.options import EngineCommand, engine_flags
from runner.report import human_bytes, print_table
from runner.state import running
from runner.store import Store, StoredModel
from runner.wishes import Wishes, stated_sandbox

CALLS_VERSION = "v1.1.0"
"""The version of the plugin's calls that is answered. Compose passes runtime flags from v1.0.6 on."""

app = typer.Typer(
    help="Models for Docker Compose, served by the runner.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
provider = typer.Typer(no_args_is_help=True)
app.add_typer(provider, name="compose", hidden=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]
_UP = (
    ("model", "Reference of the model", True, "string"),
    ("context-size", "Tokens of context for one request", False, "integer"),
    ("runtime-flags", "Flags for the engine, as a shell would split them", False, "string"),
    ("driver", "The engine: llama.cpp or vllm", False, "string"),
    ("gpus", "GPUs the engine may use: all, none, or numbers", False, "string"),
)


@app.command("docker-cli-plugin-metadata", hidden=True)
def metadata() -> None:
    """Describe the plugin to Docker's command line."""
    description = f"Models served by the runner ({__version__})"
    _print({"SchemaVersion": "0.1.0", "Vendor": "Stowage", "Version": CALLS_VERSION, "ShortDescription": description})


@app.command("version")
def version() -> None:
    """Print the version."""
    print(f"docker-model {CALLS_VERSION} (runner {__version__})")


@app.command("ls")
@app.command("list", hidden=True)
def list_models(as_json: JsonOption = False) -> None:
    """List the models in the store."""
    models = Store().models()
    if as_json:
        _print([_listed(model) for model in models])
        return
    rows = [(item.name or "-", item.model.digest.short, human_bytes(item.model.size)) for item in models]
    print_table(("MODEL", "DIGEST", "SIZE"), rows)


@app.command("pull")
def pull(model: ModelArgument) -> None:
    """Fetch a model, verified."""
    print(f"pulling {model}", flush=True)
    print(f"pulled {SharedGateway(Store()).pull(model, Quiet())}")


@app.command("configure", cls=EngineCommand)
def configure(
    ctx: typer.Context,
    model: ModelArgument,
    context_size: Annotated[int | None, typer.Option("--context-size")] = None,
) -> None:
    """Serve a model, with its context size and engine flags."""
    wishes = Wishes(context_size=context_size, flags=engine_flags(ctx), sandbox=stated_sandbox())
    SharedGateway(Store()).serve([model], wishes, Quiet())


@app.command("status")
def status(as_json: JsonOption = False) -> None:
    """Tell where the endpoint is."""
    store = Store()
    engines = {model.engine for run in running(store.root) for model in run.models}
    backends = {name: "running" if name in engines else "stopped" for name in DRIVERS}
    # The gateway starts with the first model. It is said to run before that, because the endpoint will not change.
    value = {
        "running": True,
        "backends": backends,
        "kind": "Stowage",
        "endpoint": endpoint(),
        "endpointHost": endpoint_on_host(),
    }
    if as_json:
        _print(value)
    else:
        print(f"{'serving' if SharedGateway(store).running else 'ready to serve'} at {value['endpointHost']}")


@provider.callback()
def provider_options(ctx: typer.Context, project_name: Annotated[str, typer.Option("--project-name")] = "") -> None:
    """The provider of services of type ``model``."""
    ctx.obj = project_name


@provider.command("metadata")
def provider_metadata() -> None:
    """Describe the options of a service."""
    keys = ("name", "description", "required", "type")
    parameters = [dict(zip(keys, row, strict=True)) for row in _UP]
    value = {"up": {"parameters": parameters}, "stop": {"parameters": []}, "down": {"parameters": []}}
    _print({"description": "A model served by the runner", **value})


@provider.command("up")
def provider_up(
    ctx: typer.Context,
    service: Annotated[str, typer.Argument(metavar="SERVICE")],
    model: Annotated[list[str] | None, typer.Option("--model")] = None,
    context_size: Annotated[int | None, typer.Option("--context-size")] = None,
    runtime_flags: Annotated[list[str] | None, typer.Option("--runtime-flags")] = None,
    driver: Annotated[str | None, typer.Option("--driver", "--backend")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus")] = None,
) -> None:
    """Serve a service's models; tell Compose the variables."""
    with _told():
        if not model:
            raise InvalidInput(f"service {service!r} has no option model")
        try:
            flags = tuple(flag for text in runtime_flags or () for flag in shlex.split(text))
        except ValueError as error:
            raise InvalidInput(f"runtime-flags cannot be split into flags: {error}") from None
        _tell("info", f"starting {', '.join(model)}")
        wishes = Wishes(driver, context_size, gpus, None, flags, stated_sandbox())
        SharedGateway(Store()).serve(model, wishes, Quiet(), _owner(ctx, service))
        _tell("setenv", f"MODEL={','.join(model)}")
        for name in ("URL", "ENDPOINT"):
            _tell("setenv", f"{name}={endpoint()}")


@provider.command("stop")
@provider.command("down")
def provider_down(
    ctx: typer.Context,
    service: Annotated[str, typer.Argument(metavar="SERVICE")],
) -> None:
    """Stop a service's models, unless another service uses them."""
    with _told():
        SharedGateway(Store()).release(_owner(ctx, service))
        _tell("info", "stopped")


def _owner(ctx: typer.Context, service: str) -> str:
    return f"{ctx.obj or ''}/{service}"


@contextmanager
def _told() -> Iterator[None]:
    """Tell Compose about an error the way it reads it."""
    try:
        yield
    except StowageError as error:
        _tell("error", str(error))
        raise


def _tell(kind: str, message: str) -> None:
    print(json.dumps({"type": kind, "message": message}), flush=True)


def _listed(item: StoredModel) -> dict[str, Any]:
    config = item.model.config
    names = [item.name, item.name.removesuffix(":latest")] if item.name else []
    with suppress(InvalidInput):  # names that other tools gave
        reference = Reference.parse(item.name).with_digest(item.model.digest)  # what Compose does not find it pulls
        names += [str(reference), f"{reference.repository}@{item.model.digest}"]
    return {
        "id": str(item.model.digest),
        "tags": list(dict.fromkeys(names)),
        "created": 0,
        "config": {
            "format": config.format,
            "quantization": config.precision,
            "parameters": size_label(config.parameters) if config.parameters else "",
            "architecture": config.architecture,
            "size": human_bytes(item.model.size),
        },
    }


def _print(value: Any) -> None:
    print(json.dumps(value))


def main() -> NoReturn:
    """Run the plugin. Docker's command line repeats the plugin's name as the first argument, Compose does not."""
    if sys.argv[1:2] == ["model"] and Path(sys.argv[0]).name.startswith("docker-model"):
        del sys.argv[1]
    run_app(app)
