"""``runner run``: one answer, or a conversation in the terminal, streamed as the engine writes it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from artifact.errors import ServerError
from artifact.terminal import note
from runner.plan import Plan
from runner.serve import log_path, served
from runner.state import registered, running
from runner.store import Store
from runner.supervise import EngineProcess

_HELP = "/help shows this, /clear forgets the conversation, /exit or Ctrl-D ends it; end a line with \\ to go on"


async def one_shot(plan: Plan, store: Store, prompt: str, *, as_json: bool = False) -> None:
    """Answer one prompt on stdout."""
    async with _connection(plan, store) as client:
        pieces = _answer(client, plan.name, [{"role": "user", "content": prompt}])
        if as_json:
            text = "".join([piece async for piece in pieces])
            print(json.dumps({"digest": str(plan.found.model.digest), "content": text}, ensure_ascii=False))
            return
        await _print(pieces)


async def converse(plan: Plan, store: Store) -> None:
    """Talk until the user ends it."""
    async with _connection(plan, store) as client:
        note(f"{plan.name} ({plan.found.model.digest.short}): {_HELP}")
        messages: list[dict[str, str]] = []
        while (line := _read()) is not None:  # nothing else waits on the loop meanwhile
            if line in ("/exit", "/bye", "/quit"):
                return
            if line == "/help":
                note(_HELP)
            elif line == "/clear":
                messages.clear()
            elif line:
                messages.append({"role": "user", "content": line})
                text = await _print(_answer(client, plan.name, messages))
                messages.append({"role": "assistant", "content": text})


@asynccontextmanager
async def _connection(plan: Plan, store: Store) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a runner that serves this very model the same way already, else of a private engine."""
    digest, command = str(plan.found.model.digest), str(plan.command)
    for run in running(store.root):
        if run.address and any((model.digest, model.command) == (digest, command) for model in run.models):
            patience = httpx.Timeout(None, connect=10)
            async with httpx.AsyncClient(base_url=f"http://{run.address}", timeout=patience, trust_env=False) as client:
                yield client
                return
    with registered(store.root) as registration:
        note(f"{plan.name}: {plan.command.version}, context {plan.context_size} tokens: {command}")
        folder = registration.folder / "engines" / plan.found.model.digest.hex[:12]
        bundle = store.bundle(plan.found.model)
        process = EngineProcess(plan.command, folder, bundle, log_path(store, plan))
        try:
            registration.write("", [served(plan, store)])
            await process.wait_ready(plan.engine.start_seconds)
            async with process.client() as client:
                yield client
        finally:
            process.stop()


async def _answer(client: httpx.AsyncClient, name: str, messages: list[dict[str, str]]) -> AsyncIterator[str]:
    request = {"model": name, "messages": messages, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.status_code != 200:
            raise ServerError(f"the engine refused the request: {_message(await response.aread())}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            for choice in _event(data).get("choices", []):
                piece = choice.get("delta", {}).get("content")
                if isinstance(piece, str):
                    yield piece


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise ServerError(f"the engine's answer is not JSON: {data[:80]!r}") from None
    if "error" in event:
        raise ServerError(f"the engine stopped in the middle of its answer: {_message(data.encode())}")
    return dict(event)


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode("utf-8", "replace")


async def _print(pieces: AsyncIterator[str]) -> str:
    """Print an answer as it comes. A model's words may not steer the terminal."""
    text = ""
    async for piece in pieces:
        text += piece
        shown = "".join(char for char in piece if char.isprintable() or char in "\n\t")
        print(shown, end="", flush=True)
    print(flush=True)
    return text


def _read() -> str | None:
    """One message of the user, None at the end of input. Ctrl-C ends the wait for it at once."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own would only take note
    try:
        return _read_lines()
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_lines() -> str | None:
    lines: list[str] = []
    while True:
        try:
            line = input("... " if lines else "> " if sys.stdin.isatty() else "")
        except EOFError:
            return "\n".join(lines) or None
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])
