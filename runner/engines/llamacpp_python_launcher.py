"""Runs llama-cpp-python's server on a unix socket, started by path in an interpreter that has it.

Takes the flags the runner sets or lets pass, named as the server's own settings are. It knows nothing of the runner:
the command line is all that passes between them.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from llama_cpp import llama_chat_format
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

_STRUCTURED: dict[str, Callable[[str], Any]] = {
    "tensor_split": lambda value: value.split(","),
    "chat_template_kwargs": json.loads,
}


def use_template(path: str) -> str:
    """Make the template in a file a chat format; return its name. It is rendered in the library's immutable sandbox."""
    text = Path(path).read_text(encoding="utf-8")
    formats: dict[str, Any] = {}

    def handler(**arguments: Any) -> Any:
        llama = arguments["llama"]
        if "handler" not in formats:  # the names of its special tokens are known once the model is loaded
            ends = [token for token in (llama.token_eos(),) if token != -1]
            names = [_text(llama, token) for token in (llama.token_eos(), llama.token_bos())]
            made = llama_chat_format.Jinja2ChatFormatter(text, *names, stop_token_ids=ends)
            formats["handler"] = made.to_chat_handler()
        return formats["handler"](**arguments)

    llama_chat_format.register_chat_completion_handler("file")(handler)
    return "file"


def _text(llama: Any, token: int) -> str:
    return "" if token == -1 else str(llama.detokenize([token], special=True), "utf-8", "replace")


def settings(arguments: Sequence[str]) -> tuple[str, ServerSettings, ModelSettings]:
    """The socket, and the settings a command line states. Exits with status 2 for a flag that is not known here."""
    if len(arguments) % 2:
        sys.exit(f"flag {arguments[-1]} needs a value")
    stated: dict[str, Any] = dict(zip(arguments[::2], arguments[1::2], strict=True))
    socket = stated.pop("--uds")
    if "--chat_template_file" in stated:
        stated["--chat_format"] = use_template(stated.pop("--chat_template_file"))
    server: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for flag, value in stated.items():
        name = flag.removeprefix("--")
        if name in ServerSettings.model_fields:
            server[name] = value
        elif name in ModelSettings.model_fields:
            model[name] = _STRUCTURED[name](value) if name in _STRUCTURED else value
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
