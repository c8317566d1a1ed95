"""Headless Chromium for tests of pages; they skip where it or Playwright is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# The machine may be busy.
_PATIENCE_MS = 10_000
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@contextmanager
def opened_browser() -> Iterator[Any]:
    """The browser, closed in the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'leanrec[test]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium or Chrome")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def show_all(tab: Any, timeout_ms: int = 60_000) -> None:
    """Scroll through a page until all of its figures are drawn, and back to its top."""
    tab.wait_for_function(
        """() => {
          if (document.documentElement.dataset.drawn === 'all') return true;
          [...figures.values()].find(({ drawn }) => !drawn)?.element.scrollIntoView();
          return false;
        }""",
        timeout=timeout_ms,
    )
    tab.evaluate("window.scrollTo(0, 0)")


class Page:
    """A page of a file in a window of its own; collects its errors and the addresses that it asked for."""

    def __init__(
        self, browser: Any, path: Path, width: int = 1280, scheme: str = "light", all_drawn: bool = True
    ) -> None:
        self._context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab = self._context.new_page()
        self.tab.set_default_timeout(_PATIENCE_MS)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("dialog", self._dismiss)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        if all_drawn:
            show_all(self.tab)

    def _dismiss(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.tab.evaluate(expression)

    def close(self) -> None:
        self._context.close()
