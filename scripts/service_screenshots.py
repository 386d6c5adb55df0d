"""Takes the pictures of the page of `lorahydra serve` for docs/images.

lorahydra serve &
python scripts/service_screenshots.py [--address http://127.0.0.1:8000] [--job 1] [--out docs/images]

The fine-tune must have ended. It needs what `screenshots.py` needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from screenshots import launch

DESK, PHONE = (1200, 900), (390, 844)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--job", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    study = f"{options.address}/fine-tunes/{options.job}"
    with sync_playwright() as playwright:
        browser = launch(playwright)
        take = Taker(browser, options.out)
        take("service-list", f"{options.address}/fine-tunes")
        take("service-configure", options.address, configure)
        take("service-study", study)
        take("service-answers", f"{study}#examples")
        take("service-study-dark", study, scheme="dark")
        take("service-phone", study, size=PHONE, locale="ru-RU")
        browser.close()


class Taker:
    """Opens pages, each as a new visitor, and takes a picture.

    Args:
        browser: What opens them.
        out: Folder of the pictures.
    """

    def __init__(self, browser: Browser, out: Path) -> None:
        self._browser = browser
        self._out = out

    def __call__(
        self,
        name: str,
        address: str,
        prepare: Callable[[Page], None] | None = None,
        *,
        size: tuple[int, int] = DESK,
        locale: str = "en-US",
        scheme: str = "light",
    ) -> None:
        """Take one.

        Args:
            name: Of the file, without extension.
            address: What to open.
            prepare: What to do there first.
            size: Of the window, in CSS pixels.
            locale: Language of the browser.
            scheme: `light` or `dark`.
        """
        view = {"width": size[0], "height": size[1]}
        context = self._browser.new_context(viewport=view, locale=locale, color_scheme=scheme, reduced_motion="reduce")
        page = context.new_page()
        page.goto(address)
        if prepare is not None:
            prepare(page)
        page.screenshot(path=self._out / f"{name}.png")
        print(self._out / f"{name}.png")
        context.close()


def configure(page: Page) -> None:
    """Open the dialog."""
    page.locator("a[href^='/configure']").first.click()
    page.get_by_role("dialog").wait_for()
    page.locator("#estimate dl, #estimate p").first.wait_for()


if __name__ == "__main__":
    main()
