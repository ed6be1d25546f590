"""What goes wrong in a page, noted while a test looks at it."""

import re
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Error, Page, Request


class Faults:
    """What goes wrong in pages: errors of their console and scripts, what their policy refused, other hosts asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._allowed: list[str] = []

    def watch(self, page: Page) -> None:
        """Note from now on what goes wrong in the page."""
        page.on("console", self._told)
        page.on("pageerror", self._thrown)
        page.on("request", self._asked)

    def allow(self, pattern: str) -> None:
        """Faults that the test brings about, such as the console's line about an answer that is an error."""
        self._allowed.append(pattern)

    def left(self) -> list[str]:
        """Those that no test asked for."""
        return [fault for fault in self.seen if not any(re.search(pattern, fault) for pattern in self._allowed)]

    def _told(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.seen.append(f"console: {message.text} ({message.location['url']})")

    def _thrown(self, error: Error) -> None:
        self.seen.append(f"script: {error.stack or error.message}")

    def _asked(self, request: Request) -> None:
        asked = urlsplit(request.url)
        if asked.scheme not in ("data", "blob"):
            home = asked if request.is_navigation_request() else urlsplit(request.frame.url)
            if home.hostname != "127.0.0.1" or asked.netloc != home.netloc:
                self.seen.append(f"request to another host: {request.url}")
