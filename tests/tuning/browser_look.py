"""Takes a page's address on this machine; gives its text and a picture, as Chromium shows it.

A script of its own, so that any Python that has playwright can run it:
    python browser_look.py CHROMIUM FOLDER NAME=TEXT=URL...
Each page is waited for until it shows TEXT; NAME.txt and NAME.png are written to FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def look(page, folder: Path, name: str, url: str, text: str) -> None:
    page.goto(url, timeout=60_000)
    page.get_by_text(text).first.wait_for(timeout=60_000)
    page.wait_for_timeout(3_000)
    assistant = page.get_by_role("button", name="Close")  # it covers a quarter of the page
    if assistant.count():
        assistant.first.click()
    children = page.locator(".ag-row [col-id*='Run Name'] button")
    if children.count():
        children.first.click()
    page.wait_for_timeout(3_000)
    (folder / f"{name}.txt").write_text(page.inner_text("body"), "utf-8")
    page.screenshot(path=folder / f"{name}.png")


def main(chromium: str, folder: str, *pages: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        for wanted in pages:
            name, text, url = wanted.split("=", 2)
            look(page, Path(folder), name, url, text)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
