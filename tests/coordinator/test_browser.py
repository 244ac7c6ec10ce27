"""The pages in a real browser: they open, draw, change while they are read, and shut nobody out.

Needs Debian's ``chromium`` and ``chromium-driver``; without them these tests are skipped. Pictures
of the pages go to ``ARTEL_SCREENSHOTS``, or into the test's folder.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from artel.coordinator.releasing import ReleaseFacts, Releases
from artel.coordinator.service import Coordinator
from artel.coordinator.web import RunPage
from artel.ledger import entries
from artel.ledger.web import server
from artel.ledger.web.server import Gate, Limits
from artel.ledger.web.site import LedgerSite
from artel.node import status
from artel.node.control import OwnerOrder
from artel.node.settings import facts
from artel.protocol.listing import ListingRecord
from artel.protocol.net.doors import Directory
from ledger_world import World, key
from page_world import node_status
from places import FIXTURES
from run_page_world import INVITE, connect, coordinating, numbers_of, published

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
    ),
]
AXE = (FIXTURES / "browser/axe.min.js").read_text(encoding="utf-8")
ROUNDS = 24
SAMPLE = "def main(args):\n    # What a small model makes up.\n    return [each for each in args]\n"
SIZES = {"desktop": (1200, 900), "phone": (390, 844)}
WAIT_S = 120
"""For whatever a browser is waited for: a machine may be busy."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER, log_output=subprocess.DEVNULL))
    driver.set_page_load_timeout(WAIT_S)
    driver.set_script_timeout(WAIT_S)
    yield driver
    driver.quit()


async def no_runs() -> list[ListingRecord]:
    return []


@dataclass
class Opened:
    """A run's page on a real port, and the browser that looks at it."""

    core: Coordinator
    world: World
    url: str
    driver: Any

    async def do(self, call: Callable[..., T], *arguments: Any) -> T:
        """What the driver does, beside the server."""
        return await asyncio.to_thread(call, *arguments)

    async def open(self, path: str) -> None:
        await self.do(self.driver.get, self.url + path)

    async def script(self, code: str, *arguments: Any) -> Any:
        return await self.do(self.driver.execute_script, code, *arguments)

    async def until(self, code: str) -> Any:
        """Wait until an expression is true."""

        def wait() -> Any:
            waiting = WebDriverWait(self.driver, WAIT_S, poll_frequency=0.1)
            return waiting.until(lambda driver: driver.execute_script(f"return {code}"))

        return await self.do(wait)

    async def follows(self) -> None:
        await self.until("document.getElementById('link').textContent === 'live'")

    async def errors(self) -> list[str]:
        """What the browser complains of."""
        found: list[dict[str, str]] = await self.do(self.driver.get_log, "browser")
        return [each["message"] for each in found if each["level"] in ("SEVERE", "WARNING")]

    async def look(self, size: str, scheme: str) -> None:
        """Be a desktop or a phone, in light or dark."""
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        metrics["mobile"] = size == "phone"
        feature = {"name": "prefers-color-scheme", "value": scheme}
        for command, values in (
            ("Emulation.setDeviceMetricsOverride", metrics),
            ("Emulation.setEmulatedMedia", {"features": [feature]}),
        ):
            await self.do(self.driver.execute_cdp_cmd, command, values)

    async def picture(self, file: Path) -> None:
        """The whole page as it looks."""
        size = await self.script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": await self.script("return innerWidth"), "height": size}
        values = {"captureBeyondViewport": True, "clip": clip | {"scale": 1}}
        taken = await self.do(self.driver.execute_cdp_cmd, "Page.captureScreenshot", values)
        file.write_bytes(base64.b64decode(taken["data"]))

    async def axe(self) -> list[dict[str, Any]]:
        """What axe-core finds that shuts people out."""
        await self.script(AXE)
        code = "const done = arguments[0]; axe.run().then((found) => done(found.violations));"
        found = await self.do(self.driver.execute_async_script, code)
        return [each for each in found if each["impact"] in ("serious", "critical")]


@asynccontextmanager
async def opened(folder: Path, driver: Any, limits: Limits | None = None) -> AsyncIterator[Opened]:
    world = World(name="web", total=100)
    manifest = published(world, total=100)
    late = world.members[-1]
    happened = [world.introductions()]
    for number in range(ROUNDS):
        members = [m for m in world.members if m is not late or number % 3]
        rejected = {} if number % 3 else {late.peer_id: "late"}
        accepted = sorted(members, key=lambda member: member.peer_id)
        happened.append([
            world.opened(number),
            world.committed(number, members=members),
            *(world.contribution(member, number) for member in members),
            world.closed(number, accepted=accepted, rejected=rejected),
            world.agreed(number + 1, nodes=members),
        ])  # fmt: skip
    happened.append([world.opened(ROUNDS)])
    metrics = numbers_of(folder, world, ROUNDS)
    async with coordinating(world, manifest, folder, happened, metrics) as core:
        for member in world.members:
            connect(core, member.peer_id)
        names = (("ada", "analysts"), ("Charles Babbage", "analysts"), ("", "difference engines"))
        for owner, (name, team) in zip(world.owners, names, strict=True):
            core.heads.set_alias(owner.key, name, team, 1)
        await asyncio.to_thread(driver.get_log, "browser")  # what the page before complained of
        gate, listener = Gate(limits), server.bind()
        releases = Releases(core, folder, None)
        releases.newest = ReleaseFacts(
            round=ROUNDS, state=core.state.base, bytes=3_600_000, sample=SAMPLE
        )
        page = RunPage(core, INVITE, releases)
        async with gate.serving(page.application(gate), listener, folder) as url:
            yield Opened(core, world, url, driver)
        await asyncio.to_thread(driver.get, "about:blank")


async def test_every_page_opens_and_shuts_nobody_out(tmp_path: Path, browser: Any) -> None:
    kept = Path(os.environ.get("ARTEL_SCREENSHOTS") or tmp_path / "pictures")
    kept.mkdir(parents=True, exist_ok=True)
    async with opened(tmp_path, browser) as here:
        account = here.world.owners[0].key
        paths = {
            "run": "/",
            "shares": "/shares",
            "entries": "/entries",
            "entry": "/entry/9",
            "round": "/round/3",
            "account": f"/account/{account}",
            "search": "/search?q=3",
            "nothing": "/search?q=nobody",
        }
        report = {}
        for name, path in paths.items():
            for scheme in ("light", "dark"):
                for size in SIZES:
                    await here.look(size, scheme)
                    await here.open(path)
                    if name == "run":
                        await here.until("document.querySelectorAll('.uplot canvas').length === 2")
                    wide = await here.script("return document.documentElement.scrollWidth")
                    assert wide <= SIZES[size][0], f"{path} on a {size}"
                    if name in ("run", "round", "entry"):
                        await here.picture(kept / f"{name}-{size}-{scheme}.png")
                    report[f"{name} {size} {scheme}"] = await here.axe()
            assert await here.errors() == [], path
        (kept / "axe.json").write_text(json.dumps(report, indent=1))
        assert {place: found for place, found in report.items() if found} == {}


async def test_an_open_page_changes_and_the_reader_keeps_focus_words_and_selection(
    tmp_path: Path, browser: Any
) -> None:
    async with opened(tmp_path, browser) as here:
        await here.look("desktop", "light")
        await here.open("/")
        await here.follows()
        size = here.core.ledger.store.size
        before = f"'{size:,}'"
        await here.until(
            f"[...document.querySelectorAll('dd a')].some(a => a.textContent === {before})"
        )
        box = await here.do(here.driver.find_element, By.NAME, "q")
        await here.do(box.send_keys, "half a wor")
        chosen = await here.script(
            "const id = document.querySelector('#foot .mono');"
            "getSelection().selectAllChildren(id); window.opened = true;"
            "document.querySelector('input[value=round]').click();"
            "document.querySelector('input[name=q]').focus({preventScroll: true});"
            "getSelection().selectAllChildren(id); return getSelection().toString()"
        )
        world = here.world
        newcomer = entries.account(key("newcomer"), world.run)
        await here.core.ledger.append(*world.followed(newcomer))
        connect(here.core, world.members[0].peer_id, step=4, tokens_per_second=9876.5)
        after = f"'{size + 1:,}'"
        await here.until(
            f"[...document.querySelectorAll('dd a')].some(a => a.textContent === {after})"
        )
        await here.until("document.getElementById('nodes').textContent.includes('9,87')")
        assert await here.script("return window.opened"), "the page was not loaded again"
        assert await here.script("return document.activeElement.value") == "half a wor"
        assert await here.script("return getSelection().toString()") == chosen
        assert await here.script("return document.querySelector('input[value=round]').checked")
        here.core.metrics.of(ROUNDS).validation = 1.25
        here.core.peers[world.members[0].peer_id].beats += 1
        await here.until("document.getElementById('loss-chart').dataset.chart.includes('1.25')")
        assert await here.errors() == []


async def test_charts_are_drawn_and_say_what_the_pointer_is_at(
    tmp_path: Path, browser: Any
) -> None:
    async with opened(tmp_path, browser) as here:
        await here.look("desktop", "light")
        await here.open("/")
        await here.until("document.querySelectorAll('.uplot canvas').length === 2")
        for axis in ("time", "round", "tokens"):
            await here.script(f"document.querySelector('input[value={axis}]').click()")
            colours = await here.script(
                "return [...document.querySelectorAll('.uplot canvas')].map((canvas) => {"
                "const {width, height} = canvas;"
                "const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);"
                "return new Set(new Uint32Array(data.buffer)).size})"
            )
            assert min(colours) > 10, "a blank canvas has one"
        await here.script(
            "const over = document.querySelector('.u-over');"
            "const at = over.getBoundingClientRect();"
            "over.dispatchEvent(new MouseEvent('mousemove', {bubbles: true,"
            "clientX: at.left + at.width / 2, clientY: at.top + 20}))"
        )
        await here.until("/[4-7]\\.\\d/.test(document.querySelector('.u-legend').textContent)")


async def test_links_lead_to_entries_and_words_to_pages(tmp_path: Path, browser: Any) -> None:
    async with opened(tmp_path, browser) as here:
        await here.look("desktop", "light")
        await here.open("/")

        async def title() -> str:
            return str(await here.script("return document.querySelector('h1').textContent"))

        for link in ("#timeline td a", "main a[href^='/entry/']"):
            await here.script(f'document.querySelector("{link}").click()')
            await here.until("document.readyState === 'complete' && location.pathname !== '/'")
        assert (await title()).startswith("Entry ")
        for word, page in (
            ("ada", "Account"),
            ("entry 12", "Entry 12"),
            ("round 5", "Round 5"),
            (here.world.members[1].peer_id[-8:], "Account"),
            (here.world.owners[1].key[:12], "Account"),
            (here.core.ledger.state.states[3], "Round 2"),
        ):
            box = await here.do(here.driver.find_element, By.NAME, "q")
            await here.do(box.clear)
            await here.do(box.send_keys, f"{word}\n")
            await here.until(f"document.querySelector('h1').textContent.startsWith('{page}')")


async def test_a_page_that_finds_no_room_looks_now_and_then(tmp_path: Path, browser: Any) -> None:
    async with opened(tmp_path, browser, Limits(streams=0)) as here:
        await here.look("desktop", "light")
        await here.open("/")
        await here.until("document.getElementById('link').textContent === 'every 30 s'")
        await here.script("document.querySelector('h1').textContent = 'old'")
        await here.script("look()")
        await here.until("document.querySelector('h1').textContent === 'web-test'")
        await here.do(here.driver.get_log, "browser")  # it says that the stream was refused


async def test_without_scripts_the_page_says_the_same(tmp_path: Path, browser: Any) -> None:
    async with opened(tmp_path, browser) as here:
        await here.look("desktop", "light")
        off = "Emulation.setScriptExecutionDisabled"
        await here.do(here.driver.execute_cdp_cmd, off, {"value": True})
        try:
            await here.open("/")
            shown = {
                css: await here.do(here.driver.find_elements, By.CSS_SELECTOR, css)
                for css in (
                    "#loss svg",
                    "#join-line",
                    "#timeline tbody tr",
                    "#join button",
                    "fieldset",
                )
            }
            assert all([await here.do(each.is_displayed) for each in shown["#loss svg"]])
            assert INVITE in await here.do(lambda: shown["#join-line"][0].text)
            assert len(shown["#timeline tbody tr"]) > 5
            for css in ("#join button", "fieldset"):
                assert not await here.do(shown[css][0].is_displayed), css
        finally:
            await here.do(here.driver.execute_cdp_cmd, off, {"value": False})


async def test_a_line_is_copied_with_one_press(tmp_path: Path, browser: Any) -> None:
    async with opened(tmp_path, browser) as here:
        await here.look("desktop", "light")
        granted = {
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
            "origin": here.url,
        }
        await here.do(here.driver.execute_cdp_cmd, "Browser.grantPermissions", granted)
        await here.open("/")
        await here.script("document.querySelector('#join button[data-copy=join-line]').click()")
        await here.until(
            "document.querySelector('[data-copy=join-line]').textContent.startsWith('Copied')"
        )
        code = "const done = arguments[0]; navigator.clipboard.readText().then(done, done)"
        assert INVITE in await here.do(here.driver.execute_async_script, code)


async def test_a_node_shows_its_owner_all_that_its_status_says(
    tmp_path: Path, browser: Any
) -> None:
    async with opened(tmp_path, browser) as here:
        core, world = here.core, here.world
        now = node_status(world)
        site = LedgerSite(core.ledger.store, core.heads, lambda: core.ledger.state)
        home = tmp_path / "node"
        home.mkdir()
        orders: list[OwnerOrder] = []

        async def obey(order: OwnerOrder) -> str:
            orders.append(order)
            now["settings"] = facts(order.settings)
            return ""

        async with status.serving(
            home, lambda: now, site, server.bind(), Directory(no_runs), obey
        ) as here.url:
            await here.look("phone", "dark")
            await here.open("/")
            await here.follows()
            assert await here.axe() == []
            now["reason"] = "another one"
            await here.until("document.getElementById('now').textContent.includes('another one')")
            kept = Path(os.environ.get("ARTEL_SCREENSHOTS") or tmp_path)
            await here.picture(kept / "node-phone-dark.png")
            await here.script("document.querySelector('[name=uplink]').value = '2.5'")
            await here.script("document.querySelector('[name=do][value=set]').click()")
            await here.until("location.hash === '#controls'")
            assert orders[0].settings.uplink == 2.5
            assert (
                await here.script("return document.querySelector('[name=uplink]').value") == "2.5"
            )
            assert await here.errors() == []
