"""How long the program takes to say something, as a whole process: its version, its help, an answer of the API.

`python -c pass` is what any Python program takes on this machine; it, and the others, run in turn in every round, so
that whatever else the machine does meets all of them alike. See README.md.
"""

import argparse
import http.server
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from measure import report
from measure.report import percentile

PROGRAM = str(Path(sys.executable).with_name("roost"))
WARM_UP = 3  # rounds that do not count
PROMISED_MS = 150  # SPECIFICATION.md, of `roost --version`


class NoJobs(http.server.BaseHTTPRequestHandler):
    """The smallest server that `roost list` can ask; the bench is of the program, not of the API."""

    def do_GET(self) -> None:
        body = b'{"jobs": [], "total": 0, "page": 1, "page_size": 20}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def commands() -> dict[str, list[str]]:
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "roost --version": [PROGRAM, "--version"],
        "roost --help": [PROGRAM, "--help"],
        "roost run --help": [PROGRAM, "run", "--help"],
        "roost list": [PROGRAM, "list"],
    }


def milliseconds(command: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    return (time.perf_counter() - begun) * 1000


def measured(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"benchmark": "cli", "machine": report.facts(), "count": count}
    print(f"{found['machine']}", flush=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoJobs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        environment = os.environ | {"MAGS_API_URL": url, "MAGS_API_TOKEN": "none"}
        values: dict[str, list[float]] = {name: [] for name in commands()}
        for number in range(WARM_UP + count):
            for name, command in commands().items():
                taken = milliseconds(command, environment)
                if number >= WARM_UP:
                    values[name].append(round(taken, 2))
        server.shutdown()
    return found | {"milliseconds": values}


def show(found: dict[str, Any]) -> None:
    rows = [
        [name, f"{statistics.median(taken):.1f}", f"{percentile(taken, 0.95):.1f}", f"{max(taken):.1f}"]
        for name, taken in found["milliseconds"].items()
    ]
    report.print_table(["milliseconds", "median", "p95", "max"], rows)
    print(f"promised: `roost --version` in at most {PROMISED_MS} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="rounds that count (30)")
    found = measured(parser.parse_args().count)
    show(found)
    print(report.write("cli", found))


if __name__ == "__main__":
    main()
