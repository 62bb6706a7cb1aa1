"""``runner run``: one answer, or a conversation in the terminal, streamed as the engine writes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from artifact.errors import ServerError, Unauthorized
from artifact.terminal import note
from artifact.version import USER_AGENT
from runner.plan import Plan, bundles
from runner.serve import log_path, served
from runner.state import Served, registered, running
from runner.store import Store
from runner.supervise import EngineProcess

KEY_VARIABLE = "RUNNER_API_KEY"
"""The environment variable that holds the API key where ``--api-key`` does not."""

Message = Mapping[str, str]
"""One message of a conversation: its role and content."""


async def one_shot(plan: Plan, store: Store, prompt: str, *, as_json: bool = False, api_key: str = "") -> None:
    """Answer one prompt on stdout."""
    async with connection(plan, store, api_key) as client:
        pieces = answer(client, plan.talks_as, [{"role": "user", "content": prompt}])
        if as_json:
            text = "".join([piece async for piece in pieces])
            print(json.dumps({"digest": str(plan.found.model.digest), "content": text}, ensure_ascii=False))
            return
        async for piece in pieces:
            show(piece)
        print(flush=True)


@asynccontextmanager
async def connection(plan: Plan, store: Store, api_key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a runner that serves this very model the same way already, else of a private engine. A runner that
    asks for keys is only asked with `api_key`, which no other runner gets to see."""
    digest, command = str(plan.found.model.digest), str(plan.command)
    for run in running(store.root):
        same = [model for model in run.models if (model.digest, model.command) == (digest, command)]
        if not run.address or not any(_is_held(model, plan) for model in same):
            continue
        if run.keyed and not api_key:
            note(f"note: the runner at {run.address} serves this model, but asks for an API key ({KEY_VARIABLE})")
            continue
        headers = {"User-Agent": USER_AGENT, **({"authorization": f"Bearer {api_key}"} if run.keyed else {})}
        patience = httpx.Timeout(None, connect=10)
        async with httpx.AsyncClient(
            base_url=f"http://{run.address}", headers=headers, timeout=patience, trust_env=False
        ) as client:
            yield client
            return
    with registered(store.root) as registration:
        note(f"{plan.name}: {plan.command.version}, context {plan.context_size} tokens: {command}")
        folder = registration.folder / "engines" / plan.found.model.digest.hex[:12]
        bundle, adapters = bundles(plan, store)
        process = EngineProcess(plan.command, folder, bundle, log_path(store, plan), adapters)
        try:
            registration.write("", [replace(served(plan, store), adapters=plan.adapter_digests)])
            await process.wait_ready(plan.engine.start_seconds)
            async with process.client() as client:
                yield client
        finally:
            process.stop()


def _is_held(model: Served, plan: Plan) -> bool:
    """Whether a model that is served is held to at least what `plan` requires."""
    return plan.command.rules.mode != "required" or bool(model.sandbox and "not in force" not in model.sandbox)


async def answer(
    client: httpx.AsyncClient, name: str, messages: Sequence[Message], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[str]:
    """The pieces of the model's answer as they come; `settings` go into the request. Raises `ServerError`."""
    request = {**(settings or {}), "model": name, "messages": messages, "stream": True}
    try:
        async with client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code in (401, 403):
                raise Unauthorized(f"{_message(await response.aread())} (--api-key or {KEY_VARIABLE})")
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
    except httpx.HTTPError as error:
        raise ServerError(f"the engine does not answer any more: {type(error).__name__}") from None


def show(piece: str) -> None:
    """Print a piece of an answer. A model's words may not steer the terminal."""
    print("".join(char for char in piece if char.isprintable() or char in "\n\t"), end="", flush=True)


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
