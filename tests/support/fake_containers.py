"""What the fakes of Lepton and DGX Cloud have in common: an HTTP server on loopback, and containers that are processes.

A container is a process in a session of its own with an environment of its own. As with Kubernetes, TERM goes to its first
process alone, and its log is gone once it has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support import forks

GRACE_SECONDS = 10
_STARTED: list[Container] = []


class Container:
    """One process and its log. `host` are words that start it somewhere else."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], host: Sequence[str] = ()) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the container is known
        plain = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": tempfile.gettempdir(), "LANG": "C.UTF-8"}
        self._process = subprocess.Popen(
            [*host, *argv], env={**plain, **env}, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        _STARTED.append(self)

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """TERM, and KILL to all of it when its time is up."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        threading.Thread(target=self._kill_late, daemon=True).start()

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def kill(self) -> None:
        """End all of it."""
        forks.kill_tree(self._process.pid)

    def _kill_late(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self.kill()

    def log(self) -> Iterator[bytes]:
        """The log from its start, as it grows, until the container ends."""
        offset = 0
        while True:
            ended = self.status is not None
            chunk = os.pread(self._log.fileno(), 1 << 16, offset)
            offset += len(chunk)
            if chunk:
                yield chunk
            elif ended:
                return
            else:
                time.sleep(0.05)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Answer = Callable[[str, str, Any, Mapping[str, str]], Any]


def serve(answer: Answer, folder: Path, *, chunked: bool) -> None:
    """Answer requests until killed: `answer` gets method, path, body and headers, and returns JSON or an iterator of bytes.

    A stream comes in chunks where `chunked`, else until the connection is closed. The address is written to `folder`/url,
    every request to `folder`/requests.jsonl.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with (folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps({"method": self.command, "path": self.path, "body": body}) + "\n")
            try:
                found = answer(self.command, self.path.partition("?")[0], body, dict(self.headers))
                self._send(200, found)
            except Refused as error:
                self._send(error.status, {"message": str(error)})
            except Exception as error:  # what the vendor's types do not take
                self._send(400, {"message": str(error)})

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def _send(self, status: int, found: Any) -> None:
            self.send_response(status)
            if isinstance(found, Iterator):
                self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for chunk in found:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
                    self.wfile.write(b"0\r\n\r\n" if chunked else b"")
                return
            content = json.dumps(found).encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            print(format % arguments, file=sys.stderr)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    (folder / "url.partial").write_text(f"http://127.0.0.1:{server.server_address[1]}")
    (folder / "url.partial").rename(folder / "url")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever()
    finally:
        for container in _STARTED:
            container.kill()


def leaves_nothing_out(given: Any, parsed: Any) -> bool:
    """Whether everything in `given` is in `parsed` too: a type of the vendor's drops what it does not know."""
    if isinstance(given, dict):
        return isinstance(parsed, dict) and all(key in parsed and leaves_nothing_out(given[key], parsed[key]) for key in given)
    if isinstance(given, list):
        return len(given) == len(parsed) and all(map(leaves_nothing_out, given, parsed))
    return given == getattr(parsed, "value", parsed)


@contextlib.contextmanager
def running(python: str, module: str, folder: Path, env: Mapping[str, str], *arguments: str) -> Iterator[str]:
    """The address of the fake `module`, run by `python`, which keeps its records in `folder`."""
    folder.mkdir()
    script = str(Path(__file__).with_name(f"{module}.py"))
    ours = str(Path(__file__).resolve().parents[1])  # where it finds `support`
    environment = {**os.environ, **env, "PYTHONPATH": f"{env.get('PYTHONPATH', '')}:{ours}"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([python, script, str(folder), *arguments], env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while not (folder / "url").exists():
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield (folder / "url").read_text()
    finally:
        process.terminate()
        process.wait()
