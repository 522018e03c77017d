"""A headless Chromium, driven over WebDriver with nothing but Python's standard library."""

import base64
import collections
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zlib

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
LIMIT = 30

KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Space": " ", "Shift": "\ue008"}


class Missing(Exception):
    """There is no browser on this machine."""


def programs():
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        raise Missing("no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    return browser, driver


class Browser:
    """One session. Use it with `with`."""

    def __init__(self, width, height, dark=False, scale=1):
        browser, driver = programs()
        self.profile = tempfile.mkdtemp(prefix="page-test-")
        self.log = os.path.join(self.profile, "driver.log")
        self.session = None
        # It chooses its port itself: one that was free a moment ago may be another's by now.
        self.driver = subprocess.Popen(
            [driver, "--port=0", f"--log-path={self.log}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "TMPDIR": self.profile, "HOME": self.profile},
        )
        try:
            self.base = f"http://127.0.0.1:{self.port()}"
            self.open_session(browser, width, height, dark, scale)
        except BaseException:
            self.close()
            raise

    def open_session(self, browser, width, height, dark, scale):
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                     "--disable-background-networking", f"--user-data-dir={self.profile}/profile",
                     f"--window-size={width},{height}", "--hide-scrollbars"]
        wanted = {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": browser, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}}
        self.session = self.ask("POST", "/session", wanted)["sessionId"]
        self.resize(width, height, scale)
        scheme = "dark" if dark else "light"
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def port(self):
        for line in self.driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                return int(found[1])
        raise RuntimeError(f"chromedriver has ended: {self.last_words()}")

    def last_words(self):
        """The end of the driver's log, for whoever asks why."""
        try:
            with open(self.log, errors="replace") as file:
                return "".join(file.readlines()[-20:])
        except OSError as error:
            return str(error)

    def resize(self, width, height, scale=1):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                      mobile=width < 500)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.session:
            try:
                self.ask("DELETE", f"/session/{self.session}")
            except Exception:
                pass
        self.driver.terminate()
        self.driver.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise RuntimeError(f"{path}: {value['error']}: {value['message']}") from None
        except TimeoutError:
            raise RuntimeError(f"{method} {path} not answered within {LIMIT} s: {self.last_words()}") from None

    def command(self, method, path, body=None):
        return self.ask(method, f"/session/{self.session}{path}", body)

    def devtools(self, command, **parameters):
        return self.command("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def go(self, url):
        self.command("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """What a script returns; `arguments` are its arguments."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText ?? null", selector)

    def press(self, *keys):
        """Presses keys one after the other, wherever the focus is."""
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self.command("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, selector):
        element = self.command("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.command("POST", f"/element/{element}/click", {})

    def type(self, selector, text):
        element = self.command("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.command("POST", f"/element/{element}/value", {"text": text})

    def console(self):
        """What the page has written to the console since the last time, warnings and errors of the browser too."""
        return self.command("POST", "/se/log", {"type": "browser"})

    def screenshot(self, path, whole=False):
        clip = {}
        if whole:
            size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
                    "captureBeyondViewport": True}
        image = self.devtools("Page.captureScreenshot", format="png", **clip)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(image))


def colours(path):
    """Of a picture that the browser took: how many colours, the share of the commonest, and that one."""
    with open(path, "rb") as file:
        data = file.read()
    header, packed, place = None, b"", 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place:place + 8])
        chunk = data[place + 8:place + 8 + length]
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", chunk)
        elif kind == b"IDAT":
            packed += chunk
        place += 12 + length
    width, height, depth, form, _, _, interlaced = header
    assert depth == 8 and form in (2, 6) and not interlaced, header
    step = 3 if form == 2 else 4
    counts = collections.Counter()
    for line in unfiltered(zlib.decompress(packed), width * step, height, step):
        counts.update(zip(line[0::step], line[1::step], line[2::step]))
    [(commonest, count)] = counts.most_common(1)
    return {"count": len(counts), "share": count / (width * height), "commonest": commonest}


def unfiltered(data, size, height, step):
    """The lines of a PNG, as its section 9 undoes their filters."""
    above = bytearray(size)
    for row in range(height):
        start = row * (size + 1)
        kind, line = data[start], bytearray(data[start + 1:start + 1 + size])
        for i in range(size if kind else 0):
            left = line[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            line[i] = (line[i] + (0, left, above[i], (left + above[i]) // 2, paeth(left, above[i], corner))[kind]) & 255
        yield line
        above = line


def paeth(left, above, corner):
    guess = left + above - corner
    return min((left, above, corner), key=lambda one: abs(guess - one))


def until(what, condition, limit=LIMIT):
    """Waits until `condition` returns something true, and returns it."""
    deadline = time.monotonic() + limit
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit} s in vain for {what}")
        time.sleep(0.05)
