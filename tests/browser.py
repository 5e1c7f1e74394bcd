"""Drive a headless Chromium over its DevTools protocol, one local file at a time, for the tests of the HTML page.

aiohttp comes with Ray. Where no Chromium is installed, `find` returns None and the tests skip.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import aiohttp

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0"),
)
PATIENCE = 300.0  # seconds for an answer; an idle machine needs milliseconds


def find() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page in a separate browser process. `problems` lists console errors, exceptions and requests that the page's
    policy forbids. `requests` lists every address that the page asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        self._profile = profile
        self._loop = asyncio.new_event_loop()
        self._ids = itertools.count(1)
        self.problems: list[str] = []
        self.requests: list[str] = []
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        try:
            self._loop.run_until_complete(self._connect())
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, path: Path, width: int = 1280, height: int = 800) -> None:
        """Open a file from the disk in a window of `width` × `height` pixels, and return when it is loaded."""
        self.problems.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda: self.run("document.readyState") == "complete" and self.run("location.protocol") == "file:")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, evaluated in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def key(self, key: str, code: int, text: str = "") -> None:
        """Press a key, as a reader without a mouse does."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def picture(self, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        return base64.b64decode(
            self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))["data"]
        )

    def pdf(self) -> bytes:
        """Return the page as a printed PDF."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its result. Events that arrive meanwhile are recorded."""
        return self._loop.run_until_complete(self._call(method, parameters))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _until(self, ready: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.05)

    async def _connect(self) -> None:
        marker = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (marker.exists() and len(lines := marker.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "the browser did not start"
            assert time.monotonic() < deadline, "the browser does not answer"
            await asyncio.sleep(0.05)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
            pages = [target for target in json.loads(await answer.text()) if target["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown" or (method == "Runtime.consoleAPICalled" and event["type"] == "error"):
            self.problems.append(json.dumps(event))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
