"""What stands for an application in the examples: it answers with what it was asked, and what policies told it."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = [f"{name}: {value}" for name, value in self.headers.items() if name.startswith("x-break-glass")]
        body = "\n".join([f"{self.command} {self.path}", *told, ""]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Its sidecar keeps the log."""


host, _, port = os.environ["LISTEN"].rpartition(":")
ThreadingHTTPServer((host, int(port)), Echo).serve_forever()
