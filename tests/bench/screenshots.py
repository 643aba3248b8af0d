# SPDX-License-Identifier: Apache-2.0
"""Pictures of a page as a phone and a desktop show it, light and dark, and whether it overflows.

    python -m tests.bench.screenshots page.html OUT_DIR

Needs Chromium, which it talks to through a pipe. Tall pages come in parts. Exit 1 if the page is
wider than the screen, or asks for anything but itself.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

SIZES = {"phone": (375, 812), "desktop": (1440, 900)}
PART = 1600  # pixels of height: what a viewer still shows sharply


class Browser:
    """Chrome DevTools Protocol over the pipe of `--remote-debugging-pipe`."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer = read, write, b""
        self._id, self._session = 0, ""
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command and wait for its result; requests of the page are noted meanwhile."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._id:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def wait(self, event: str) -> None:
        """Wait for an event of the page."""
        while self._next().get("method") != event:
            pass

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["params"]["request"]["url"])
        return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium of our own, gone afterwards."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        sys.exit("no Chromium here: apt-get install chromium")
    theirs, write = os.pipe()
    read, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        # the browser reads commands from file descriptor 3 and answers on 4
        shell = f'exec 3<&{theirs} 4>&{theirs_out}; exec "$@"'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command = [program, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(theirs, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(theirs_out)
        try:
            yield Browser(read, write)
        finally:
            process.terminate()
            process.wait(10)
            os.close(read)
            os.close(write)


def picture(page: Browser, url: str, name: str, scheme: str, folder: Path) -> bool:
    """Save the page in one size and scheme; whether it fits."""
    width, height = SIZES[name]
    page.ask(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=name == "phone",
    )
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.ask("Emulation.setEmulatedMedia", features=media)
    page.ask("Page.navigate", url=url)
    page.wait("Page.loadEventFired")
    script = "[document.documentElement.scrollWidth, innerWidth, document.body.scrollHeight]"
    asked = page.ask("Runtime.evaluate", expression=script, returnByValue=True)
    wide, inner, tall = asked["result"]["value"]
    click.echo(f"{name} {scheme}: {wide} of {inner} px wide, {tall} px tall")
    for number, top in enumerate(range(0, tall, PART)):
        clip = {"x": 0, "y": top, "width": width, "height": min(PART, tall - top), "scale": 1}
        shot = page.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path = folder / f"{name}-{scheme}-{number:02}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
    return bool(wide <= inner == width)


def main(page: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    url = page.resolve().as_uri()
    with browser() as found:
        for domain in ("Page", "Runtime", "Network"):
            found.ask(f"{domain}.enable")
        fits = [picture(found, url, n, s, folder) for n in SIZES for s in ("light", "dark")]
        foreign = {r for r in found.requests if not r.startswith(("file:", "data:"))}
    for request in sorted(foreign):
        click.echo(f"the page asked for {request}")
    return 0 if all(fits) and not foreign else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
