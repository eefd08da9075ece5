"""The page of `ocdit app`, in a browser without a window, and with twenty visitors at once."""

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdit_core.images import read_image, write_image
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")
EXAMPLES = Path(__file__).parents[3] / "examples"
WAIT = 120  # seconds


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Serve the page with the embedded model and three of the example objects."""
    from ocdit_core.app.page import server_of
    from ocdit_core.app.studio import Studio

    library = tmp_path_factory.mktemp("app") / "library"
    add_objects(library, [EXAMPLES / "meshes" / f"{name}.glb" for name in ("melon", "mallet", "striped_mug")], unit="m")
    studio = Studio(Segmenter.from_pretrained("ocdit-small"), ObjectLibrary(library))
    images = [EXAMPLES / "images" / f"{name}.jpg" for name in ("table", "bin")]
    server = server_of(studio, images)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    studio.close()


class Browser:
    """Chromium on the page.

    Args:
        url: address of the page.
    """

    def __init__(self, url: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(option)
        options.binary_location = shutil.which("chromium")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_window_size(1400, 1600)
        self.url = url

    def open(self) -> None:
        self.driver.get(self.url)
        self.find("#photo input[type=file]")

    def find(self, selector):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, WAIT).until(
            lambda d: (d.find_elements("css selector", selector) or [None])[0]
        )

    def press(self, selector):
        """Click on a button, also while something is being drawn over it."""
        self.driver.execute_script("arguments[0].click()", self.find(selector))

    def unfold(self, title):
        self.driver.find_element("xpath", f"//button[.//span[contains(text(), '{title}')]]").click()

    def drop(self, selector, *files):
        self.find(f"{selector} input[type=file]").send_keys("\n".join(map(str, files)))

    def wait_until(self, condition, message=""):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, WAIT).until(lambda _: condition(), message)

    def wait_for_status(self, text):
        self.wait_until(lambda: text in self.find("#status").text, f"{text!r} was not shown")

    def click_on_result(self, x, y):
        """Click on a pixel of the image of 640 x 480."""
        from selenium.webdriver.common.action_chains import ActionChains

        image = self.find("#result img")
        dx, dy = (
            (place / side - 0.5) * image.size[name] for place, side, name in ((x, 640, "width"), (y, 480, "height"))
        )
        ActionChains(self.driver).move_to_element_with_offset(image, round(dx), round(dy)).click().perform()

    def result(self):
        return self.find("#result img").get_attribute("src")

    def table(self):
        return self.find("#table").text

    def urls(self):
        """Return the addresses of all requests since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(address):
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver (Debian: chromium-driver) are not installed")
    browser = Browser(address)
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def melon():
    """A pixel of the melon on the example image of a table."""
    truth = json.loads((EXAMPLES / "images" / "table.json").read_text())
    from ocdit_core.masks import decode_mask

    mask = next(decode_mask(o["segmentation"]) for o in truth["objects"] if o["object_id"] == "melon")
    rows, columns = np.nonzero(mask)
    middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    return int(columns[middle]), int(rows[middle])


@pytest.mark.slow
@pytest.mark.weights
def test_a_visit(browser, melon, tmp_path):
    browser.open()
    # An example image is segmented at once.
    browser.press("#examples button.gallery-item, #examples .thumbnail-item")
    browser.wait_for_status("found in")
    assert "melon" in browser.table()

    # A click is a prompt, and forgotten on demand.
    before = browser.result()
    browser.click_on_result(*melon)
    browser.wait_until(lambda: browser.result() != before)
    clicked = browser.result()
    browser.press("#clear")
    browser.wait_until(lambda: browser.result() != clicked)

    # Broken files are named, and everything else stays.
    for name in ("broken.jpg", "broken.glb"):
        (tmp_path / name).write_bytes(b"nonsense")
    browser.drop("#photo", tmp_path / "broken.jpg")
    browser.wait_for_status("broken.jpg: ")
    assert str(tmp_path) not in browser.find("#status").text
    assert "melon" in browser.table()
    browser.unfold("Add an object")
    browser.drop("#files", tmp_path / "broken.glb")
    browser.find("#files .file-name, #files td")
    browser.press("#add")
    browser.wait_for_status("broken.glb: ")

    # A CAD file becomes an object.
    browser.press("#files button[aria-label=Clear]")
    browser.drop("#files", EXAMPLES / "meshes" / "ornament.glb")
    browser.find("#files .file-name, #files td")
    browser.press("#add")
    browser.wait_for_status("ornament is added")
    browser.drop("#photo", EXAMPLES / "images" / "table.jpg")
    browser.wait_for_status("found in")
    assert "ornament" in browser.table()
    browser.unfold("Download, uncertainty, time")
    browser.press("#download")
    browser.wait_for_status("masks are packed")
    browser.press("#denoise")
    browser.wait_for_status("steps are drawn")
    browser.find("#steps img")


def test_nothing_is_fetched_from_elsewhere(browser):
    browser.open()
    urls = [url for url in browser.urls() if not url.startswith(("data:", "blob:"))]
    assert urls
    assert [url for url in urls if not url.startswith(browser.url)] == []


def test_the_page_fits_a_phone(browser):
    browser.driver.set_window_size(500, 900)  # the narrowest window that Chromium has
    browser.open()
    width, inside = browser.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= inside


@pytest.mark.slow
@pytest.mark.weights
def test_twenty_visitors_at_once_get_their_own_results(address, tmp_path):
    table = read_image(EXAMPLES / "images" / "table.jpg")
    plain = np.full_like(table, 128)
    files = []
    for number in range(20):
        files.append(tmp_path / f"{number}.png")
        # Every second one has nothing to find; the others differ in size.
        scale = 1 + number / 100
        image = plain if number % 2 else cv2.resize(table, None, fx=scale, fy=scale)
        write_image(files[-1], image)

    def visit(path):
        client = gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": WAIT})
        result = client.predict(gradio_client.handle_file(path), ["melon"], 0.5, api_name="/open")
        return result

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(visit, files))
    for path, (status, drawing, found, *_) in zip(files, results, strict=True):
        shape = read_image(path).shape
        assert read_image(drawing).shape == shape
        seen = int(path.stem) % 2 == 0
        assert status.startswith("1 object found" if seen else "0 objects found"), status
        assert ("not found" in found) != seen


def test_the_server_survives_nonsense(address):
    client = gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": WAIT})
    image = gradio_client.handle_file(EXAMPLES / "images" / "bin.jpg")
    status, *_ = client.predict(None, ["melon"], 0.5, api_name="/open")
    assert status == "Choose an image."
    status, *_ = client.predict(image, [], 0.5, api_name="/open")
    assert "at least one object" in status
    for values in ((image, ["plate"], 0.5), (image, ["melon"], "high")):
        with pytest.raises(gradio_client.exceptions.AppError):
            client.predict(*values, api_name="/open")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}gradio_api/file=/etc/hostname", timeout=WAIT)
    assert urllib.request.urlopen(address, timeout=WAIT).status == 200
