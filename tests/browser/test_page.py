"""The page in a real browser: a user is opened, cards appear, someone new is composed, a swap changes a card.

Needs Debian's `chromium` and `chromium-driver`. In continuous integration a missing browser is a failure.
Screenshots are kept in the folder that `DPPMG_SCREENSHOTS` names.
"""

import os
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import uvicorn

from recbole_dppmg.serving.app import create_app
from recbole_dppmg.serving.options import ServeOptions

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

PATIENCE_S = 90
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def address(engine, tmp_path_factory):
    """A server on a free port of this machine."""
    app, _ = create_app(engine, ServeOptions(store=tmp_path_factory.mktemp("page") / "cards.sqlite3"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert CHROMIUM and DRIVER, "continuous integration needs a browser: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    quiet = ("no-first-run", "disable-background-networking", "disable-dev-shm-usage", "hide-scrollbars")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", *quiet, f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    """A fresh page on a desk's screen; at the end nothing may be wrong in its console."""
    resize(browser, DESK)
    browser.get("about:blank")
    browser.get(address)
    until(browser, lambda: "items" in one(browser, "#about").text)
    yield browser
    wrong = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not wrong


def resize(browser, size):
    size = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def every(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def until(browser, true):
    # a list may be drawn anew while it is read
    waiting = WebDriverWait(browser, PATIENCE_S, 0.1, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: true())


def cards_ready(browser, number=8):
    until(browser, lambda: len(every(browser, ".card[data-card]")) == number)
    until(browser, lambda: browser.execute_script(
        "return [...document.querySelectorAll('.made img')].every((image) => image.complete && image.naturalWidth > 0)"
    ))  # fmt: skip


def keep(browser, name):
    """A screenshot of the whole page, as wide as the screen is."""
    if not (folder := os.environ.get("DPPMG_SCREENSHOTS")):
        return
    width, height = browser.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    before = browser.execute_script("return [innerWidth, innerHeight]")
    resize(browser, (width, min(height, 4000)))
    browser.execute_script("scrollTo(0, 0)")
    time.sleep(0.8)  # pictures that load when seen
    Path(folder).mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(Path(folder, f"{name}.png")))
    resize(browser, before)


def crowd(browser):
    """Titles and words as long as real ones may be."""
    browser.execute_script("""
        for (const text of document.querySelectorAll('.modality summary span, .card h3'))
            text.append(', with more words than fit in one line of any screen, and then some');
    """)


def covered_titles(browser):
    """Cards whose title is partly under a small picture."""
    return browser.execute_script("""
        return [...document.querySelectorAll('.card')].filter((card) => {
            const title = document.createRange();
            title.selectNodeContents(card.querySelector('h3'));
            const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
            const pictures = [...card.querySelectorAll('.aside figure:not([hidden])')];
            return [...title.getClientRects()].some((line) =>
                pictures.some((picture) => over(line, picture.getBoundingClientRect())));
        }).length;
    """)


def open_user(browser, user, field="#user"):
    one(browser, field).send_keys(user)
    until(browser, lambda: any(o.text == f"User {user}" for o in every(browser, ".options:not([hidden]) li")))
    one(browser, field).send_keys(Keys.ENTER)


def test_a_user_is_opened_and_cards_appear_and_a_swap_changes_them(page):
    open_user(page, "u4")
    until(page, lambda: one(page, "#profile-title").text == "User u4")
    assert len(every(page, "#history li")) > 5 and len(every(page, ".modality details")) == 8
    assert every(page, ".modality summary span")[0].text  # tokens come with their words
    cards_ready(page)
    card = one(page, ".card")
    before = card.find_element(By.CSS_SELECTOR, ".words").text
    image = card.find_element(By.CSS_SELECTOR, ".made img").get_attribute("src")
    assert "<text_0_" in before and one(page, "#status").text == "8 cards"
    keep(page, "user")

    open_user(page, "u5", "#other")
    until(page, lambda: "user u5" in one(page, "#swapped").text)
    cards_ready(page)
    assert card.find_element(By.CSS_SELECTOR, ".words").text != before
    assert card.find_element(By.CSS_SELECTOR, ".made img").get_attribute("src") != image
    assert card.find_element(By.CSS_SELECTOR, ".before img").get_attribute("src") == image
    keep(page, "swap")
    crowd(page)
    assert covered_titles(page) == 0

    one(page, "#swap-back").click()
    until(page, lambda: card.find_element(By.CSS_SELECTOR, ".words").text == before)
    assert not one(page, "#swapped").is_displayed()


def test_someone_new_is_composed_with_the_keyboard_alone(page):
    one(page, "input[value=known]").send_keys(Keys.ARROW_RIGHT)
    field = page.switch_to.active_element
    assert field.get_attribute("value") == "new"
    field.send_keys(Keys.TAB)
    for number in ("12", "16", "20"):
        field = page.switch_to.active_element
        assert field.get_attribute("id") == "item" and field.get_attribute("role") == "combobox"
        field.send_keys(f"film {number}")
        until(page, lambda n=number: [o.text for o in every(page, "[role=option]") if o.text.startswith(f"Film {n}")])
        field.send_keys(Keys.ARROW_DOWN)
        assert one(page, f"#{field.get_attribute('aria-activedescendant')}").get_attribute("aria-selected") == "true"
        field.send_keys(Keys.ENTER)
    assert len(every(page, "#liked li")) == 3
    field.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "recommend"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    until(page, lambda: one(page, "#profile-title").text == "Someone new")
    cards_ready(page)
    assert page.switch_to.active_element.get_attribute("id") == "profile-title"  # where a screen reader goes on
    keep(page, "new")


def test_it_fits_a_phone(page, address):
    resize(page, PHONE)
    page.get(f"{address}/#user=u6")
    page.refresh()
    cards_ready(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    small = page.execute_script("""
        const controls = [...document.querySelectorAll('button, input, summary')].filter((c) => c.offsetParent);
        const small = (c) => c.type !== 'radio' && c.getBoundingClientRect().height < 32;
        return controls.filter(small).map((c) => c.outerHTML);
    """)
    assert small == []
    keep(page, "phone")
    crowd(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    assert covered_titles(page) == 0


def test_hostile_titles_show_as_text(page):
    one(page, "input[value=new] + span").click()
    one(page, "#item").send_keys("script")
    until(page, lambda: any("<script>alert" in option.text for option in every(page, "[role=option]")))
    one(page, "#item").send_keys(Keys.ENTER)
    assert "<script>alert('x')</script>" in one(page, "#liked").text
    assert not page.execute_script(
        "return [...document.scripts].some((script) => script.textContent.includes('alert'))"
    )


def test_everything_has_a_name_and_an_order(page):
    open_user(page, "u4")
    cards_ready(page)
    nameless = page.execute_script("""
        const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length);
        return [...document.querySelectorAll('button, input, a, summary, section')]
            .filter((e) => !named(e) && !e.getAttribute('aria-labelledby')).map((e) => e.outerHTML)
            .concat([...document.querySelectorAll('img:not([alt])')].map((e) => e.outerHTML));
    """)
    assert nameless == []
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert one(page, "html").get_attribute("lang") == "en"
    assert one(page, "#status").get_attribute("aria-live") == "polite"


def test_a_problem_is_told_and_the_page_goes_on(page, address):
    page.get(f"{address}/#user=nobody")
    page.refresh()
    until(page, lambda: "'nobody'" in one(page, "#problem").text)
    page.get_log("browser")  # the 404 is told in the console too
    one(page, "#user").clear()
    open_user(page, "u4")
    until(page, lambda: one(page, "#profile-title").text == "User u4")
    assert not one(page, "#problem").is_displayed()
