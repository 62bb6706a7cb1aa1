"""Between Ollama's API and OpenAI's: pure functions from one document to the other."""

from __future__ import annotations

import base64
import json
import math
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
LONGEST = 100 * 365 * 86400.0
"""Seconds that ``keep_alive`` may say at most; as good as for ever."""

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
        if not isinstance(given, str) and not (kind == "embed" and _are(str, given)):
            raise InvalidInput("what is embedded must be a string, or for input a list of strings")
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
    if not _are(dict, messages):
        raise InvalidInput("messages must be a list of objects")
    made["messages"] = [_message(item) for item in messages]
    if tools := body.get("tools"):
        if not _are(dict, tools):
            raise InvalidInput("tools must be a list of objects")
        made["tools"] = tools
    return Request(kind, "/v1/chat/completions", made, stream)


def _generate(body: Mapping[str, Any], made: dict[str, Any], stream: bool) -> Request | None:
    prompt = _string(body, "prompt")
    for unknown in ("suffix", "template", "context"):
        if body.get(unknown):
            raise InvalidInput(f"{unknown} is not supported: the model's own chat template is used")
    if not prompt:
        return None
    if body.get("raw"):
        return Request("generate", "/v1/completions", {**made, "prompt": prompt}, stream)
    system = [{"role": "system", "content": said}] if (said := _string(body, "system")) else []
    user = _message({"role": "user", "content": prompt, "images": body.get("images")})
    return Request("generate", "/v1/chat/completions", {**made, "messages": [*system, user]}, stream)


def options(given: Any, context: int) -> dict[str, Any]:
    """Ollama's options as parameters of a request. Raises `InvalidInput` for one that a request cannot change, and for
    values that are none."""
    made: dict[str, Any] = {}
    if not isinstance(given, dict):
        raise InvalidInput("options must be an object")
    for key, value in given.items():
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON does not tell the two apart
        if key == "num_ctx":
            if not _is_whole(value):
                raise InvalidInput("num_ctx must be a whole number")
            if value > context:
                raise InvalidInput(f"num_ctx {value} is more than the {context} tokens this model is served with")
        elif key in _OPTIONS:
            _check_option(key, value)
            if key != "num_predict" or value >= 0:
                made[_OPTIONS[key]] = value
        else:
            raise InvalidInput(
                f"option {key[:80]!r} cannot be set by a request: it belongs on the runner's command line"
            )
    return made


def _check_option(key: str, value: Any) -> None:
    if key == "stop":
        if not isinstance(value, str) and not _are(str, value):
            raise InvalidInput("stop must be a string or a list of strings")
    elif key in ("num_predict", "top_k", "seed", "repeat_last_n"):
        if not _is_whole(value):
            raise InvalidInput(f"{key} must be a whole number")
    elif not isinstance(value, float) and not _is_whole(value):
        raise InvalidInput(f"{key} must be a number")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(item, kind) for item in values)


def _string(given: Mapping[str, Any], key: str) -> str:
    """A string that may be left out. Raises `InvalidInput`."""
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidInput(f"{key} must be a string")
    return value or ""


def _format(given: Any) -> dict[str, Any]:
    if not given:
        return {}
    if given == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(given, dict):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}}
    raise InvalidInput("format must be json or a JSON schema")


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": _string(given, "role") or "user", "content": _string(given, "content")}
    if images := given.get("images"):
        if not _are(str, images):
            raise InvalidInput("images must be a list of strings, written as base64")
        parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
        made["content"] = [{"type": "text", "text": made["content"]}, *parts]
    if calls := given.get("tool_calls"):
        if not _are(dict, calls):
            raise InvalidInput("tool_calls must be a list of objects")
        made["tool_calls"] = [_called(at, call) for at, call in enumerate(calls)]
    if given.get("role") == "tool":
        made["tool_call_id"] = given.get("tool_call_id") or "call_0"
    return made


def _called(at: int, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidInput("each of tool_calls must have a function with a name")
    arguments = json.dumps(function.get("arguments") or {})
    return {"id": f"call_{at}", "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _data_url(image: str) -> str:
    try:
        head = base64.b64decode(image[:16])
    except ValueError:
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
    text = str(keep_alive)
    if (isinstance(keep_alive, float) or _is_whole(keep_alive)) and -LONGEST <= keep_alive <= LONGEST:
        return float(keep_alive)
    if re.fullmatch(r"-?[0-9]{1,9}", text):
        return float(text)
    match = _DURATION.fullmatch(text)
    length = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(match[2])) if match else math.inf
    if match is None or length > LONGEST:
        raise InvalidInput(
            f"keep_alive must be seconds or a duration such as 5m, not above 100 years, and not {text[:40]!r}"
        )
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
