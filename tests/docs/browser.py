"""Opens every page of the site in a real browser: light and dark, a narrow and a wide window.

``python -m tests.docs.browser [directory for pictures]``, after `make docs`; `make test-docs` does both. It needs
Chromium or Chrome. A page fails that is wider than its window, lacks a picture, has a table that can't be scrolled,
shows Markdown as it is written, reports an error, or asks another host for anything.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

SITE = Path(__file__).parents[2] / "build" / "site"
BROWSERS = ("chromium", "google-chrome", "chrome")
WIDTHS = (390, 1280)
SCHEMES = {"light": "default", "dark": "slate"}
#: What is wrong with the page that is open.
FAULTS = """() => {
    const found = [];
    if (document.documentElement.scrollWidth > window.innerWidth) found.push("is wider than the window");
    for (const image of document.images)
        if (!image.complete || !image.naturalWidth) found.push("lacks the picture " + image.src);
    for (const table of document.querySelectorAll("article table:not([class])"))
        if (!table.closest(".md-typeset__scrollwrap")) found.push("has a table that can't be scrolled");
    for (const text of document.querySelectorAll("article p, article li, article td")) {
        const words = [...text.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join(" ");
        if (/```|\\|---|\\]\\(|\\*\\*/.test(words)) found.push("shows Markdown: " + words.slice(0, 60));
    }
    return found;
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def faults_of(context: BrowserContext, url: str, scheme: str, picture: Path | None) -> list[str]:
    """Return what is wrong with a page."""
    found: list[str] = []
    host = url.rpartition("/")[0]
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith((host, "data:", "blob:")) else found.append(f"asks {r.url}"))
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.goto(url, wait_until="load")
    # The theme wraps tables when it has loaded.
    page.wait_for_function(
        "!document.querySelector('article table:not([class])') || document.querySelector('.md-typeset__scrollwrap')"
    )
    found += page.evaluate(FAULTS)
    if page.evaluate("document.body.getAttribute('data-md-color-scheme')") != SCHEMES[scheme]:
        found.append(f"is not {scheme}")
    if picture:
        page.screenshot(path=picture, full_page=True)
    page.close()
    return found


def main(pictures: Path | None) -> int:
    """Open every page, say what is wrong, and return how many pages that concerns."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        print(f"none of {', '.join(BROWSERS)} is installed")
        return 1
    names = sorted(page.name for page in SITE.glob("*.html") if page.name != "404.html")
    assert names, f"no pages in {SITE}: make docs"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wrong = 0
    with sync_playwright() as playwright:
        # Chromium's sandbox needs rights that containers do not give; the pages are ours.
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for scheme in SCHEMES:
            for width in WIDTHS:
                viewport: Any = {"width": width, "height": 900}
                context = browser.new_context(color_scheme=scheme, viewport=viewport)  # type: ignore[arg-type,unused-ignore]
                for name in names:
                    picture = pictures / f"{Path(name).stem}-{width}-{scheme}.png" if pictures else None
                    url = f"http://127.0.0.1:{server.server_port}/{name}"
                    if found := faults_of(context, url, scheme, picture):
                        wrong += 1
                        print(f"{name}, {width} px, {scheme}: {'; '.join(found)}")
                context.close()
        browser.close()
    server.shutdown()
    print(f"{len(names)} pages in {len(SCHEMES) * len(WIDTHS)} windows each, {wrong} of them wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)))
