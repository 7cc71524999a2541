"""Runs inside a sandbox: a small HTTP server on 127.0.0.1:8080 that tells what it was sent and upgrades to an echo."""

import hashlib
import http.server
import os


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade") == "echo":
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "echo")
            self.end_headers()
            while data := self.rfile.readline():
                self.wfile.write(data)
            self.close_connection = True
        elif self.path.startswith("/bytes/"):
            count = int(self.path.rpartition("/")[2])
            self.answer(b"x" * count)
        else:
            lines = [f"pid: {os.getpid()}", *(f"{name.lower()}: {value}" for name, value in self.headers.items())]
            self.answer("\n".join(lines).encode())

    def do_POST(self) -> None:
        left, seen = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, 65536))
            seen.update(data)
            left -= len(data)
        self.answer(seen.hexdigest().encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # 5 by default: what comes beyond that at once is reset by the kernel


Server(("127.0.0.1", 8080), Handler).serve_forever()
