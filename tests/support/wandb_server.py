"""As much of a W&B server as its real client needs, on loopback: GraphQL for runs, file_stream for their history.

It holds what it was sent, and tells a client that comes back with a known run how far that got. It was written against the
requests of wandb 0.31; what W&B's own server would say to them nobody here has seen.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"


@dataclass
class RunThere:
    """A run as the server has it."""

    name: str
    project: str = ""
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history as rows."""
        return [json.loads(line) for line in self.history]


@dataclass
class WandbServer:
    """What was sent: the runs by id, the keys that were shown, and every body as text."""

    url: str = ""
    runs: dict[str, RunThere] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    bodies: list[str] = field(default_factory=list)

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one query."""
        if "upsertBucket" in query:
            return self._upsert(variables)
        if "historyTail" in query or "historyLineCount" in query:
            return {"model": {"id": "m", "name": variables.get("project"), "bucket": self._resume(variables)}}
        if "serverInfo" in query:
            return {
                "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}
            }
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Take a part of the file stream of `run`."""
        there = self.runs[run]
        part = (body.get("files") or {}).get("wandb-history.jsonl")
        if part:
            del there.history[part["offset"] :]
            there.history += part["content"]
        if body.get("complete"):
            there.exit_codes.append(body.get("exitcode", 0))

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, RunThere(name))
        run.project = variables.get("project") or run.project
        run.display_name = variables.get("displayName") or run.display_name or name
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": run.display_name, "description": "", "config": None}
        bucket |= {"project": project, "historyLineCount": len(run.history), "sweepName": None}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(variables.get("name", ""))
        if run is None:
            return None
        tail = json.dumps(run.history[-1:])
        summary = json.dumps(run.rows[-1] if run.history else {})
        return {
            "id": f"id-{run.name}", "name": run.name, "config": json.dumps(run.config), "summaryMetrics": summary, "tags": [],
            "displayName": run.display_name, "historyLineCount": len(run.history), "historyTail": tail, "eventsLineCount": 0,
            "eventsTail": "[]", "logLineCount": 0, "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that answers for the block."""
    server = WandbServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            listening.shutdown()


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_PUT(self) -> None:
            self._body()
            self._answer({})

        def do_POST(self) -> None:
            body = json.loads(self._body() or b"{}")
            if self.path == "/graphql":
                self._answer({"data": server.graphql(body["query"], body.get("variables") or {})})
            elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.stream(match[1], body)
                self._answer({})
            else:
                self._answer({}, status=404)

        def _body(self) -> bytes:
            scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
            if scheme == "Basic":
                server.keys.add(base64.b64decode(credentials).decode().partition(":")[2])
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.bodies.append(f"{self.path} {body.decode(errors='replace')}")
            return body

        def _answer(self, tree: dict[str, Any], status: int = 200) -> None:
            text = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler
