"""Chromium for tests of pages, driven by its DevTools protocol."""

import asyncio
import base64
import contextlib
import shutil
import subprocess

import aiohttp
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH: pages can't be opened")

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")


@contextlib.asynccontextmanager
async def open_tab(folder, *flags):
    """Start Chromium with an empty profile in a folder, and yield its tab."""
    profile = folder / "browser"
    words = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (port_file := profile / "DevToolsActivePort").exists() or not port_file.read_text():
            assert browser.poll() is None
            await asyncio.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(one for one in await answer.json() if one["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Network", "Runtime", "Page", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
    finally:
        browser.terminate()
        browser.wait()


class Tab:
    """A tab of Chromium."""

    def __init__(self, socket):
        self.socket, self.number, self.events = socket, 0, []

    async def call(self, method, **params):
        """The result of a method of the protocol; events that come before it are kept."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while (message := await self.socket.receive_json()).get("id") != self.number:
            self.events.append(message)
        assert "result" in message, message
        return message["result"]

    async def value(self, expression):
        """The value of an expression, or of its promise, on the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def wait(self, expression, timeout_s=60):
        """Wait until an expression is true on the page, and return its value."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (value := await self.value(expression)):
                    await asyncio.sleep(0.03)
                return value
        except TimeoutError:
            text = await self.value("document.body.innerText")
            raise AssertionError(f"{expression} isn't true on the page:\n{text}") from None

    async def open(self, url):
        """Open a page, and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.wait("document.readyState == 'complete' && location.protocol != 'about:'")

    async def reload(self):
        """Load the page again."""
        await self.value("window.isEarlier = true; null")
        await self.call("Page.reload")
        await self.wait("!window.isEarlier && document.readyState == 'complete'")

    async def resize(self, width, height=800):
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=width < 600)  # fmt: skip

    async def press(self, key, text=""):
        """Press a key, such as 'ArrowDown'; `text` is what it types."""
        typed = {"text": text} if text else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    async def type(self, text):
        """Type into the focused field, key by key."""
        for character in text:
            await self.press(character, character)

    async def picture(self, **clip):
        """A screenshot in PNG, of a part of the page if one is given."""
        where = {"clip": clip, "captureBeyondViewport": True} if clip else {}
        return base64.b64decode((await self.call("Page.captureScreenshot", **where))["data"])

    def told(self, method):
        """The parameters of the events of a kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self):
        """The exceptions on the page, and the messages of the browser's log at level error."""
        logged = [entry["entry"] for entry in self.told("Log.entryAdded") if entry["entry"]["level"] == "error"]
        return [str(error["exceptionDetails"]) for error in self.told("Runtime.exceptionThrown")] + [
            f"{entry['text']} {entry.get('url', '')}" for entry in logged
        ]
