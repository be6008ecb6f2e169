"""Hugging Face ids, against a hub on loopback: what is fetched, with which token, and the one line when it cannot be."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_COMMIT = "a" * 40
_FETCHED = {
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
}
_PASSED_OVER = ("consolidated.safetensors", "onnx/model.json", "pytorch_model.bin")
_PROGRAM = """
import sys
from nemotron_dpo.errors import UserError
from nemotron_dpo.sources import resolve
try:
    found = resolve(sys.argv[1])
    files = [path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()]
    print(found.kind, *sorted(files))
except UserError as error:
    print("error:", error)
"""


@dataclass
class Hub:
    """A hub that has one model, acme/tiny, or answers everything with `status`."""

    status: int = 200
    error_code: str | None = None
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            state.tokens.add(self.headers.get("Authorization"))
            body, headers = self._answer()
            self.send_response(state.status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def _answer(self) -> tuple[bytes, dict[str, str]]:
            if state.status != 200:
                return b"", {"X-Error-Code": state.error_code} if state.error_code else {}
            names = [*_FETCHED, *_PASSED_OVER]
            if "/tree/" in self.path:
                return json.dumps([{"type": "file", "path": n, "size": 3, "oid": "b" * 40} for n in names]).encode(), {}
            if self.path.startswith("/api/"):
                return json.dumps(
                    {"id": "acme/tiny", "sha": _COMMIT, "siblings": [{"rfilename": n} for n in names]}
                ).encode(), {}
            body = next(content for name, content in _FETCHED.items() if self.path.endswith(f"/{name}"))
            return body, {"X-Repo-Commit": _COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def resolved(hub: Hub, home: Path, **extra: str) -> str:
    """What a new process makes of acme/tiny; huggingface_hub reads its environment once."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**plain, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **extra}
    argv = [sys.executable, "-c", _PROGRAM, "acme/tiny"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_model_is_fetched_with_the_token_of_ones_login_and_found_again_offline(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_of_my_login")
    assert resolved(hub, tmp_path) == f"hf {' '.join(sorted(_FETCHED))}"
    assert "Bearer hf_of_my_login" in hub.tokens
    hub.tokens.clear()
    assert resolved(hub, tmp_path, HF_HUB_OFFLINE="1") == f"hf {' '.join(sorted(_FETCHED))}"
    assert not hub.tokens


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "nor such a model on the Hugging Face hub: check the spelling"),
        (401, "RepoNotFound", "nor such a model on the Hugging Face hub: check the spelling; a private or gated one needs"),
        (403, "GatedRepo", "is gated: ask for access on its page"),
        (400, None, "cannot be reached"),
    ],
)
def test_a_refusal_is_one_line_with_what_to_do(status: int, code: str | None, message: str, hub: Hub, tmp_path: Path) -> None:
    hub.status, hub.error_code = status, code
    said = resolved(hub, tmp_path)
    assert said.startswith("error: acme/tiny: ")
    assert message in said


def test_offline_without_a_copy_says_so(hub: Hub, tmp_path: Path) -> None:
    said = resolved(hub, tmp_path, HF_HUB_OFFLINE="1")
    where = "no such folder here, nor in the hub's local cache, and HF_HUB_OFFLINE is set"
    assert said == f"error: acme/tiny: {where}: check the spelling, or unset it"
    assert not hub.tokens


def test_a_hub_that_is_not_there_says_so(tmp_path: Path) -> None:
    said = resolved(Hub(url="http://127.0.0.1:9"), tmp_path)
    assert "the Hugging Face hub cannot be reached" in said
    assert "check the spelling of a folder" in said
