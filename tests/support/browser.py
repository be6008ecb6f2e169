"""A real Chromium without a window, spoken to over a pipe in its own protocol (CDP): no driver, no port, no package."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.real_assets import packages

_SECONDS = 60.0


class Browser:
    """One tab. `problems` has what the console complained of, and what was not caught."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._read = 0, b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a tab without a window may have no focus to give

    _session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the tab answers to `method`."""
        return self._send(method, session=self._session, **parameters)

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = "screen") -> None:
        """Load `page` in a window of that size, under a light or a `dark` system, and wait until it is there."""
        self.problems, self.requests = [], []
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.show_as(media, dark=dark)
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + _SECONDS
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.02)

    def show_as(self, media: str, *, dark: bool) -> None:
        """Screen or print, light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def value(self, script: str) -> Any:
        """What `script`, an expression, gives; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def becomes(self, script: str, expected: Any) -> None:
        """Wait until `script` gives `expected`: what a page draws, or hears of the pointer, comes with its next frame."""
        end = time.monotonic() + _SECONDS
        while (value := self.value(script)) != expected:
            assert time.monotonic() < end, value
            time.sleep(0.02)

    def press(self, key: str, text: str = "") -> None:
        """One key, down and up, on what has the focus."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32}
        made = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), "code": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **made, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **made)

    def picture(self, target: Path, *, whole: bool = True) -> Path:
        """A screenshot as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(answer["data"]))
        return target

    def axe(self) -> list[dict[str, Any]]:
        """What axe-core finds that is serious or worse."""
        self.value(f"{axe_core().read_text(encoding='utf-8')};0")
        found = self.value(
            "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.parse(JSON.stringify(r.violations)))"
        )
        return [one for one in found if one["impact"] in ("serious", "critical")]

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:  # a signal cuts a long write short
            rest = rest[os.write(self._to, rest) :]
        while True:
            answer = self._next(method)
            assert "error" not in answer, (method, answer["error"])
            if answer.get("id") == self._number:
                return answer["result"]

    def _next(self, asked: str) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._back], [], [], _SECONDS)[0], f"Chromium does not answer {asked}"
            more = os.read(self._back, 1 << 20)
            assert more, f"Chromium ended with {self._process.wait()}"
            self._read += more
        one, _, self._read = self._read.partition(b"\0")
        answer = json.loads(one)
        self._note(answer.get("method"), answer.get("params", {}))
        return answer

    def _note(self, event: str | None, said: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"].get("exception", {}).get("description", said)))
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console.{said['type']}: {said['args']}")
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.problems.append(said["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])


@contextlib.contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `home`. The test is skipped, with the reason, where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    reads, to = os.pipe()
    back, writes = os.pipe()
    command = f'exec "$@" 3<&{reads} 4>&{writes}'
    flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={home}", "--no-first-run", "--disable-gpu"]
    flags += ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--force-color-profile=srgb"]
    argv = ["bash", "-c", command, "chromium", program, *flags]
    process = subprocess.Popen(argv, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(reads)
    os.close(writes)
    try:
        yield Browser(process, to, back)
    finally:
        os.close(to)  # it ends where its pipe does
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(back)


@functools.cache
def axe_core() -> Path:
    """axe-core's script, as a package of the index has it. The test is skipped where the index cannot be reached."""
    return packages("axe-0.1.8", ["axe-playwright-python==0.1.8"]) / "axe_playwright_python" / "axe.min.js"
