"""The built site, opened from a folder in headless Chromium: nothing from other hosts, no overflow, no errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

for module in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[docs]'")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed: apt-get install chromium", allow_module_level=True)

ROOT = Path(__file__).parents[1]
WIDTHS, SCHEMES = (1440, 390), ("default", "slate")  # light and dark


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


PALETTE = "document.querySelector('input[data-md-color-scheme={}]')"
SHOWN = "document.body.getAttribute('data-md-color-scheme')"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_pages(site: Path, browser: Browser) -> None:
    """Every page, opened once: wide and narrow, then in the other colour scheme, which the next page keeps."""
    pages = sorted(p for p in site.rglob("*.html") if p.name != "404.html")
    assert len(pages) > 30
    browser.requests.clear()
    browser.errors.clear()
    faults = []
    browser.show(WIDTHS[0], "light")
    browser.open(pages[0].as_uri())
    assert browser.wait_for(f"{PALETTE.format(SCHEMES[0])}.click(), {SHOWN} === '{SCHEMES[0]}'")
    for i, page in enumerate(pages):
        kept, other = SCHEMES[i % 2], SCHEMES[1 - i % 2]
        browser.open(page.as_uri())
        name = str(page.relative_to(site))
        if browser.evaluate(SHOWN) != kept:
            faults.append(f"{name}: not {kept}")
        for width in WIDTHS:
            browser.show(width, "light")
            if (over := browser.evaluate(OVERFLOW)) > 0:
                faults.append(f"{name}, {width} px: {over} px too wide")
        broken = browser.evaluate(BROKEN)
        if not browser.wait_for(f"{PALETTE.format(other)}.click(), {SHOWN} === '{other}'"):
            faults.append(f"{name}: does not become {other}")
        if broken := broken + browser.evaluate(BROKEN):
            faults.append(f"{name}: broken pictures {broken}")
        faults += [f"{name}: {error}" for error in browser.errors]
        browser.errors.clear()
    local = ("file:", "data:", "blob:", "about:")
    assert faults == []
    assert [url for url in browser.requests if not url.startswith(local)] == []


def test_search_works_from_a_folder(site: Path, browser: Browser) -> None:
    browser.open((site / "index.html").as_uri())
    browser.show(1440, "light")
    query = "document.querySelector('[data-md-component=search-query]')"
    assert browser.evaluate(f"{query}.focus(), {query}.value = 'orthogonal', {query}.dispatchEvent(new Event('input'))")
    assert browser.wait_for("document.querySelectorAll('.md-search-result__item').length > 3")


def test_faults_are_found(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><div style='width: 3000px'>x</div><script>no_such()</script>")
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page.as_uri())
    browser.show(390, "dark")
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert any("no_such" in error for error in browser.errors)
    assert browser.evaluate(OVERFLOW) > 1000
