"""The storefront: shows the catalog, which it asks through its sidecar."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CATALOG = os.environ["CATALOG"]
PASSED_ON = ("x-request-id", "traceparent")


class Storefront(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
        request = urllib.request.Request(f"{CATALOG}/books", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                self.answer(200, b"Our books: " + response.read())
        except urllib.error.HTTPError as error:
            self.answer(502, f"The catalog says {error.code}".encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Its sidecar keeps the log."""


host, _, port = os.environ["LISTEN"].rpartition(":")
ThreadingHTTPServer((host, int(port)), Storefront).serve_forever()
