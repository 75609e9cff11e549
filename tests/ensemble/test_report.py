"""The report: its figures are those of the trials, and its page works in a real browser, without the network."""

import asyncio
import base64
import csv
import io
import json
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from PIL import Image

from ensemble import paper, report, survey
from ensemble.survey import Row
from trainables import retrieval, tracking
from trainables.ledger import open_ledger

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = 390, 1200


@pytest.fixture(scope="module")
def reported(swept, tone_store, run_command, tmp_path_factory):
    """The folder of a report on the tiny sweep, and what the command said."""
    runs, out = swept[0], tmp_path_factory.mktemp("report")
    chosen = run_command(
        "ensemble/select.py", "--runs", runs, "--sweep", "first", "--out", out / "ensemble", "--folds", 0
    )
    assert chosen.returncode == 0, chosen.stderr
    done = run_command("ensemble/report.py", "--runs", runs, "--sweep", "first", "--out", out, "--store", tone_store)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.cluster
def test_the_table_has_the_figures_of_the_trials_and_of_the_ensemble(reported, swept):
    out, done = reported
    ledger = open_ledger(swept[0])
    lines = list(csv.DictReader(io.StringIO((out / "report.csv").read_text())))
    trials = [line for line in lines if line["no."]]
    assert len(trials) == 3
    expected = set()
    for signature in ledger.sweep("first").signatures:
        found = ledger.embeddings(ledger.finished(signature), tracking.TEST_FILE)
        relevant = retrieval.relevance(found.relevant_clip_ids, found.clip_ids)
        values = retrieval.evaluate(found.scores(), relevant, ["map10", "r1"])
        expected.add((f"{100 * values['map10']:.2f}", f"{100 * values['r1']:.2f}"))
    assert {(line["mAP@10"], line["R@1"]) for line in trials} == expected
    assert [line["fine-tuned"] for line in trials] == ["", "x", "x"]
    ensemble = json.loads((out / "ensemble" / "ensemble.json").read_text())
    figure = f"{100 * ensemble['test']['ensemble']['map10']:.2f}"
    assert figure in [line["mAP@10"] for line in lines if line["audio"].startswith("ensemble of ")]
    assert figure in done.stdout
    assert (out / "report.md").read_text().count("\n") == len(lines) + 2
    assert r"\toprule" in (out / "report.tex").read_text()


@pytest.mark.cluster
def test_a_report_is_a_look_at_test_and_one_of_validation_is_none(reported, swept, run_command, tmp_path):
    _, done = reported
    before = int(re.search(r"came before this one: (\d+)", done.stdout)[1])
    words = ("ensemble/report.py", "--runs", swept[0], "--sweep", "first", "--out", tmp_path)
    without = run_command(*words, "--no-test")
    assert without.returncode == 0, without.stderr
    assert "came before" not in without.stdout
    assert f"came before this one: {before + 1}" in run_command(*words).stdout
    assert "no sweep is named 'absent'" in run_command(*words[:3], "--sweep", "absent").stderr


@pytest.mark.cluster
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_page_fits_plays_and_asks_for_nothing(reported, width, tmp_path):
    seen = asyncio.run(look(reported[0] / "report.html", width, tmp_path))
    assert seen["asked"] == []
    assert seen["width"] <= width
    assert seen["buttons"] > 0
    assert seen["duration"] > 0.5
    picture = np.asarray(Image.open(io.BytesIO(seen["picture"])).convert("L"))
    assert picture.std() > 10


async def look(page, width, folder):
    """Open a page in Chromium: what it asks the network for, how wide it is, and whether a sound can be played."""
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    browser = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (port_file := folder / "DevToolsActivePort").exists() or not port_file.read_text():
            assert browser.poll() is None
            time.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(one for one in await answer.json() if one["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await visit(Tab(socket), page, width)
    finally:
        browser.terminate()
        browser.wait()


class Tab:
    """A tab of Chromium, by its DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.number, self.events = socket, 0, []

    async def call(self, method, **params):
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while (message := await self.socket.receive_json()).get("id") != self.number:
            self.events.append(message)
        return message["result"]

    async def value(self, expression):
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        return found["result"].get("value")


async def visit(tab, page, width):
    await tab.call("Network.enable")
    await tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
    )
    await tab.call("Page.enable")
    await tab.call("Page.navigate", url=page.as_uri())
    while not await tab.value("document.readyState == 'complete' && location.protocol == 'file:'"):
        await asyncio.sleep(0.1)
    found = {
        "width": await tab.value("document.documentElement.scrollWidth"),
        "buttons": await tab.value("document.querySelectorAll('button[data-clip]').length"),
        "duration": await tab.value("""new Promise(done => {
            const audio = document.querySelector('#player audio');
            audio.addEventListener('loadedmetadata', () => done(audio.duration));
            audio.addEventListener('error', () => done(-1));
            document.querySelector('button[data-clip]').click();
        })"""),
        "picture": base64.b64decode((await tab.call("Page.captureScreenshot"))["data"]),
    }
    urls = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    return found | {"asked": [url for url in urls if not url.startswith((page.as_uri(), "data:", "about:"))]}


def row(number, audio, p, seed, value):
    trial = SimpleNamespace(
        audio=SimpleNamespace(), text=SimpleNamespace(), paraphrase_probability=p, seed=seed, stage="fine-tuning",
        pretraining=None, schedule=SimpleNamespace(peak_rate=1.0),
    )  # fmt: skip
    return Row(number, None, trial, {"map10": {1: value / 2, 2: value}}, 1.0, 0.0)


def test_main_effects_of_a_full_grid_are_those_that_made_it(monkeypatch):
    factors = {name: survey.FACTORS[name] for name in ("paraphrases", "seed")}
    monkeypatch.setattr(survey, "FACTORS", factors)
    rows = [
        row(place, "a", p, seed, 0.3 + 0.05 * (p > 0) + 0.01 * seed)
        for place, (p, seed) in enumerate((p, seed) for p in (0.0, 0.3) for seed in (0, 1, 2))
    ]
    found = {(level.factor, level.level): level for level in survey.effects(rows)}
    assert found["paraphrases", "p 0.3"].mean - found["paraphrases", "p 0"].mean == pytest.approx(0.05)
    assert found["seed", "2"].mean - found["seed", "0"].mean == pytest.approx(0.02)
    assert found["paraphrases", "p 0"].number == 3
    low, high = found["paraphrases", "p 0"].interval
    assert low <= found["paraphrases", "p 0"].mean <= high


def test_a_band_goes_from_the_least_to_the_greatest_seed():
    curves = [{1: 5.0, 2: 4.0}, {1: 7.0, 2: 3.0, 3: 2.0}]
    assert survey.points(curves) == {1: (6.0, 5.0, 7.0), 2: (3.5, 3.0, 4.0)}


def test_tables_escape_what_their_formats_need():
    line = ["1", "a|b_c", "10 s", "none", "50 % & more", "x", "", "0", *[""] * 12]
    assert r"a\|b_c" in report.as_markdown([line])
    assert r"a|b\_c & 10 s & none & 50 \% \& more" in report.as_latex([line])
    assert next(csv.DictReader(io.StringIO(report.as_csv([line]))))["text"] == "50 % & more"


def test_the_papers_table_is_there():
    best = paper.TABLE_2[paper.Key("passt:N", "huggingface:roberta-large", fine_tuned=True, paraphrases=True)]
    assert best == (38.56, 26.07, 55.27, 69.30)
    assert len(paper.TABLE_2) == 14
    assert len(paper.ENSEMBLE_OF) == 8
    assert set(paper.TABLE_2) >= paper.ENSEMBLE_OF
