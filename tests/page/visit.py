"""Somebody who has opened the page: what was seen there, and how it is looked at."""

import re
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page, expect

PATIENCE_MS = 240_000
"""A machine that does ten other things draws the twenty steps of a picture, which take half a second, in half a minute:
only what never comes may fail."""
expect.set_options(timeout=PATIENCE_MS)

BLANK = "data:text/html,<p>blank</p>"

EXPECTED = re.compile(
    r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED|ERR_SOCKET|ERR_EMPTY_RESPONSE"
)
"""What a browser itself says while a service is away."""
REFUSED = re.compile(r"status of 4\d\d")
"""What it says of every answer that refuses."""


class Visit:
    """A page in a context of its own. away, refused: whether the service may be away, or refuse
    something."""

    def __init__(
        self, browser: Browser, address: str, *, width: int = 1280, scheme: str = "light", refused: bool = False
    ):
        height = 900 if width > 760 else 844
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.set_default_timeout(PATIENCE_MS)
        self.address = address
        self.away, self.refused = False, refused
        self.said: list[str] = []
        self.hosts: set[str] = set()
        self.open()

    def open(self) -> None:
        """In a new tab, as somebody who comes back."""
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(self.address + "/")
        expect(self.page.locator("#main > *").first).to_be_visible()

    def show(self, view: str) -> None:
        self.page.locator(f'nav a[href="#{view}"]').click()

    def button(self, name: str, **more: Any) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True, **more)

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_role("textbox", name="Prompt", exact=True)

    def draw(self, prompt: str) -> None:
        """Submits a prompt, and does not wait."""
        self.prompt.fill(prompt)
        with self.page.expect_response("**/v1/jobs") as answer:
            self.button("Draw").click()
        assert answer.value.status in (200, 201, 202), answer.value.text()

    def is_drawn(self) -> None:
        refused = self.page.locator(".notice.refused")
        expect(refused.or_(self.page.locator(".standing", has_text="Drawn")).first).to_be_visible()
        assert not refused.count(), refused.first.inner_text()

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.2, A and AA."""
        from axe_playwright_python.sync_playwright import Axe

        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}})
        return [
            f"{one['id']}: {one['help']} ({'; '.join(node['html'][:120] for node in one['nodes'][:3])})"
            for one in found.response["violations"]
        ]

    def painted_ms(self) -> float:
        """Until the browser painted the first text, when the page is loaded once more."""
        self.page.reload()
        return _painted_ms(self.page)

    def blank_ms(self) -> float:
        """The same of a page without anything, which says how slow this machine is now."""
        page = self.context.new_page()
        page.goto(BLANK)
        try:
            return _painted_ms(page)
        finally:
            page.close()

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def close(self) -> None:
        self.context.close()
        assert self.hosts <= {urlsplit(self.address).netloc, ""}, self.hosts
        assert not self.said, self.said

    def _note(self, kind: str, text: str) -> None:
        if kind not in ("error", "warning"):
            return
        if (self.away and EXPECTED.search(text)) or (self.refused and REFUSED.search(text)):
            return
        self.said.append(f"{kind}: {text}")


def _painted_ms(page: Page) -> float:
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? Number.MAX_VALUE")
