"""An engine that answers with what it was asked, for what no small model can show: started as ``llama-server`` is."""

import base64
import json
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Handler(BaseHTTPRequestHandler):
    """One request. The id ``break-head`` gets no answer, ``break-event`` one event and a half of a stream, ``hold`` as
    much, and then nothing for as long as somebody waits."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        wanted = self.headers["x-request-id"]
        if wanted == "break-head":
            self.close_connection = True
        elif wanted in ("break-event", "hold"):
            self._begin()
            if wanted == "hold":
                self.connection.recv(1)
            self._break_off()
        else:
            told = {"target": self.path, "headers": dict(self.headers), "body": base64.b64encode(body).decode()}
            self._answer(json.dumps(told).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (b'data: {"choices": []}\n\n', b'data: {"choices": [{"delta": {"content": "ha'):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.flush()

    def _break_off(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def address_string(self) -> str:
        return "gateway"


if "--version" in sys.argv:
    print("version: echo")
else:
    socketserver.ThreadingUnixStreamServer(sys.argv[sys.argv.index("--host") + 1], Handler).serve_forever()
