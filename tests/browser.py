"""A real Chromium without a window, driven over its DevTools protocol. Tests that need it skip where it is missing."""

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import websocket
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run")


class Tab:
    """One tab: `errors` are the console's, `requests` the addresses it asked for."""

    def __init__(self, url):
        self.socket = websocket.create_connection(url, suppress_origin=True, timeout=60)
        self.numbers, self.session = itertools.count(1), None
        self.errors, self.requests = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")

    def send(self, method, **given):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": given}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.note(answer)

    def note(self, event):
        kind, given = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        if kind == "Runtime.consoleAPICalled":
            self.errors.append(str([one.get("value") for one in given["args"]]))
        if kind == "Log.entryAdded":
            self.errors.append(given["entry"]["text"])
        if kind == "Network.requestWillBeSent" and not given["request"]["url"].startswith("data:"):
            self.requests.append(given["request"]["url"])

    def js(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path, *, width=1200, height=900, dark=False):
        """Opens a file and waits until its charts are drawn."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.errors.clear()
        self.requests.clear()
        address = path.absolute().as_uri()
        self.send("Page.navigate", url=address)
        drawn = f"location.href === {json.dumps(address)} && document.documentElement?.dataset.ready === 'true'"
        wait = f"new Promise(done => {{const look = () => ({drawn}) ? done(true) : setTimeout(look, 20); look()}})"
        for _ in range(50):
            try:
                assert self.js(wait)
                return
            except AssertionError as error:
                if "context" not in str(error):  # the page changed under the expression
                    raise

    def pixels(self):
        """(H, W, 3) uint8 of the window."""
        picture = base64.b64decode(self.send("Page.captureScreenshot")["data"])
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


@contextmanager
def chromium(profile):
    """A tab of a new browser, which ends with the block."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            url = next(found[0] for line in lines if (found := re.search(r"ws://\S+", line)))
            tab = Tab(url)
            yield tab
            tab.socket.close()
        finally:
            process.terminate()
