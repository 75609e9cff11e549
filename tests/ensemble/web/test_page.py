"""The page in a real browser, on a real server: search, play, seek, go back, drop a file, and what goes wrong."""

import asyncio
import base64
import shutil

import pytest
from chromium import needs_chromium, open_tab
from web_server import GONE, SOUNDS, Server

PHONE = 400
LONG = "low tone, long.wav"
NUM_RESULTS = "document.querySelectorAll('.result').length"
STATUS = "document.getElementById('status').textContent"
NOTICE = "(document.getElementById('notice').hidden ? '' : document.getElementById('notice-text').textContent)"
POSITION = "document.getElementById('audio').currentTime"

BEYOND = """[...document.querySelectorAll('body *')].filter(one => !one.closest('svg, .hidden-label, .skip')
    && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
"""What lies beyond the right edge of the page."""

UNLABELLED = """[...document.querySelectorAll('button, input, select, a')].filter(one => one.checkVisibility()
    && !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length)).map(one => one.outerHTML)"""
"""Controls without a name."""

CONTRASTS = """(() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const light = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(one => one / 255)
            .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (one) => {
        while (one && getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)') one = one.parentElement;
        return getComputedStyle(one ?? document.body).backgroundColor;
    };
    return [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && !one.closest('svg, option')
        && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())).map(one => {
        const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), one.outerHTML.slice(0, 80)];
    }).filter(([contrast]) => contrast < 4.5);
})()"""
"""Texts whose contrast is less than WCAG 2.1 asks for at level AA, with the contrast."""

DROP = """(() => {
    const bytes = Uint8Array.from(atob('CONTENT'), one => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], 'NAME'));
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: data}));
    }
})()"""


def card(name):
    """The JavaScript expression of the result with a name."""
    return f"[...document.querySelectorAll('.result')].find(one => one.recording.name === {name!r})"


async def search(tab, sentence):
    """Type a sentence into an empty field, and wait for the results."""
    await tab.value("document.getElementById('query').focus(); document.getElementById('query').select()")
    await tab.type(sentence)
    await tab.wait(f"{NUM_RESULTS} === {len(SOUNDS)} && new URLSearchParams(location.search).get('q') === {sentence!r}")


@pytest.fixture(scope="module")
def page(searched, sounds, tmp_path_factory):
    """A server, and a function that runs a coroutine function with a tab of one browser in which its page is open."""
    server = Server(searched)
    loop = asyncio.new_event_loop()
    opened = open_tab(tmp_path_factory.mktemp("chromium"), "--autoplay-policy=no-user-gesture-required")
    tab = loop.run_until_complete(opened.__aenter__())

    def visit(use, url=server.url, width=1200):
        async def open_page():
            tab.events.clear()
            await tab.resize(width)
            await tab.open(url)
            await tab.wait(f"({STATUS} + {NOTICE}) !== ''")
            await use(tab)
            asked = [request["request"]["url"] for request in tab.told("Network.requestWillBeSent")]
            assert [one for one in asked if not one.startswith((url.partition("?")[0], "data:", "blob:"))] == []

        loop.run_until_complete(open_page())

    yield visit
    loop.run_until_complete(opened.__aexit__(None, None, None))
    loop.close()
    server.kill()


@needs_chromium
def test_a_sentence_is_searched_as_it_is_typed_and_the_address_and_the_back_button_follow(page):
    async def use(tab):
        await search(tab, "rain")
        await tab.press("Enter", "\r")
        await search(tab, "a dog")
        assert await tab.value("location.search") == "?q=a+dog"
        assert "a dog" in await tab.value("document.title")
        assert "best first" in await tab.value(STATUS)
        assert await tab.value("document.querySelectorAll('.result img').length") == 0, "names are text"
        await tab.value("document.activeElement.blur()")
        await tab.value("history.back()")
        await tab.wait("location.search === '?q=rain' && document.getElementById('query').value === 'rain'")
        await tab.value("history.back()")
        await tab.wait("location.search === '' && document.getElementById('query').value === ''")
        await tab.wait(f"{NUM_RESULTS} === 0")
        assert tab.errors() == []

    page(use)


@needs_chromium
@pytest.mark.parametrize("name", [LONG, "owl.aiff", "bittern.mp3"])
def test_a_recording_plays_from_where_it_is_clicked(page, name):
    async def use(tab):
        await search(tab, "tone")
        await tab.value(f"{card(name)}.querySelector('.play').click()")
        await tab.wait(f"{POSITION} > 0.2")
        share = 0.8
        await tab.value(f"""(() => {{ const box = {card(name)}.querySelector('.waveform').getBoundingClientRect();
            {card(name)}.querySelector('.waveform').dispatchEvent(new MouseEvent('click',
                {{bubbles: true, clientX: box.left + {share} * box.width}})); }})()""")
        duration_s = next(duration_s for file, (_, duration_s, _) in SOUNDS.items() if file.endswith(name))
        await tab.wait(f"Math.abs({POSITION} - {share * duration_s}) < 1.2")
        position_s = await tab.value(POSITION)
        await tab.wait(f"{POSITION} > {position_s} || document.getElementById('audio').ended")
        assert await tab.value("document.getElementById('player-name').textContent") == name
        await tab.value(f"{card(name)}.scrollIntoView()")
        await tab.wait(f"{card(name)}.querySelector('.peaks').getAttribute('d')?.length > 1000")
        await tab.value(f"{card(name)}.querySelector('.best').click()")
        await tab.wait(f"{POSITION} > 0 && document.getElementById('audio').paused === false")
        await tab.value("document.getElementById('player-close').click()")
        assert tab.errors() == []

    page(use)


@needs_chromium
def test_the_keys_search_move_play_and_seek(page):
    async def use(tab):
        await search(tab, "tone")
        await tab.value("document.activeElement.blur()")
        await tab.press("/", "/")
        assert await tab.value("document.activeElement.id") == "query"
        await tab.press("ArrowDown")
        await tab.press("ArrowDown")
        await tab.press("ArrowUp")
        focused = "document.activeElement === document.querySelector('.result')"
        assert await tab.value(focused)
        await tab.value(f"{card(LONG)}.focus()")
        await tab.press(" ", " ")
        await tab.wait(f"{POSITION} > 0.1")
        await tab.press("ArrowRight")
        await tab.wait(f"{POSITION} > 5")
        await tab.press(" ", " ")
        await tab.wait("document.getElementById('audio').paused")
        await tab.value("document.querySelector('.result').focus()")
        await tab.press("ArrowUp")
        assert await tab.value("document.activeElement.id") == "query"

    page(use)


@needs_chromium
def test_more_like_this_and_filters_are_in_the_address(page, ids):
    async def use(tab):
        await search(tab, "tone")
        await tab.value(f"{card('wren.flac')}.querySelector('.similar').click()")
        await tab.wait(f"location.search === '?like={ids['birds/wren.flac']}' && {NUM_RESULTS} === {len(SOUNDS) - 1}")
        await tab.wait("document.getElementById('source').textContent.includes('wren.flac')")
        await tab.value("""(() => { const folder = document.getElementById('folder');
            folder.value = 'birds'; folder.dispatchEvent(new Event('change')); })()""")
        await tab.wait(f"location.search.includes('folder=birds') && {NUM_RESULTS} === 2")
        await tab.reload()
        await tab.wait(f"{NUM_RESULTS} === 2 && document.getElementById('folder').value === 'birds'")
        await tab.value("""(() => { const least = document.getElementById('min');
            least.value = '100'; least.dispatchEvent(new Event('input')); })()""")
        await tab.wait(f"{NOTICE}.includes('No recording')")
        await tab.value("document.getElementById('notice-action').click()")
        await tab.wait(f"{NUM_RESULTS} === {len(SOUNDS) - 1} && !location.search.includes('min')")
        await tab.value("history.back()")
        await tab.wait(f"{NOTICE}.includes('No recording')")
        await tab.value("history.back()")
        await tab.wait(f"{NUM_RESULTS} === 2")

    page(use)


@needs_chromium
def test_a_dropped_recording_is_searched_by_its_sound(page, sounds):
    async def use(tab):
        for name, content in (("mine.aiff", (sounds / "birds/owl.aiff").read_bytes()), ("notes.txt", b"no sound")):
            script = DROP.replace("NAME", name).replace("CONTENT", base64.b64encode(content).decode())
            await tab.value(script)
            if name == "mine.aiff":
                await tab.wait("document.querySelector('.result')?.recording.name === 'owl.aiff'")
                assert name in await tab.value("document.getElementById('source').textContent")
        await tab.wait(f"{NOTICE}.includes('Convert it')")
        await tab.value("history.back()")
        await tab.wait("document.querySelector('.result')?.recording.name === 'owl.aiff'")
        await tab.reload()
        await tab.wait(f"{NOTICE}.includes('drop it')")

    page(use)


@needs_chromium
def test_a_file_that_has_gone_is_named(page, sounds):
    """Before the search, or since: then the player says so."""
    kept = sounds / "birds/wren.flac"

    async def use(tab):
        await search(tab, "tone")
        assert "--add" in await tab.value(f"{card(GONE)}.querySelector('.gone').textContent")
        kept.rename(kept.with_suffix(".moved"))
        await tab.value(f"{card('wren.flac')}.querySelector('.play').click()")
        await tab.wait(f"{card('wren.flac')}.querySelector('.gone').textContent.includes('--add')")

    try:
        page(use)
    finally:
        kept.with_suffix(".moved").rename(kept)


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone_and_can_be_read_in_both_themes(page, theme):
    async def use(tab):
        await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        await search(tab, "tone")
        await tab.value("document.querySelector('.play').click()")
        await tab.wait(f"{POSITION} > 0")
        assert await tab.value("document.documentElement.scrollWidth") <= PHONE
        assert await tab.value(BEYOND) == []
        assert await tab.value(UNLABELLED) == []
        assert await tab.value(CONTRASTS) == []
        background = "getComputedStyle(document.body).backgroundColor"
        before = await tab.value(background)
        chosen = "document.documentElement.dataset.theme"
        while await tab.value(chosen) == "system" or await tab.value(background) == before:
            await tab.value("document.getElementById('theme').click()")
        while await tab.value(chosen) != "system":
            await tab.value("document.getElementById('theme').click()")

    page(use, width=PHONE)


@needs_chromium
def test_the_documentation_of_the_interface_works_without_a_network(page):
    async def use(tab):
        await tab.value("location.href = '/docs'")
        await tab.wait("document.querySelectorAll('.opblock').length === 7")
        assert tab.errors() == []

    page(use)


@needs_chromium
def test_an_empty_index_and_a_server_that_has_stopped_are_explained(page, searched, sounds, tmp_path):
    """A server of its own, which is stopped."""
    folder = shutil.copytree(searched, tmp_path / "exported", ignore=shutil.ignore_patterns("index"))
    server = Server(folder)

    async def use(tab):
        assert "--add" in await tab.value(NOTICE)
        shutil.copytree(searched / "index", folder / "index")
        await search(tab, "rain")
        assert await tab.value(NOTICE) == ""
        server.kill()
        await tab.type(" falls")
        await tab.wait(f"{NOTICE}.includes('has stopped')")
        assert await tab.value("document.getElementById('notice-action').textContent") == "Try again"

    try:
        page(use, server.url)
    finally:
        server.kill()
