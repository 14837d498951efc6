"""What the tests ask of a page in a real browser."""

from __future__ import annotations

from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
TAB, ENTER, SPACE = "\ue004", "\ue007", " "


def opened(browser: Any, address: str, width: int, *, scheme: str = "light") -> None:
    """Open the page in a window of this width; below 600 as a phone."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.get(address)


def assert_quiet_and_whole(browser: Any, width: int) -> None:
    """No console message, no request, nothing beyond the window's right edge."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def text_outside_figures(browser: Any) -> list[str]:
    """Texts of drawings that are cut off at their left or right edge."""
    return browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].flatMap(svg => {"
        "const box = svg.getBoundingClientRect();"
        "return [...svg.querySelectorAll('text')].filter(text => {"
        "const t = text.getBoundingClientRect();"
        "return t.left < box.left - 2 || t.right > box.right + 2 || t.top < box.top - 2 })"
        ".map(text => text.textContent) })"
    )


def unreachable(browser: Any) -> int:
    """Scrolling regions that a keyboard cannot get to."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".filter(s => s.tabIndex !== 0 || !s.getAttribute('aria-label')).length"
    )


def low_contrasts(browser: Any) -> list[tuple[str, float]]:
    """Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3), and the contrast."""
    script = """
    const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = rgb => rgb.slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = node => {
      for (let at = node; at; at = at.parentElement) {
        const rgb = parse(getComputedStyle(at).backgroundColor);
        if (rgb.length === 3 || rgb[3] > 0) return rgb;
      }
      return [255, 255, 255];
    };
    const found = [];
    for (const node of document.querySelectorAll('body *')) {
      const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
      if (!own || ['script', 'style', 'title'].includes(node.tagName.toLowerCase())) continue;
      const style = getComputedStyle(node);
      const ink = parse(node.closest('svg') ? style.fill : style.color);
      const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) found.push([node.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]);
    }
    return found;
    """
    return browser.execute_script(script)
