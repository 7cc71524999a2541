"""Runs inside a sandbox: pages on 127.0.0.1:8080 that echo WebSockets, send events and tell what they were sent."""

import base64
import hashlib
import http.server
import json
import os
import struct
import threading

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>the application</title>
<link rel="stylesheet" href="/style.css">
<link rel="icon" href="data:,">
</head>
<body>
<p id="pid">%d</p>
<script src="/script.js"></script>
</body>
</html>
"""
STYLE = "p { color: rgb(1, 2, 3) }"
SCRIPT = "document.body.dataset.script = 'ran'"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE = 8
DEVTOOLS = "/devtools/browser/0f1e"

go = threading.Semaphore(0)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(("/json/", "/devtools/")) and self.headers["Host"].partition(":")[0] != "localhost":
            self.answer(500, "text/plain", "Host header is specified and is not an IP address or localhost.")
        elif self.headers.get("Upgrade", "").lower() == "websocket":
            self.echo()
        elif path == "/json/version":
            told = {"Browser": "Small/1.0", "webSocketDebuggerUrl": f"ws://localhost{DEVTOOLS}"}
            self.answer(200, "application/json", json.dumps(told))
        elif path == "/headers":
            told = {"target": self.path, "headers": self.headers.items(), "pid": os.getpid()}
            self.answer(200, "application/json", json.dumps(told))
        elif path == "/events":
            self.events()
        elif path == "/go":
            go.release()
            self.answer(200, "text/plain", "")
        elif path == "/style.css":
            self.answer(200, "text/css", STYLE)
        elif path == "/script.js":
            self.answer(200, "text/javascript", SCRIPT)
        elif path == "/":
            self.answer(200, "text/html; charset=utf-8", PAGE % os.getpid())
        else:
            self.answer(404, "text/plain", "")

    def answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def events(self) -> None:
        """The second comes when the page has asked /go; then the stream ends, and goes on where it was."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        last = int(self.headers.get("Last-Event-ID", 0))
        self.wfile.write(f"retry: 10\nid: {last + 1}\ndata: event {last + 1}\n\n".encode())
        if go.acquire(timeout=30):
            self.wfile.write(f"id: {last + 2}\ndata: event {last + 2}\n\n".encode())

    def echo(self) -> None:
        """WebSocket frames go back as they came."""
        self.close_connection = True
        accept = base64.b64encode(hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + GUID).digest())
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        while head := self.rfile.read(2):
            size = head[1] & 127
            more = self.rfile.read({126: 2, 127: 8}.get(size, 0))
            size = int.from_bytes(more, "big") if more else size
            mask = self.rfile.read(4)
            self.wfile.write(frame(head[0], unmasked(self.rfile.read(size), mask)))
            if head[0] & 15 == CLOSE:
                return

    def log_message(self, format: str, *args: object) -> None:
        pass


def unmasked(data: bytes, mask: bytes) -> bytes:
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


def frame(first: int, data: bytes) -> bytes:
    size = len(data)
    if size < 126:
        return struct.pack(">BB", first, size) + data
    return (struct.pack(">BBH", first, 126, size) if size < 65536 else struct.pack(">BBQ", first, 127, size)) + data


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


server = Server(("127.0.0.1", 8080), Handler)
print("it listens", flush=True)
server.serve_forever()
