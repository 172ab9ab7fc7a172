"""A browser under remote control (the DevTools protocol), and what it did meanwhile."""

import json
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.e2e.clients import chromium
from tests.e2e.harness import Process, clean_environ, eventually


class Browser:
    """One page of a headless Chromium in which scripts are off."""

    def __init__(self, home: Path) -> None:
        port = home / "profile" / "DevToolsActivePort"
        command = chromium(home, None, "--remote-debugging-port=0", "about:blank")
        self._stack = ExitStack()
        process = Process(command, home / "browser.log", home, clean_environ(HOME=str(home)))
        self._stack.callback(process.stop)
        try:
            eventually(lambda: port.is_file() and port.read_text().count("\n"), timeout=30.0)
            base = f"http://127.0.0.1:{port.read_text().split()[0]}"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{base}/json/list", timeout=20) as reply:
                pages = [page for page in json.load(reply) if page["type"] == "page"]
            address = pages[0]["webSocketDebuggerUrl"]
            self._socket = self._stack.enter_context(connect(address, max_size=None, proxy=None))
        except BaseException:
            self._stack.close()
            raise
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Network", "Log", "Runtime", "DOM", "Accessibility"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setScriptExecutionDisabled", value=True)

    def close(self) -> None:
        self._stack.close()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = self._receive(20.0)
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def _receive(self, timeout: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=timeout))
        if "method" in message:
            self.events.append(message)
        return message

    def seen(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of this name so far."""
        return [event["params"] for event in self.events if event["method"] == method]

    def wait_for(self, method: str, count: int = 1) -> None:
        while len(self.seen(method)) < count:
            self._receive(20.0)

    def go(self, url: str) -> None:
        loads = len(self.seen("Page.loadEventFired"))
        self.ask("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired", loads + 1)

    def requested(self) -> list[str]:
        """The addresses it asked for, over the network or not."""
        return [event["request"]["url"] for event in self.seen("Network.requestWillBeSent")]

    def complaints(self) -> list[dict[str, Any]]:
        """What it wrote to the console, such as what a policy forbids."""
        return self.seen("Log.entryAdded") + self.seen("Runtime.consoleAPICalled")

    def readable(self, *roles: str) -> list[str]:
        """What a screen reader finds under these roles, in order."""
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [
            node["name"]["value"]
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles
        ]

    def focused(self) -> str:
        """The name of what has the keyboard."""
        for node in self.ask("Accessibility.getFullAXTree")["nodes"]:
            for property in node.get("properties", ()):
                if property["name"] == "focused" and property["value"]["value"] is True:
                    name: str = node.get("name", {}).get("value", "")
                    if node["role"]["value"] != "RootWebArea":
                        return name
        return ""

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **typed,
            )

    def background(self, scheme: str) -> str:
        """The page's colour where the reader prefers `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        self.ask("CSS.enable")
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        body = self.ask("DOM.querySelector", nodeId=root, selector="body")["nodeId"]
        style = self.ask("CSS.getComputedStyleForNode", nodeId=body)["computedStyle"]
        return {item["name"]: item["value"] for item in style}["background-color"]
