"""The page in a real browser: what people click, press and paint, and what no name and no address can do."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from functools import partial

import numpy as np
import pytest
from PIL import ExifTags, Image

from photo_folder import NAMES, NASTY, open_app, save_checkpoint, write_photos
from wsss_afa.cli.run_folder import release
from wsss_afa.data.images import read_image, read_mask
from wsss_afa.errors import printable

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
exceptions = pytest.importorskip("selenium.common.exceptions")
server = pytest.importorskip(
    "wsss_afa.web.server", reason="the extra app is not installed", exc_type=ImportError
)
page = pytest.importorskip("wsss_afa.web.page", reason="the extra app is not installed", exc_type=ImportError)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the server's packages
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1400",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    ckpt = save_checkpoint(folder / "best.ckpt")
    yield open_app(ckpt, write_photos(folder / "photos"), folder / "review")
    release()


@pytest.fixture(scope="module")
def url(opened):
    running = server.Server(partial(page.build_page, opened), "127.0.0.1", 0)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running.url
    running.stop()
    thread.join()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(url, downloads):
    options = webdriver.ChromeOptions()
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for each in OPTIONS:
        options.add_argument(each)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    script = {"source": "window.alert = () => { window.harmed = true; };"}
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    driver.get(url)
    yield driver
    driver.quit()


def wait(look, seconds=30):
    """What a look at the page finds, once it finds something."""
    end, found = time.monotonic() + seconds, None
    while not found and time.monotonic() < end:
        try:
            found = look()
        except (exceptions.WebDriverException, IndexError):
            found = None
        time.sleep(0.05)
    assert found, "it did not appear in time"
    return found


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def source(browser, selector):
    return wait(lambda: all_of(browser, selector)[-1].get_attribute("src"))


def go_to(browser, tab):
    wait(lambda: [each for each in all_of(browser, "button[role=tab]") if each.text == tab])[0].click()


def press(browser, key):
    browser.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))", key)


def place(browser):
    """Which photo the desk shows."""
    return wait(lambda: all_of(browser, ".desk:not([hidden]) .stage")[0].get_attribute("data-place"))


def shown(opened):
    return {str(i): photo.name for i, photo in enumerate(opened.labeller.photos)}


def test_a_slider_changes_the_picture(browser):
    before = source(browser, "#tried .two img")
    slider = wait(lambda: all_of(browser, "input[type=range]"))[0]
    webdriver.ActionChains(browser).move_to_element(slider).move_by_offset(60, 0).click().perform()
    wait(lambda: source(browser, "#tried .two img") != before)
    number = float(all_of(browser, "input[type=number]")[0].get_attribute("value"))
    assert number > 0.5


def test_a_photo_is_uploaded_and_its_mask_downloaded(browser, opened, downloads, tmp_path):
    """The mask has the photo's own size, upright, though the network sees it smaller."""
    before, path = source(browser, "#tried .two img"), tmp_path / "<i>my photo.jpg"
    opened.labeller.data.max_side = 64
    picture, turned = Image.open(opened.labeller.photos[-1].path).resize((150, 90)), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture.save(path, exif=turned)
    all_of(browser, "#upload input[type=file]")[0].send_keys(str(path))
    wait(lambda: source(browser, "#tried .two img") != before)
    wait(lambda: [each for each in all_of(browser, "button") if each.text == "Download the mask"])[0].click()
    file = wait(lambda: [each for each in downloads.iterdir() if each.suffix == ".png"])[0]
    opened.labeller.data.max_side = None
    assert read_mask(file, (150, 90), len(NASTY)).size == 150 * 90


def test_tune_shows_ten_photos_and_follows_its_sliders(browser):
    go_to(browser, "Tune")
    wait(lambda: len(all_of(browser, "#tuned figure")) == 10)
    before = [each.get_attribute("src") for each in all_of(browser, "#tuned img")]
    slider = wait(lambda: [each for each in all_of(browser, "input[type=range]") if each.is_displayed()])[0]
    webdriver.ActionChains(browser).move_to_element(slider).click().perform()
    changed = lambda: [each.get_attribute("src") for each in all_of(browser, "#tuned img")] != before  # noqa: E731
    wait(changed)
    command = wait(lambda: all_of(browser, "#command textarea"))[0]
    wait(lambda: "background=0.5" in command.get_attribute("value"))


def test_a_mistake_is_a_message(browser):
    go_to(browser, "Review")
    wait(lambda: all_of(browser, "#hand_on button"))[0].click()
    wait(lambda: [each for each in all_of(browser, "button") if each.text == "Write"])[0].click()
    wait(lambda: "no mask is accepted" in all_of(browser, ".toast-body")[0].text)


def test_accept_reject_and_paint_then_reload_and_go_on(browser, opened):
    go_to(browser, "Review")
    wait(lambda: all_of(browser, "#make"))[0].click()
    order, names = opened.review, shown(opened)
    first = place(browser)
    assert names[first] == order.order[0]
    press(browser, "a")
    second = wait(lambda: place(browser) != first and place(browser))
    press(browser, "r")
    third = wait(lambda: place(browser) != second and place(browser))
    assert [names[each] for each in (first, second, third)] == order.order[:3]
    paint(browser)
    fourth = wait(lambda: place(browser) != third and place(browser))
    decided = {names[first]: "accept", names[second]: "reject", names[third]: "paint"}
    assert opened.review.decisions == decided
    check_masks(opened, names[first], names[third])
    browser.refresh()
    go_to(browser, "Review")
    assert place(browser) == fourth, "the queue goes on where it was"
    press(browser, "p")
    wait(lambda: place(browser) == third)
    assert wait(lambda: all_of(browser, "[data-decision]")[0].text) == "painted"


def paint(browser):
    """A stroke of ignored pixels through the middle, and one of background at the left edge."""
    canvas = all_of(browser, "[data-canvas]")[0]
    wide = canvas.size["width"]
    all_of(browser, "[data-brush='255']")[0].click()
    chain = webdriver.ActionChains(browser).move_to_element(canvas).move_by_offset(-wide // 4, 0)
    chain.click_and_hold().move_by_offset(wide // 2, 0).release().perform()
    press(browser, "e")
    webdriver.ActionChains(browser).move_to_element(canvas).move_by_offset(2 - wide // 2, 0).click().perform()
    press(browser, "s")


def check_masks(opened, accepted, painted):
    """The accepted mask is what was proposed; the painted one has the strokes and nothing else."""
    root, photos = opened.review.root, {photo.name: photo.path for photo in opened.labeller.photos}
    size = {name: read_image(photos[name]).shape[:2] for name in (accepted, painted)}
    pairs = [
        (read_mask(root / "proposed" / f"{name}.png", size[name]), read_mask(path, size[name]))
        for name, path in (
            (accepted, root / "masks" / f"{accepted}.png"),
            (painted, root / "corrected" / f"{painted}.png"),
        )
    ]
    np.testing.assert_array_equal(*pairs[0])
    before, after = pairs[1]
    height, width = after.shape
    assert (after[height // 2, width // 3 : 2 * width // 3] == 255).all()
    assert after[height // 2, 0] == 0
    np.testing.assert_array_equal(before[: height // 3], after[: height // 3])


def test_names_are_text_wherever_they_appear(browser):
    text = ""
    for tab in ("Tune", "Review", "Try"):
        go_to(browser, tab)
        wait(
            lambda: browser.execute_script(
                "return document.querySelector('figcaption, [data-title]').textContent"
            )
        )
        text += browser.execute_script("return document.body.textContent")
    for list_of in ("#tags input", "#photo input"):
        wait(lambda each=list_of: all_of(browser, each))[0].click()
        text += wait(lambda: all_of(browser, "ul[role=listbox]"))[0].text
    for name in (*NASTY, *map(printable, NAMES[:2])):
        assert name in text
    for selector in ("img[src='x']", "b[onmouseover]"):
        assert not all_of(browser, selector)
    assert not browser.execute_script("return window.harmed")


def test_a_phone_shows_everything(browser):
    metrics = {"width": 420, "height": 860, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for tab in ("Try", "Tune", "Review"):
        go_to(browser, tab)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
    box = wait(lambda: all_of(browser, "[data-act=accept]"))[0].rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 420
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_other_host_is_asked(browser, url):
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(each.startswith(url) for each in asked)
    assert not [each for each in asked if not each.startswith((url, "data:", "blob:"))]
    assert not [each["message"] for each in browser.get_log("browser") if each["level"] == "SEVERE"]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/gradio_api/file=/etc/passwd", "127.0.0.1", 403),
        ("/gradio_api/file=/etc/../etc/passwd", "127.0.0.1", 403),
        ("/gradio_api/file={photo}", "127.0.0.1", 403),
        ("/gradio_api/file={ckpt}", "127.0.0.1", 403),
        ("/", "evil.example", 400),
    ],
)
def test_no_file_and_no_foreign_name_is_served(url, opened, path, host, status):
    photo = opened.labeller.photos[-1].path
    path = path.format(photo=photo, ckpt=photo.parents[1] / "best.ckpt")
    request = urllib.request.Request(url + path, headers={"Host": host})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as error, urllib.request.urlopen(request, timeout=10):  # noqa: S310
        pass
    assert error.value.code == status
    error.value.close()
