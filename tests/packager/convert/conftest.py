from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Llama:
    """llama.cpp, asked over HTTP."""

    address: str

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def tokens(self, text: str) -> list[int]:
        """The ids of `text`, special tokens in it read as such, none put around it."""
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def answer(self, question: str) -> str:
        """What the model says to a question, at temperature 0."""
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 16}
        return self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]

    def next_token(self, prompt: list[int], count: int) -> dict[int, float]:
        """The `count` likeliest next tokens with their log probabilities."""
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": count, "grammar": "root ::= [a-z]"}
        found = self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in found}

    def embedding(self, prompt: list[int]) -> list[float]:
        """The normalised embedding of a text's tokens."""
        return self.post("/v1/embeddings", {"input": prompt})["data"][0]["embedding"]


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Llama]:
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(model), *options]
    log = model.with_suffix(".log")
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin and process.stdout
        try:
            lines = iter(process.stdout.readline, b"")
            address = next((line.split()[1].decode() for line in lines if line.startswith(b"listening ")), None)
            assert address, log.read_text(errors="replace")[-2000:]
            yield Llama(address)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


@pytest.fixture(scope="session")
def llama():
    """`with llama(model) as server:` a real llama.cpp server over that file."""
    return serving
