"""The page in a real browser: Debian's Chromium."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, DIGITS, DRIVER, draw, press, settle, start_browser, view
from draw_digits import draw_page, pens
from PIL import Image

from datasets import MNIST, load_mnist
from export.network import write_page
from pictures import colors, decode
from predict import __main__ as command
from predict import ink
from predict.prepare import read_digits
from runtime.errors import UserError
from trained import load_trained

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights" / "best.pt"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("selenium")
    for program in (CHROMIUM, DRIVER):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: apt-get install chromium chromium-driver")
    driver = start_browser()
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_bytes(write_page(load_trained(WEIGHTS).model))
    return path


@pytest.fixture(scope="module")
def page_url(page_file: Path) -> str:
    return page_file.as_uri()


@pytest.fixture
def page(browser: Any, page_url: str) -> Iterator[Any]:
    """The page, just opened, 1280×800 pixels; no test may leave an error in the browser's log."""
    view(browser, 1280, 800)
    browser.get_log("browser")
    browser.get(page_url)
    settle(browser)
    yield browser
    assert browser.get_log("browser") == []


def reading(page: Any) -> tuple[str, list[str]]:
    """Return the digit that the page shows, and the texts beside the ten bars."""
    rows = page.execute_script("return bars.map((row) => row.innerText.split(/\\s+/).join(' '))")
    return page.find_element("id", "digit").text, rows


def test_one_small_file_that_names_no_other(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert len(text.encode()) < 100_000
    assert "{{" not in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("://") == 0
    assert "9,798 parameters" in text


def test_committed_page_is_made_of_the_committed_weights(page_file: Path) -> None:
    assert (ROOT / "docs" / "index.html").read_bytes() == page_file.read_bytes()


@pytest.mark.slow
def test_nothing_is_asked_of_any_network(browser: Any, page_url: str) -> None:
    browser.get_log("performance")
    browser.get(page_url)
    draw(browser, DIGITS[3])
    browser.find_element("id", "clear").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("data:")] == [page_url]
    assert browser.get_log("browser") == []
    # Nor could it be: the page has forbidden it to the browser.
    refused = "addEventListener('securitypolicyviolation', (event) => arguments[0](event.violatedDirective));"
    assert (
        browser.execute_async_script(refused + "fetch('http://127.0.0.1:9/').catch(() => 0)") == "connect-src"
    )
    browser.get_log("browser")


@pytest.mark.slow
def test_network_is_pytorchs(page: Any) -> None:
    images = load_mnist(train=False)[0][:500]
    model = load_trained(WEIGHTS).model
    with torch.inference_mode():
        expected = model((images[:, None] / 255 - MNIST.mean) / MNIST.std)
    script = "return arguments[0].map((picture) => Array.from(network(picture)))"
    batches = [page.execute_script(script, batch.flatten(1).tolist()) for batch in torch.split(images, 100)]
    found = torch.tensor([row for batch in batches for row in batch])
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("digit", range(10))
def test_digits_drawn_by_mouse(page: Any, digit: int) -> None:
    draw(page, DIGITS[digit])
    shown, rows = reading(page)
    assert shown == str(digit)
    assert [row.split()[0] for row in rows] == list("0123456789")
    shares = [int(row.replace("> 99", "100").split()[1]) for row in rows]
    assert shares[digit] == max(shares)
    assert 97 <= sum(shares) <= 103  # each is rounded
    assert not page.find_element("id", "hint").is_displayed()
    # What it prepared is what predict would have, of the same drawing as a picture file.
    drawing = np.array(page.execute_script("return Array.from(drawing())"), dtype=np.uint8).reshape(200, 200)
    seen = page.execute_script("return Array.from(seen.getImageData(0, 0, 28, 28).data)")
    seen = np.array(seen, dtype=np.uint8).reshape(28, 28, 4)
    ((prepared,),) = read_digits(colors(decode(Image.fromarray(drawing))))
    assert (seen[..., :3] == prepared.image[..., None]).all()
    assert (seen[..., 3] == 255).all()


@pytest.mark.slow
def test_prepares_any_drawing_like_predict(page: Any) -> None:
    """White on black, and away from the edge: there, predict may take a piece for a scrap."""
    generator = np.random.default_rng(1)
    for side in (28, 41, 60):  # in a larger one, predict takes noise for a sheet of paper
        margin, inner = side // 5, side - 2 * (side // 5)
        drawings = [generator.integers(0, 256, (inner, inner)), generator.random((inner, inner)) * 40 + 60]
        drawings += [(generator.random((inner, inner)) < 0.02) * 255]
        stroke = np.zeros((inner, inner))
        stroke[inner // 3 : inner // 2 + 1, inner // 4 :] = 255
        compare(page, *(np.pad(drawing, margin) for drawing in (*drawings, stroke, 0 * stroke)))


def compare(page: Any, *pictures: np.ndarray[Any, Any]) -> None:
    """Check that the page finds in ``pictures`` the digits that predict finds, and prepares them alike."""
    script = (
        "return prepare(arguments[0], arguments[1]).map((line) => line.map((digit) => Array.from(digit)))"
    )
    for picture in pictures:
        shown = page.execute_script(script, picture.astype(int).ravel().tolist(), len(picture))
        try:
            lines = read_digits(colors(decode(Image.fromarray(picture.astype(np.uint8)))))
        except UserError:
            lines = []
        assert [len(line) for line in shown] == [len(line) for line in lines]
        images = [found.image.ravel().astype(int) for line in lines for found in line]
        for ours, theirs in zip([image for line in shown for image in line], images, strict=True):
            assert np.abs(np.subtract(ours, theirs)).max() <= 1  # one half may be rounded either way


@pytest.mark.slow
def test_finds_the_digits_of_a_page_like_predict(page: Any) -> None:
    for seed in range(12):
        drawn = draw_page(seed, pens())[0].convert("L")
        drawn.thumbnail((200, 200))
        values = np.asarray(drawn).astype(int)
        ground = int(np.median(values))
        values = np.where(abs(values - ground) < 50, 0, abs(values - ground))  # white on black
        square = np.zeros((200, 200))
        square[: values.shape[0], : values.shape[1]] = values
        compare(page, square)


@pytest.mark.slow
def test_a_number_and_what_is_unsure(page: Any) -> None:
    def small(digit: int, left: float) -> list[list[tuple[float, float]]]:
        return [[(left + x / 2, 0.25 + y / 2) for x, y in stroke] for stroke in DIGITS[digit]]

    draw(page, [*small(4, -0.08), *small(2, 0.25), *small(7, 0.56)])
    assert page.find_element("id", "digit").text == "427"
    assert page.execute_script("return seen.canvas.width") == 3 * 28
    assert page.find_element("id", "certainty").text.replace("\u00a0", " ") == "> 99 %"
    box = page.find_element("id", "pad").rect
    assert page.find_element("id", "digit").rect["x"] > box["x"] + box["width"]
    page.find_element("id", "clear").click()
    draw(page, [[(x / 20, y / 20) for x in range(4, 17) for y in (4, 16)]])  # a black square
    best, runner_up = re.fullmatch(
        r"unsure:\n(\d) or (\d)", page.find_element("id", "certainty").text
    ).groups()  # type: ignore[union-attr]
    assert page.find_element("id", "digit").text == best != runner_up
    # The square is the unsure one, however probable the digit beside it is.
    page.find_element("id", "clear").click()
    square = [(x / 40, y / 40) for x in range(4, 14) for y in (14, 26)]
    draw(page, [square, *small(7, 0.5)])
    first, second = page.find_element("id", "digit").text
    assert page.find_element("id", "certainty").text.startswith(f"unsure:\n{first} or ") and second == "7"


@pytest.mark.slow
def test_unsure_is_what_predict_calls_so(page: Any) -> None:
    thresholds = page.execute_script("return [UNSURE, SOLID, APART, TALLER]")
    assert thresholds == [command.UNSURE, ink.SOLID, command.APART, command.TALLER]
    heights = "return prepare(arguments[0], arguments[1]).flat().map((digit) => digit.tall)"
    drawing = np.zeros((200, 200), dtype=int)
    drawing[50:90, 40:48] = drawing[54:86, 120:128] = 255
    assert page.execute_script(heights, drawing.ravel().tolist(), 200) == [40, 32]


@pytest.mark.slow
def test_works_without_offscreen_canvas(page: Any, page_url: str) -> None:
    source = "delete window.OffscreenCanvas"
    script = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    page.get(page_url)
    assert page.execute_script("return typeof OffscreenCanvas") == "undefined"
    draw(page, DIGITS[3])
    assert reading(page)[0] == "3"
    page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.slow
def test_finger_draws_and_clear_clears(page: Any, page_url: str) -> None:
    view(page, 390, 844, touch=True)
    page.get(page_url)
    draw(page, DIGITS[7], touch=True)
    assert reading(page)[0] == "7"
    assert page.execute_script("return scrollY") == 0
    page.find_element("id", "clear").click()
    settle(page)
    assert reading(page) == ("?", [f"{digit} –" for digit in range(10)])
    assert page.find_element("id", "hint").is_displayed()
    assert page.execute_script("return drawing().some(Boolean)") is False


@pytest.mark.slow
def test_second_finger_and_other_buttons_draw_nothing(page: Any) -> None:
    box = page.find_element("id", "pad").rect
    places = [
        {"x": box["x"] + box["width"] * share, "y": box["y"] + 200, "id": i}
        for i, share in enumerate((0.3, 0.7))
    ]
    moved = [place | {"x": place["x"] + 20} for place in places]
    for kind, points in ("touchStart", places[:1]), ("touchStart", places), ("touchMove", moved):
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    mouse = {"x": places[0]["x"], "y": places[0]["y"], "clickCount": 1}
    for event in ("mousePressed", "mouseReleased"):
        page.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": event, "button": "middle", **mouse})
    assert page.execute_script("return strokes.length") == 1
    drawn = page.execute_script("return strokes[0].map((point) => point[0])")
    assert len(drawn) > 1 and max(drawn) < 0.5  # the first finger's alone


@pytest.mark.slow
def test_stroke_ends_where_the_button_is_let_go_even_outside(page: Any) -> None:
    from selenium.webdriver import ActionChains

    draw(page, [[(0.5, 0.5), (1.2, 0.5)]])
    lengths = "return strokes.map((points) => points.length)"
    before = page.execute_script(lengths)
    ActionChains(page, duration=0).move_to_element(page.find_element("id", "pad")).perform()
    settle(page)
    assert page.execute_script(lengths) == before
    assert len(before) == 1


@pytest.mark.slow
def test_drawn_and_cleared_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "pad"
    left = [Keys.ARROW_LEFT] * 8
    right = [Keys.ARROW_RIGHT] * 16
    down = [Keys.ARROW_DOWN, Keys.ARROW_DOWN + Keys.ARROW_LEFT] * 9
    press(page, *left, Keys.SPACE, *right, *down, Keys.SPACE, *left)
    assert reading(page)[0] == "7"
    assert page.execute_script("return strokes.length") == 1
    press(page, Keys.ESCAPE)
    assert reading(page)[0] == "?"
    draw(page, [[(0.3, 0.3), (0.3, 0.7)]])
    press(page, *right, Keys.SPACE, *down)  # a second stroke: the mouse's is over
    lengths = page.execute_script("return strokes.map((points) => points.length)")
    assert lengths == [2, 1 + sum(map(len, down))]
    press(page, Keys.DELETE)
    assert reading(page)[0] == "?"
    press(page, Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "clear"


@pytest.mark.slow
def test_says_what_it_shows(page: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    page.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value")): node for node in nodes if "role" in node
    }
    pad = named["application", "Drawing area"]
    assert "arrow keys" in pad["description"]["value"]
    assert ("button", "Clear") in named
    assert ("image", "The picture that the network sees") in named
    assert ("table", "Probability of each digit") in named
    assert {("rowheader", str(digit)) for digit in range(10)} <= named.keys()
    status = page.find_element("id", "status")
    draw(page, DIGITS[7])
    shown = page.find_element("id", "certainty").text
    WebDriverWait(page, 20).until(lambda _: status.get_attribute("textContent").startswith("7"))
    assert status.get_attribute("textContent").replace("\u00a0", " ") == f"7, {shown}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height", "touch"), [(360, 640, True), (844, 390, True), (1400, 900, False)]
)
def test_fits_the_screen_and_stands_still(
    page: Any, page_url: str, width: int, height: int, touch: bool
) -> None:
    view(page, width, height, touch=touch)
    page.get(page_url)
    parts = "#pad, #clear, #digit, #seen, tr, td, td div, .notes p"
    box = "(element) => JSON.stringify(element.getBoundingClientRect())"
    places = f"return [...document.querySelectorAll('{parts}')].map({box})"
    empty = page.execute_script(places)
    draw(page, DIGITS[8], touch=touch)
    assert len(empty) > 30
    assert page.execute_script(places) == empty
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    scale = 2 if touch else 1
    assert page.execute_script("return pad.width / pad.clientWidth") == scale


@pytest.mark.slow
def test_ink_contrasts_with_the_paper_in_both_schemes(page: Any) -> None:
    draw(page, [[(0.5, 0.3), (0.5, 0.7)]])
    before = page.execute_script("return Array.from(drawing())")
    shades = {}
    for scheme in ("light", "dark"):
        view(page, 1280, 800, scheme)
        settle(page)
        with Image.open(io.BytesIO(page.find_element("id", "pad").screenshot_as_png)) as shown:
            grey = np.asarray(shown.convert("L"))
        ink, paper = (grey[len(grey) // 2, len(grey) // share] for share in (2, 4))
        shades[scheme] = (ink, paper)
    assert shades["light"][0] < 64 < 192 < shades["light"][1]
    assert shades["dark"][1] < 64 < 192 < shades["dark"][0]
    assert page.execute_script("return Array.from(drawing())") == before
