"""Chromium, driven by Selenium, and how to draw in it.

``PYTHONPATH=. python tests/browser.py docs/page.png`` takes the picture of the page in docs/export.md.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from export.network import write_page
from trained import load_trained

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
    --disable-background-networking --disable-component-update --disable-sync"""

Points = list[tuple[float, float]]  # a stroke, in shares of the drawing area's side


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Points:
    """Return points on an ellipse, from angle to angle in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / 36) for i in range(37)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


DIGITS: list[list[Points]] = [
    [arc(0.5, 0.5, 0.2, 0.31, -80, 280)],
    [[(0.55, 0.18), (0.5, 0.5), (0.46, 0.83)]],
    [[*arc(0.48, 0.36, 0.19, 0.17, 190, 380), (0.5, 0.6), (0.3, 0.8), (0.5, 0.79), (0.74, 0.8)]],
    [[*arc(0.47, 0.34, 0.18, 0.15, 200, 440), *arc(0.47, 0.65, 0.22, 0.18, 275, 510)]],
    [[(0.38, 0.2), (0.3, 0.52), (0.72, 0.5)], [(0.64, 0.18), (0.6, 0.5), (0.57, 0.85)]],
    [[(0.7, 0.19), (0.38, 0.2), (0.35, 0.46), *arc(0.46, 0.62, 0.2, 0.19, 240, 510)]],
    [[(0.62, 0.17), (0.45, 0.36), (0.35, 0.6), *arc(0.5, 0.66, 0.16, 0.16, 180, -170)]],
    [[(0.28, 0.25), (0.5, 0.24), (0.74, 0.24), (0.62, 0.45), (0.52, 0.65), (0.45, 0.85)]],
    [[*arc(0.5, 0.34, 0.15, 0.15, 90, 450), *arc(0.5, 0.66, 0.18, 0.18, -90, 270)]],
    [[*arc(0.49, 0.36, 0.16, 0.16, -20, -360), (0.65, 0.36), (0.63, 0.6), (0.58, 0.84)]],
]


def start_browser() -> Any:
    """Start Chromium with a new profile of its own; its logs hold what it asks of any network."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS.split():
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def view(page: Any, width: int, height: int, scheme: str = "light", touch: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if touch else 1, "mobile": touch}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def settle(page: Any) -> None:
    """Wait until what has been asked of the page is on the screen."""
    page.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def draw(page: Any, strokes: list[Points], touch: bool = False) -> None:
    """Draw with the mouse, or a finger, on the page."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    left, top, side = page.execute_script(
        "const b = pad.getBoundingClientRect(); return [b.left, b.top, b.width]"
    )
    for stroke in strokes:
        places = [(round(left + x * side), round(top + y * side)) for x, y in stroke]
        if touch:
            for i, (x, y) in enumerate(places):
                event = {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
                page.execute_cdp_cmd("Input.dispatchTouchEvent", event)
            page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
            continue
        actions: Any = ActionBuilder(page, duration=0)
        actions.pointer_action.move_to_location(*places[0]).pointer_down()
        for place in places[1:]:
            actions.pointer_action.move_to_location(*place)
        actions.pointer_action.pointer_up()
        actions.perform()
    settle(page)


def press(page: Any, *keys: str) -> None:
    """Press keys one after the other; those of one string together."""
    from selenium.webdriver import ActionChains

    actions = ActionChains(page, duration=0)
    for together in keys:
        for key in together:
            actions.key_down(key)
        for key in together:
            actions.key_up(key)
    actions.perform()
    settle(page)


if __name__ == "__main__":
    driver = start_browser()
    view(driver, 1280, 800)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index.html")
        path.write_bytes(write_page(load_trained(Path("weights/best.pt")).model))
        driver.get(path.as_uri())
        draw(driver, DIGITS[3])
        driver.save_screenshot(sys.argv[1])
    driver.quit()
