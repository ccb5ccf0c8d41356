"""Chromium without a window, driven as a person would: real keys, real clicks, other widths, light and dark, pictures of it.

Speaks the DevTools protocol over the two pipes of ``--remote-debugging-pipe``, so that no port is taken and no driver needed.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    "Tab": 9,
    "Enter": 13,
    " ": 32,
}
HEIGHT = 900


def find() -> str:
    """Path of the browser; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    return found


class Browser:
    """One page in one browser; a context manager. No host can be reached but this one by its number, 127.0.0.1."""

    def __init__(self, width: int = 1280, seconds: float = 60) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self._seconds = seconds
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self.console: list[str] = []
        """Errors and warnings, exceptions among them, since the last ``open``."""
        self.requested: list[str] = []
        """What was asked from anywhere since the last ``open``, the page itself and data URLs aside."""
        self._start(width)

    def _start(self, width: int) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        command = [
            find(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._folder.name}",
            f"--window-size={width},{HEIGHT}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "about:blank",
        ]
        # the protocol's pipes are the browser's file descriptors 3 and 4
        moved = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        with (Path(self._folder.name) / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", moved, "browser", *command],
                pass_fds=(commands, answers),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(commands)
        os.close(answers)
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.resize(width)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._commands)  # the browser ends when its pipe is closed
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._folder.cleanup()

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self.console.clear()
        self.requested.clear()
        failed = self._call("Page.navigate", url=address).get("errorText")
        assert not failed, f"{address}: {failed}"
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (of a promise, what it becomes)."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float | None = None) -> None:
        """Wait until a JavaScript expression is true (or an element that is there)."""
        end = time.monotonic() + (seconds or self._seconds)
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"{condition}: not in {seconds or self._seconds} s; the page says\n{self.text()}")
            time.sleep(0.1)

    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def press(self, key: str, times: int = 1) -> None:
        """Press and release a key of ``KEYS`` in what has the focus."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self._call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key.strip() or "Space",
                    windowsVirtualKeyCode=KEYS[key],
                )

    def downloads(self, folder: Path) -> None:
        """Keep what is downloaded from now on in ``folder``."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that ``selector`` finds."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior: "
            "'instant'}); const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def resize(self, width: int, height: int = HEIGHT) -> None:
        """Make the window as wide, and narrower than a real window could be."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def dark(self, dark: bool) -> None:
        """What the person prefers."""
        preferred = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=preferred)

    def picture(self, path: Path, whole: bool = True) -> Path:
        """Keep what is seen (``whole``: the page to its end) as the PNG file ``path``; returns it."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))
        print(f"picture: {path}")
        return path

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._hear(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._answers, 1 << 20)
            assert part, f"the browser ended:\n{(Path(self._folder.name) / 'log.txt').read_text()[-3000:]}"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _hear(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.console.append(str(details.get("exception", {}).get("description", details["text"])))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.console.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                address = told["request"]["url"]
                if not address.startswith("data:") and told.get("type") != "Document":
                    self.requested.append(address)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all."""
    with Browser() as made:
        yield made


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """As a new window: wide, light; what it showed does not go on working behind other tests."""
    chromium.resize(1280)
    chromium.dark(False)
    yield chromium
    chromium.open("about:blank?")
