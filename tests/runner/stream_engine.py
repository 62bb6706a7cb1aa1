"""Stands where vLLM stands in a stream: reads the weight files by the loader's own client, and tells what it read.

Started as ``python -m vllm.entrypoints.openai.api_server``. Any POST is answered with the SHA-256 of every tensor.
"""

import hashlib
import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from importlib.metadata import entry_points
from pathlib import Path

from stowage_stream.client import Runner, WeightFile

(plugin,) = entry_points(group="vllm.general_plugins")
assert callable(plugin.load())  # what it does needs torch
assert sys.argv[sys.argv.index("--load-format") + 1] == plugin.module

runner, tensors = Runner(os.environ["STOWAGE_STREAM"]), {}
for path in sorted(Path("bundle").glob("*.safetensors")):
    file = WeightFile(runner, path, path.name)
    for entry in file.entries():
        print("loading", entry.name, flush=True)
        tensors[entry.name] = hashlib.sha256(file.read(entry.offset, entry.length)).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        answer = json.dumps(tensors).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def address_string(self) -> str:
        return "gateway"


socketserver.ThreadingUnixStreamServer(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
