"""Between Ollama's API and OpenAI's: pure functions from one document to the other."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from artifact.errors import InvalidInput

ROUTES = ("chat", "generate", "embed", "embeddings")
"""The routes of Ollama's API that an engine answers."""

_OPTIONS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "typical_p": "typical_p",
    "seed": "seed", "stop": "stop", "num_predict": "max_tokens", "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}  # fmt: skip
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?)((?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+)")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_IMAGES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass(frozen=True)
class Request:
    """One translated request: where it goes, what it says, whether the answer is streamed. `kind` is the route."""

    kind: str
    target: str
    body: Mapping[str, Any]
    stream: bool

    def piece(self, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """A piece of an answer where this route has it."""
        if self.kind == "generate":
            return {"response": text, **({"thinking": thinking} if thinking else {})}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def whole(self, answer: Mapping[str, Any], name: str, now: str, nanoseconds: int) -> dict[str, Any]:
        """An engine's whole answer as this route gives it."""
        usage = answer.get("usage") or {}
        if self.kind in ("embed", "embeddings"):
            vectors = [row["embedding"] for row in sorted(answer["data"], key=lambda row: row.get("index", 0))]
            if self.kind == "embeddings":
                return {"embedding": vectors[0]}
            return {"model": name, "embeddings": vectors, "total_duration": nanoseconds, "load_duration": 0,
                    "prompt_eval_count": usage.get("prompt_tokens", 0)}  # fmt: skip
        choice = answer["choices"][0]
        message = choice.get("message") or {"content": choice.get("text")}
        piece = self.piece(
            message.get("content") or "", message.get("reasoning_content") or "",
            [tool_call(call) for call in message.get("tool_calls") or []],
        )  # fmt: skip
        return {"model": name, "created_at": now, **piece, **ending(choice.get("finish_reason"), usage, nanoseconds)}


def ending(reason: str | None, usage: Mapping[str, Any], nanoseconds: int, first: int | None = None) -> dict[str, Any]:
    """What the last object of an answer says. `first` is the time to the first token, in nanoseconds."""
    begun = first if first is not None else 0
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": nanoseconds,
        "load_duration": 0,
        "prompt_eval_count": usage.get("prompt_tokens", 0),
        "prompt_eval_duration": begun,
        "eval_count": usage.get("completion_tokens", 0),
        "eval_duration": nanoseconds - begun,
    }


class Transcript:
    """Turns the events of one stream into Ollama's objects. Tool calls come in fragments and leave whole."""

    def __init__(self, asked: Request, name: str, began: int) -> None:
        self._asked = asked
        self._name = name
        self._began = began
        self._first: int | None = None
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._error = ""

    def take(self, line: bytes, now: Callable[[], str]) -> Iterator[dict[str, Any]]:
        """The objects that one line of the stream becomes."""
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            return
        event = json.loads(line[5:])
        if "error" in event:
            self._error = message_of(line[5:])
            return
        self._usage = event.get("usage") or self._usage
        for choice in event.get("choices", ()):
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta") or {"content": choice.get("text")}
            for call in delta.get("tool_calls") or ():
                self._collect(call)
            text, thinking = delta.get("content") or "", delta.get("reasoning_content") or ""
            if text or thinking:
                if self._first is None:
                    self._first = time.monotonic_ns() - self._began
                piece = self._asked.piece(text, thinking)
                yield {"model": self._name, "created_at": now(), **piece, "done": False}

    def _collect(self, fragment: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(int(fragment.get("index", 0)), {"function": {"name": "", "arguments": ""}})
        function = fragment.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def end(self, now: str) -> dict[str, Any]:
        """The last object."""
        if self._error:
            return {"error": self._error}
        calls = [tool_call(call) for _, call in sorted(self._calls.items())]
        spent = time.monotonic_ns() - self._began
        last = ending(self._reason, self._usage, spent, self._first)
        return {"model": self._name, "created_at": now, **self._asked.piece("", "", calls), **last}


def translated(path: str, body: Mapping[str, Any], name: str, context: int) -> Request | None:
    """A request of Ollama's as an engine takes it; None for one without a prompt, which only touches the model. Raises
    `InvalidInput`."""
    kind = path.rpartition("/")[2]
    if kind in ("embed", "embeddings"):
        given = body.get("input") if kind == "embed" else body.get("prompt")
        if not given:
            raise InvalidInput("there is nothing to embed: state input" if kind == "embed" else "state a prompt")
        extra = {"dimensions": body["dimensions"]} if body.get("dimensions") else {}
        return Request(kind, "/v1/embeddings", {"model": name, "input": given, **extra}, False)
    stream = body.get("stream", True) is not False
    made: dict[str, Any] = {"model": name, "stream": stream, **options(body.get("options") or {}, context)}
    if stream:
        made["stream_options"] = {"include_usage": True}
    made |= _format(body.get("format"))
    if "think" in body and body["think"] is not None:
        made["chat_template_kwargs"] = {"enable_thinking": bool(body["think"])}
    if kind == "generate":
        return _generate(body, made, stream)
    messages = body.get("messages") or []
    if not messages:
        return None
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise InvalidInput("messages must be a list of objects")
    made["messages"] = [_message(item) for item in messages]
    if body.get("tools"):
        made["tools"] = body["tools"]
    return Request(kind, "/v1/chat/completions", made, stream)


def _generate(body: Mapping[str, Any], made: dict[str, Any], stream: bool) -> Request | None:
    prompt = body.get("prompt") or ""
    for unknown in ("suffix", "template", "context"):
        if body.get(unknown):
            raise InvalidInput(f"{unknown} is not supported: the model's own chat template is used")
    if not prompt:
        return None
    if body.get("raw"):
        return Request("generate", "/v1/completions", {**made, "prompt": prompt}, stream)
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    user = _message({"role": "user", "content": prompt, "images": body.get("images")})
    return Request("generate", "/v1/chat/completions", {**made, "messages": [*system, user]}, stream)


def options(given: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Ollama's options as parameters of a request. Raises `InvalidInput` for one that a request cannot change."""
    made: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key == "num_ctx":
            if not isinstance(value, int) or value > context:
                raise InvalidInput(f"num_ctx {value} is more than the {context} tokens this model is served with")
        elif key in _OPTIONS:
            if key != "num_predict" or value >= 0:
                made[_OPTIONS[key]] = value
        else:
            raise InvalidInput(
                f"option {key[:80]!r} cannot be set by a request: it belongs on the runner's command line"
            )
    return made


def _format(given: Any) -> dict[str, Any]:
    if not given:
        return {}
    if given == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(given, dict):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}}
    raise InvalidInput("format must be json or a JSON schema")


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": given.get("role", "user"), "content": given.get("content") or ""}
    if given.get("images"):
        parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in given["images"]]
        made["content"] = [{"type": "text", "text": made["content"]}, *parts]
    if given.get("tool_calls"):
        made["tool_calls"] = [
            {
                "id": f"call_{at}",
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"].get("arguments") or {}),
                },
            }
            for at, call in enumerate(given["tool_calls"])
        ]
    if given.get("role") == "tool":
        made["tool_call_id"] = given.get("tool_call_id") or "call_0"
    return made


def _data_url(image: Any) -> str:
    try:
        head = base64.b64decode(str(image)[:16])
    except binascii.Error:
        raise InvalidInput("images must be written as base64") from None
    kind = next((name for magic, name in _IMAGES.items() if head.startswith(magic)), "jpeg")
    return f"data:image/{kind};base64,{image}"


def tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object, as Ollama has them."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        parsed = {"_": arguments}
    return {"function": {"name": function.get("name", ""), "arguments": parsed}}


def seconds(keep_alive: Any) -> float | None:
    """Ollama's ``keep_alive``: seconds, or a duration such as ``5m``; None where nothing is said. Raises
    `InvalidInput`."""
    if keep_alive is None or keep_alive == "":
        return None
    if isinstance(keep_alive, (int, float)) and not isinstance(keep_alive, bool):
        return float(keep_alive)
    text = str(keep_alive)
    if re.fullmatch(r"-?[0-9]{1,9}", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"keep_alive must be seconds or a duration such as 5m, not {text[:40]!r}")
    length = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(match[2]))
    return -length if match[1] else length


def empty(path: str) -> dict[str, Any]:
    """An answer without words."""
    return {"response": ""} if path.endswith("generate") else {"message": {"role": "assistant", "content": ""}}


def message_of(raw: bytes) -> str:
    """The message in an engine's error."""
    try:
        error = json.loads(raw)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode("utf-8", "replace")
