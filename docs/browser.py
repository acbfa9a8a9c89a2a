"""The built pages in a real browser: nothing overflows, nothing is fetched from elsewhere, the search finds a name.

    python docs/browser.py site [FOLDER]      # with FOLDER, a picture of each page at both widths

Needs playwright and a Chromium of the system's. Prints what is wrong and ends with 1; `nox -s docs` runs it.
"""

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 390)
SEARCHED = "decay_mask"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A table may scroll on a telephone; on a desk it fits into its column. Code may scroll anywhere.
OVERFLOW = """width => {
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    const found = wide > 0 ? [`the page is ${wide} pixels too wide`] : [];
    if (width >= 1000)
        for (const table of document.querySelectorAll("article table")) {
            const more = table.scrollWidth - table.closest("article").clientWidth;
            if (more > 0) found.push(`a table is ${more} pixels too wide: ${table.innerText.slice(0, 40)}`);
        }
    return found;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which a folder is served meanwhile."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look(page: Page, address: str, path: str, pictures: Path | None) -> list[str]:
    """What is wrong with one page."""
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    found = []
    page.goto(f"{address}/{path}", wait_until="networkidle")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        found += [f"at {width} pixels, {problem}" for problem in page.evaluate(OVERFLOW, width)]
        if pictures:
            name = path.removesuffix(".html").replace("/", "-")
            page.screenshot(path=pictures / f"{name}-{width}.png", full_page=True)
    away = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
    return [*found, *(f"asks {url}" for url in sorted(away)), *(f"lacks {url}" for url in sorted(set(failed)))]


def search(page: Page, address: str) -> list[str]:
    """What the search finds for a name, as a reader who types it."""
    page.set_viewport_size({"width": WIDTHS[0], "height": 1000})
    page.goto(f"{address}/index.html?q={SEARCHED}")
    page.wait_for_selector(".md-search-result__item a", state="attached", timeout=20_000)
    return page.eval_on_selector_all(".md-search-result__item a", "links => links.map(link => link.href)")


def main(site: Path, pictures: Path | None = None) -> int:
    """Look at all pages of a site; the exit code."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"the pages were not looked at: there is none of {', '.join(BROWSERS)} on this machine")
        return 0
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    problems = 0
    with served(site) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        paths = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
        for path in paths:
            page = chromium.new_page()
            for problem in look(page, address, path, pictures):
                problems += 1
                print(f"{path}: {problem}")
            page.close()
        links = search(chromium.new_page(), address)
        chromium.close()
    print(f"{len(paths)} pages; {SEARCHED} is found in {len({link.split('#')[0] for link in links})} of them")
    if not any("/api/" in link for link in links):
        print(f"the search does not find {SEARCHED} in the API")
        problems += 1
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
