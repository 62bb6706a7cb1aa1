"""Runs llama-cpp-python's server on a unix socket, started by path in an interpreter that has it.

Takes the flags the runner sets or lets pass, named as the server's own settings are. It knows nothing of the runner:
the command line is all that passes between them.
"""

import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings


def settings(arguments: Sequence[str]) -> tuple[str, ServerSettings, ModelSettings]:
    """The socket, and the settings a command line states. Exits with status 2 for a flag that is not known here."""
    if len(arguments) % 2:
        sys.exit(f"flag {arguments[-1]} needs a value")
    stated: dict[str, Any] = dict(zip(arguments[::2], arguments[1::2], strict=True))
    socket = stated.pop("--uds")
    server: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for flag, value in stated.items():
        name = flag.removeprefix("--")
        if name in ServerSettings.model_fields:
            server[name] = value
        elif name in ModelSettings.model_fields:
            model[name] = value.split(",") if name == "tensor_split" else value
        else:
            sys.exit(f"llama-cpp-python has no setting {name}")
    return socket, ServerSettings.model_validate(server), ModelSettings.model_validate(model)


def main() -> None:
    socket, server, model = settings(sys.argv[1:])
    app = create_app(server_settings=server, model_settings=[model])

    def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_api_route("/health", health)
    uvicorn.run(app, uds=socket, log_level="info")


if __name__ == "__main__":
    main()
