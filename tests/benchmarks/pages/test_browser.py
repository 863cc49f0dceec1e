"""Pages in a real Chromium, driven by Playwright: `make test-engines`.

Runs where MATHENV_TEST_ENGINES names chromium. MATHENV_CHROMIUM is the browser's path where it
is not found by name; MATHENV_SCREENSHOTS a folder for pictures of every state.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages.page import write_report
from mathenv.types import Grade, GradeStatus, Span, SpanKind, StopReason, TokenRecord

pytestmark = pytest.mark.skipif(
    "chromium" not in os.environ.get("MATHENV_TEST_ENGINES", "").split(","),
    reason="MATHENV_TEST_ENGINES does not name chromium (make test-engines)",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, on a busy machine
MANY = 10_000
# Milliseconds until a page of so many can be used, and to draw one frame while the list is
# scrolled: 425 and 17 on two busy cores without a GPU, so there is room for a slower machine.
READY, FRAME = 5_000, 500


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("MATHENV_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert path, "no Chromium was found: name it in MATHENV_CHROMIUM"
    with sync_playwright() as playwright:
        # Root cannot have Chromium's own sandbox; the pages here are ours.
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a file and fail on any error, dialog, or request but for the file itself."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def visit(file: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        address = file.resolve().as_uri()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url == address or complaints.append(f"asks {request.url}"),
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def report(training_run, tmp_path_factory) -> Path:
    return write_report(training_run.path, tmp_path_factory.mktemp("report") / "report.html")


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("MATHENV_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page: Any, label: str, option: str) -> None:
    """Choose the option that starts with a text."""
    select = page.get_by_label(label, exact=True)
    found = [t for t in select.locator("option").all_inner_texts() if t.startswith(option)]
    select.select_option(label=found[0])


def count(page: Any) -> str:
    return page.locator("#count").inner_text()


def sees(page: Any, selector: str, text: str) -> None:
    """Wait until an element with this text can be seen."""
    page.locator(selector).filter(has_text=text).first.wait_for()


def test_tables_curves_and_settings(visit, report: Path) -> None:
    page = visit(report)
    assert page.locator("#tables td").filter(has_text="75.0%").count() == 1
    assert page.locator("#charts figure").count() == 2
    plot = page.locator("#charts svg[role=img]").first
    assert "mdpo: first 25.0%, last 75.0%" in plot.get_attribute("aria-label")
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    sees(page, ".readout", "iteration 1: mdpo 75.0% (53.1% to 88.8%)")
    choose(page, "Show", "mdpo, seed 0")
    sees(page, "figcaption", "Reward margin")
    page.locator("#charts .values summary").first.click()
    sees(page, "#charts td", "before")
    page.locator("#settings summary").first.click()
    sees(page, "#settings th", "problems.source")
    picture(page, "curves")


def test_filters_and_search(visit, report: Path) -> None:
    page = visit(report)
    assert count(page) == "51 of 51 trajectories"
    choose(page, "Stage", "rollouts")
    assert count(page) == "8 of 51 trajectories"
    choose(page, "Verdict", "incorrect (4)")
    assert count(page) == "4 of 51 trajectories"
    choose(page, "Training", "rejected (4)")
    page.get_by_label("Problem", exact=True).fill("P2")
    assert count(page) == "1 of 51 trajectories"
    sees(page, "#detail h3", "p2")
    page.get_by_label("Problem", exact=True).fill("nowhere")
    sees(page, "#detail", "Nothing fits")
    page.get_by_role("button", name="Clear").click()
    assert count(page) == "51 of 51 trajectories"
    choose(page, "Iteration", "iteration 1")
    assert count(page) == "30 of 51 trajectories"


def test_a_pair_token_by_token(visit, report: Path) -> None:
    page = visit(report)
    choose(page, "Training", "chosen")
    sees(page, "#detail .c-comment", "# a sum")
    sees(page, "#detail .output pre", "4")
    page.get_by_role("button", name="Chosen and rejected").click()
    assert page.locator("#detail .side").all_inner_texts()[0].startswith("Chosen")
    page.get_by_role("button", name="Tokens").click()
    sees(page, "#detail .sum", "margin")
    sides = page.locator("#detail .side")
    left, right = sides.nth(0).bounding_box(), sides.nth(1).bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    assert sides.first.locator(".kind-sampled .token:not(.trained)").count() == 0
    assert sides.first.locator(".kind-observation .trained, .kind-prompt .trained").count() == 0
    coloured = sides.first.locator("[class*='up-'], [class*='down-']")
    assert coloured.count() > 0
    colours = coloured.evaluate_all(
        "all => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colours)) > 1
    sides.first.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    sees(page, ".readout", "prompt, turn 1, not trained")
    picture(page, "pair")


def test_the_keyboard_is_enough(visit, report: Path) -> None:
    page = visit(report)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("p1")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "list"
    assert count(page) == "2 of 51 trajectories"
    page.keyboard.press("j")
    assert page.locator(".row[aria-selected=true]").get_attribute("aria-posinset") == "2"
    assert page.locator("#list").get_attribute("aria-activedescendant") == "row-1"
    sees(page, "#detail .verdict", "incorrect")
    page.keyboard.press("ArrowUp")
    sees(page, "#detail .verdict", "correct")
    page.keyboard.press("t")
    sees(page, "#detail .token-kind", "model, turn 1")
    page.keyboard.press("p")
    sees(page, "#detail h4", "Rejected")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    assert page.evaluate(outline) == "solid"


def test_every_control_has_a_name(visit, report: Path) -> None:
    page = visit(report)
    page.keyboard.press("t")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [tabindex='0']")]
        .filter((node) => !(node.getAttribute("aria-label") || node.closest("label") ||
                            node.textContent.trim()))
        .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(visit, report: Path, scheme: str) -> None:
    """Contrast of text and background at least 4.5 (WCAG 2.1, 1.4.3), colours of tokens too."""
    page = visit(report, color_scheme=scheme)
    choose(page, "Training", "chosen")
    weak = page.evaluate(CONTRAST)
    page.keyboard.press("t")
    page.keyboard.press("p")
    sees(page, "#detail .token-kind", "model, turn 1")
    picture(page, f"tokens-{scheme}")
    assert weak + page.evaluate(CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Theme")
    while "light" not in button.inner_text():
        button.click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


CONTRAST = """() => {
  const parts = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const behind = (node) => {
    const layers = [];
    for (let n = node; n; n = n.parentElement)
      layers.push(parts(getComputedStyle(n).backgroundColor));
    let [r, g, b] = [255, 255, 255];
    for (const [lr, lg, lb, a] of layers.reverse())
      [r, g, b] = [r + (lr - r) * a, g + (lg - g) * a, b + (lb - b) * a];
    return [r, g, b];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) =>
      v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const weak = [];
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.getClientRects().length || node.tagName === "SCRIPT") continue;
    const style = getComputedStyle(node);
    const ink = node.ownerSVGElement ? style.fill : style.color;
    const pair = [light(parts(ink).slice(0, 3)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${node.className} ${text.data.slice(0, 30)}`);
  }
  return weak;
}"""


def test_a_phone_shows_one_thing_at_a_time(visit, report: Path) -> None:
    page = visit(report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)

    def wide() -> bool:
        return page.evaluate("document.documentElement.scrollWidth > innerWidth")

    assert not wide()
    assert not page.locator("#detail").is_visible()
    choose(page, "Training", "chosen")
    picture(page, "phone-list")
    page.locator(".row").first.tap()
    page.locator("#detail").wait_for()
    assert not page.locator("#list").is_visible()
    page.get_by_role("button", name="Tokens").tap()
    page.get_by_role("button", name="Chosen and rejected").tap()
    sees(page, "#detail h4", "Rejected")
    picture(page, "phone-pair")
    assert not wide()
    page.get_by_role("button", name="Back to the list").tap()
    page.locator("#list").wait_for()
    assert not page.locator("#detail").is_visible()


def test_hostile_text_does_nothing(visit, tmp_path, write_episodes, hostile) -> None:
    file = tmp_path / "<img src=x onerror=window.pwned=1>.jsonl"
    write_episodes(file, hostile)
    page = visit(write_report(file, tmp_path / "hostile.html"))
    for _ in hostile:
        for mode in ("t", "t"):
            page.keyboard.press(mode)
        page.keyboard.press("j")
    sees(page, "#detail .question", "\\u202egnissim\\u202c \\x1b[2J \\x00")
    picture(page, "hostile")
    for label in ("Level", "Problem"):
        assert page.get_by_label(label, exact=True).count() == 1
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, iframe, base, body svg").count() == 0
    assert page.title() == f"{tmp_path.name}/{file.name}"


@pytest.mark.timeout(600)
def test_ten_thousand_trajectories_open(visit, tmp_path, write_episodes, make_episode) -> None:
    page_file = write_report(many(tmp_path / "many.jsonl", write_episodes, make_episode))
    page = visit(page_file)
    ready = page.evaluate("performance.now()")
    assert count(page) == "10,000 of 10,000 trajectories"
    assert page.locator(".row").count() < 60  # only what is in sight is rendered
    page.locator("#list").focus()
    page.keyboard.press("End")
    sees(page, "#detail h3", f"problem/{MANY - 1}")
    choose(page, "Verdict", "incorrect")
    sees(page, "#count", "3,333 of 10,000")
    longest = page.evaluate(SLOWEST_FRAME)
    page.keyboard.press("/")
    page.keyboard.type("problem/778")
    sees(page, "#count", "1 of 10,000")
    print(
        f"{MANY} trajectories: {page_file.stat().st_size / 1e6:.1f} MB, interactive after "
        f"{ready:.0f} ms, slowest frame while scrolling {longest:.0f} ms"
    )
    assert ready < READY
    assert longest < FRAME
    picture(page, "many")


SLOWEST_FRAME = """async () => {
  const list = document.getElementById("list");
  const frame = () => new Promise(requestAnimationFrame);
  let last = await frame(), slowest = 0;
  for (let i = 0; i <= 60; i++) {
    list.scrollTop = (list.scrollHeight * i) / 60;
    const now = await frame();
    slowest = Math.max(slowest, now - last);
    last = now;
  }
  return slowest;
}"""


def many(file: Path, write_episodes, make_episode) -> Path:
    """Write episodes of two turns and 400 tokens, a third of them wrong."""
    draw = random.Random(0)
    ends = (SpanKind.PROMPT, 100), (SpanKind.SAMPLED, 250), (SpanKind.OBSERVATION, 320)
    spans, start = [], 0
    for kind, end in (*ends, (SpanKind.SAMPLED, 400)):
        spans.append(Span(kind, int(start >= 250), start, end))
        start = end
    episodes = []
    for number in range(MANY):
        wrong = number % 3 == 1
        made = make_episode(f"problem/{number}", not wrong, prose=f"{draw.random()} ")
        tokens = TokenRecord(
            ids=tuple(draw.randrange(30_000) for _ in range(400)),
            spans=tuple(spans),
            logprobs=tuple(-draw.expovariate(1.0) for _ in range(230)),
        )
        verdict = Grade(False, GradeStatus.INCORRECT, "5") if wrong else made.grade
        stop = StopReason.ANSWERED if number % 5 else StopReason.HORIZON
        episodes.append(replace(made, tokens=tokens, grade=verdict, stop_reason=stop))
    write_episodes(file, episodes)
    return file
