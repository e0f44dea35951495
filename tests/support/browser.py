"""A real browser: Debian's `chromium-headless-shell`, or another Chromium that is installed, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA, of text

# The contrast of an element's text with the nearest background that is not transparent, as WCAG 2.1 defines it.
CONTRAST = """element => {
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(each => each / 255)
    .map(each => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  let behind = element, colour = [0, 0, 0, 0];
  while (behind && (colour = numbers(getComputedStyle(behind).backgroundColor))[3] === 0) behind = behind.parentElement;
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(colour)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed: apt install chromium-headless-shell")
    with sync_playwright() as playwright:
        # As root, as which the tests run, Chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()
