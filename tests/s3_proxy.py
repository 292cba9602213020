"""An HTTP proxy before an S3 server that fails when it is told to, as networks and busy stores do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str  # "busy", "lost", "truncated", "cut", "none"
SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Proxy:
    """Passes requests on to `port`; `choose(method, path)` names the fault of each.

    Faults: `busy` answers 503 without asking the server, `lost` closes the connection after the server has answered, `truncated` passes on half of the body and
    closes the connection to both, `cut` gives half of the answer's body.
    """

    def __init__(self, port: int, choose: Callable[[str, str], Fault]) -> None:
        self.seen: list[tuple[str, str, Fault]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                fault = choose(self.command, self.path)
                proxy.seen.append((self.command, self.path, fault))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.answer(self, port, fault, body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, port: int, fault: Fault, body: bytes) -> None:
        if fault == "busy":
            handler.send_response(503)
            handler.send_header("Content-Length", str(len(SLOW_DOWN)))
            handler.end_headers()
            handler.wfile.write(SLOW_DOWN)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            upstream.putheader(name, value)  # the host as it was signed
        upstream.endheaders()
        if fault == "truncated":
            upstream.send(body[: len(body) // 2])
            upstream.close()
            self._drop(handler)
            return
        if body:
            upstream.send(body)
        found = upstream.getresponse()
        data = found.read()
        upstream.close()
        if fault == "lost":
            self._drop(handler)
            return
        handler.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self._drop(handler)

    @staticmethod
    def _drop(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.close()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
