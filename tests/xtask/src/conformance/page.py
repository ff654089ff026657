"""Use the documentation page as a person would, wide, narrow and dark; leave pictures of it."""

import json
import os
import shutil
import sys

from playwright.sync_api import expect, sync_playwright

SERVER, PICTURES, KEY = sys.argv[1], sys.argv[2], os.environ["KEY"]
HOSTILE = "<img src=x onerror=window.broken=1><script>window.broken=1</script> `<b>bold</b>`"
SCREENS = [("wide", 1440, 1000, "light"), ("narrow", 390, 844, "light"), ("dark", 1280, 900, "dark")]


def watched(browser, problems, width=1280, height=900, scheme="light"):
    """A page whose every complaint and every request to somebody else is a problem."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(SERVER + "/") or problems.append(request.url))
    return page


def enter(page):
    page.goto(SERVER + "/docs")
    expect(page.locator("#models")).to_have_count(0)
    # By keyboard alone.
    page.locator("#key").focus()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#models")).to_contain_text("toxicity")


def predict(page):
    """Send a prediction by the form, and read what came back."""
    operation = page.locator("details.operation", has=page.locator("summary", has_text="/v1/predict")).first
    operation.locator("> summary").press("Enter")
    operation.locator("form.try textarea").fill('{"text": "You are nice"}')
    operation.locator("form.try button.primary").click()
    expect(operation.locator(".response .status")).to_have_text("200 OK")
    answer = json.loads(operation.locator(".response pre.body").inner_text())
    assert answer["label"] == "clean", answer
    command = operation.locator(".command pre").inner_text()
    assert "$KEY" in command and KEY not in command, command
    assert "/v1/predict" in command and "You are nice" in command, command


def poison(value):
    """The same document, in which every description is a stranger's."""
    if isinstance(value, dict):
        words = ("description", "summary", "title")
        return {name: HOSTILE if name in words and isinstance(inner, str) else poison(inner) for name, inner in value.items()}
    return [poison(inner) for inner in value] if isinstance(value, list) else value


def poisoned(route):
    response = route.fetch()
    route.fulfill(response=response, body=json.dumps(poison(response.json())))


def check_strangers_text(browser, problems):
    page = watched(browser, problems)
    page.route("**/openapi.json", poisoned)
    enter(page)
    for operation in page.locator("details.operation > summary").all():
        operation.click()
    expect(page.locator("#content")).to_contain_text("<script>window.broken=1</script>")
    assert page.evaluate("window.broken") is None, "a description ran a script"
    assert page.locator("main img, main script, main b").count() == 0, "a description became markup"


def check_wrong_key(browser):
    page = browser.new_page()
    page.goto(SERVER + "/docs")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#status")).to_have_class("failure")
    expect(page.locator("nav")).to_be_hidden()


os.makedirs(PICTURES, exist_ok=True)
problems = []
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    for name, width, height, scheme in SCREENS:
        page = watched(browser, problems, width, height, scheme)
        enter(page)
        page.screenshot(path=f"{PICTURES}/{name}-list.png")
        predict(page)
        page.screenshot(path=f"{PICTURES}/{name}-answer.png")
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), f"{name} is too wide"
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.locator("#scope").select_option(label="Model toxicity")
    expect(page.locator("#title")).to_contain_text("toxicity")
    check_strangers_text(browser, problems)
    check_wrong_key(browser)
    browser.close()
assert not problems, "\n".join(problems)
print(f"the page works; its pictures are in {PICTURES}")
