"""The catalog: answers with what it was asked, and with who its sidecar says is asking."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Catalog(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer()

    def answer(self) -> None:
        seen = {"method": self.command, "path": self.path, "caller": self.headers.get("x-forwarded-client-cert")}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Its sidecar keeps the log."""


host, _, port = os.environ["LISTEN"].rpartition(":")
ThreadingHTTPServer((host, int(port)), Catalog).serve_forever()
