"""ckpt-export --push-to, against a hub on loopback: what is uploaded, by whose login, and the one line where it cannot be."""

from __future__ import annotations

import base64
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from support.programs import error_line, run

TOKEN = "hf_" + "login" * 6


@dataclass
class Hub:
    """A hub that knows one person; `files` are those of the last commit. It answers `refuses` to who makes a repository."""

    url: str = ""
    refuses: int = 0
    made: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            if not self.path.startswith("/api/whoami"):
                self._answer({"error": "Repository not found"}, 404)
            elif self.headers.get("Authorization") == f"Bearer {TOKEN}":
                self._answer({"name": "me", "type": "user"})
            else:
                self._answer({"error": "Invalid username or password."}, 401)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/repos/create":
                state.made.append(json.loads(body))
                refused = {"error": "You don't have the rights to create a model under the namespace"}
                self._answer(refused if state.refuses else {"url": f"{state.url}/me/aligned"}, state.refuses or 200)
            elif "/preupload/" in self.path:
                names = [one["path"] for one in json.loads(body)["files"]]
                files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self._answer({"files": files})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self._answer({"commitUrl": f"{state.url}/me/aligned/commit/{'a' * 40}", "commitOid": "a" * 40})
            else:  # validate-yaml
                self._answer({"errors": [], "warnings": []})

        def _answer(self, value: object, status: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def _environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**plain, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **({"HF_TOKEN": token} if token else {})}


@pytest.mark.slow
def test_a_folder_is_uploaded_with_its_card(hub: Hub, policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (policy, "-o", out, "--to", "hf", "--push-to", "me/aligned")
    done = run("ckpt-export", *arguments, env=_environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    said = done.stderr.decode().splitlines()
    assert said[-4:] == [
        f"ckpt-export: weights in float32, model card in {out}/README.md",
        f"ckpt-export: transformers: transformers chat {out}",
        f"ckpt-export: vLLM: vllm serve {out}",
        f"ckpt-export: {out} -> {hub.url}/me/aligned",
    ]
    assert [one["name"] for one in hub.made] == ["aligned"]
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"  # huggingface_hub 1 says it otherwise
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    front = hub.files["README.md"].decode().split("---\n")[1]
    assert yaml.safe_load(front)["library_name"] == "transformers"


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line(hub: Hub, policy: Path, tmp_path: Path) -> None:
    arguments = (policy, "-o", tmp_path / "out", "--to", "hf", "--push-to")
    for name, token, status, line in [
        (
            "me/aligned",
            "hf_of_nobody",
            1,
            "--push-to me/aligned: the hub refuses (401): Invalid user",
        ),
        ("me/aligned", None, 1, "--push-to me/aligned: the hub does not know you: hf auth login, or set HF_TOKEN"),
        ("a/b/c", TOKEN, 2, "--push-to a/b/c: is no id of a model on the hub: give NAME or OWNER/NAME"),
    ]:
        done = run("ckpt-export", *arguments, name, env=_environment(hub, tmp_path, token))
        said = error_line(done, "ckpt-export")
        assert (done.returncode, said[: len(line)]) == (status, line)
        assert status == 2 or said.endswith(": hf auth login, or set HF_TOKEN")
        assert not (tmp_path / "out").exists()
    hub.refuses = 403
    done = run("ckpt-export", *arguments, "other/aligned", env=_environment(hub, tmp_path))
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("ckpt-export: error: --push-to other/aligned: the hub refuses (403): You don't have the rights")
    assert (tmp_path / "out" / "README.md").is_file()  # what was exported stays
    megatron = run("ckpt-export", policy, "-o", tmp_path / "m", "--to", "megatron", "--push-to", "me/x")
    assert megatron.returncode == 2
