"""Paraphrasing, as a user runs it, against a server that speaks the protocol."""

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from answer_styles import BROKEN, FINAL, WASTED
from chat_server import reword

from data.captions import hash_caption
from data.paraphrasing import chat_client, grammar
from data.paraphrasing.async_runner import ParaphraseProgress, ParaphraseRun
from data.paraphrasing.chat_client import (
    MAX_PAUSES,
    AdaptiveConcurrencyLimiter,
    RuleBasedParaphraser,
)
from data.paraphrasing.completions import parse_completion, parse_json_or_none
from data.paraphrasing.job import INSTRUCTION, INSTRUCTION_VERSION, Answer, AnswerLog, Budget, ParaphraseJob, to_line
from data.paraphrasing.journal import Journal
from data.paraphrasing.outcome import ParaphraseOutcome, filter_paraphrases
from data.paraphrasing.review_page import write_page
from data.schema import Paraphrase
from data.store.stored_split import open_split

ROOT = Path(__file__).parents[2]
SOUNDS = ["a dog barks", "a baby cries", "rain falls", "a bell rings", "a man hits a drum", "waves crash on a shore"]
KEY = "sk-very-secret-and-long-0123456789"


def captions_of(number):
    """Captions, all different, with other wordings that the rules find."""
    times = ["once", "twice", "three times", "loudly", "nearby", "quickly", "slowly", "steadily"]
    texts = [
        f"{first[0].upper()}{first[1:]} {time} {link} {second} {other}."
        for link in ("while", "before", "as", "and then")
        for first in SOUNDS
        for second in SOUNDS
        for time in times
        for other in times
        if first != second
    ]
    return texts[:: max(1, len(texts) // number)][:number]


@pytest.fixture
def store_of(make_clip, noise, write_split):
    """A function: a number of captions, five a clip -> a store with a split of them."""

    def make(number):
        texts = captions_of(number)
        clips = [
            make_clip(f"{place:05d}.wav", noise(0.01), texts[place : place + 5], keywords=("field", f"tag{place}"))
            for place in range(0, len(texts), 5)
        ]
        return write_split(clips).store.path

    return make


def command(store, *arguments):
    return [
        sys.executable,
        "data/paraphrase.py",
        "test",
        "--split",
        "train",
        "--store",
        str(store),
        *map(str, arguments),
    ]


@pytest.fixture
def run(call_command, monkeypatch):
    """A function that runs the command in this process to an expected status: what it says."""
    for name in list(os.environ):
        if name.startswith("OPENAI_"):
            monkeypatch.delenv(name)

    def run_to(store, *arguments, status=0, key="", first=()):
        words = first or ("test", "--split", "train")
        with monkeypatch.context() as patch:
            if key:
                patch.setenv("OPENAI_API_KEY", key)
            done = call_command("data/paraphrase.py", *words, "--store", store, *arguments)
        assert done.returncode == status, done.stderr
        return done.stderr

    return run_to


def table_of(store):
    """The paraphrases, without the times at which they were written."""
    table = open_split(store, "test/train").read_paraphrases_table()
    return table.drop_columns(["time"]).to_pylist()


def journal_of(store):
    return [json.loads(line) for line in whole_lines(store)]


def test_rules_need_no_server(store_of, run_command):
    """In a process of its own, as a user runs it."""
    store = store_of(40)
    done = run_command("data/paraphrase.py", "test", "--split", "train", "--store", store, "--model", "grammar")
    assert done.returncode == 0
    said = done.stderr
    rows = table_of(store)
    assert {row["model"] for row in rows} == {"grammar"}
    assert {row["instruction"] for row in rows} == {f"{grammar.VERSION}/5"}
    split = open_split(store, "test/train")
    captions = [caption for clip in split.captions for caption in clip]
    assert [row["caption_hash"] for row in rows] == [hash_caption(caption) for caption in captions]
    expected = [grammar.write_paraphrases(caption, 5) for caption in captions]
    assert [row["variants"] for row in rows] == expected
    number, complete = sum(map(len, expected)), sum(len(texts) == 5 for texts in expected)
    assert min(map(len, expected)) > 0
    assert f"{number} paraphrases of 40 of 40 captions, {complete} with all 5" in said
    assert re.search(r"not a duplicate +100\.0 %", said)


def test_a_server_is_asked_once_about_each_caption(store_of, chat_server, run):
    store, server = store_of(40), chat_server()
    run(store, "--model", "parrot", "--base-url", server.base_url)
    expected = table_of(store)
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert table_of(store) == expected
    log = server.log()
    assert len(log["tries"]) == 40
    assert set(log["tries"].values()) == {1}
    split = open_split(store, "test/train")
    (prompt,) = [text for text in log["tries"] if split.captions[0][0] in text]
    assert prompt.startswith("I will give a description of an audio recording and tags")
    assert "Generate 5 audio captions" in prompt
    assert prompt.endswith(f"{split.captions[0][0]} [field, tag0]")
    assert expected[0]["variants"] == reword(split.captions[0][0], 5)


def test_through_all_faults_to_the_table_of_an_undisturbed_run(store_of, chat_server, run):
    calm = store_of(120)
    run(calm, "--model", "parrot", "--base-url", chat_server().base_url)
    expected = table_of(calm)
    for name in ("paraphrases.jsonl", "paraphrases.arrow"):
        (calm / "test/train" / name).unlink()
    server = chat_server(
        share_429=0.15, share_500=0.1, share_cut=0.1, share_slow=0.05, share_torn=0.1, share_refused=0.1, share_few=0.1,
        share_garbled=0.1, share_long=0.1, retry_after="0.2",
    )  # fmt: skip
    run(calm, "--model", "parrot", "--base-url", server.base_url, "--timeout", 2)
    log = server.log()
    assert set(log["given"]) == {"429", "500", "cut", "slow", "torn", "refused", "few", "garbled", "long"}
    assert table_of(calm) == expected


@pytest.mark.parametrize("fault", ["refused", "filtered"])
def test_what_is_refused_for_good_is_listed(store_of, chat_server, fault, run):
    store, server = store_of(10), chat_server(**{f"share_{fault}": 0.4}, tries=99)
    said = run(store, "--model", "parrot", "--base-url", server.base_url)
    there = {row["caption_hash"] for row in table_of(store)}
    refused = [
        text for texts in open_split(store, "test/train").captions for text in texts if hash_caption(text) not in there
    ]
    assert 0 < len(refused) < 10
    assert f"to review: {len(refused)} captions" in said
    for caption in refused:
        assert re.search(rf"test/train/\d+.wav: '{re.escape(caption)}': 0 of 5 paraphrases: refused", said)
        assert [tries for prompt, tries in server.log()["tries"].items() if f"{caption} [" in prompt] == [3]
    tries = server.log()["tries"]
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert server.log()["tries"] == tries, "refused captions are asked about no more"


def test_too_few_sentences_are_asked_for_again_and_kept_together(store_of, chat_server, run):
    store, server = store_of(10), chat_server(share_few=1.0, tries=99)
    said = run(store, "--model", "parrot", "--base-url", server.base_url)
    assert set(server.log()["tries"].values()) == {3}
    assert [len(row["variants"]) for row in table_of(store)] == [1] * 10
    assert "1 of 5 paraphrases" in said


@pytest.mark.parametrize("style", ["Magistral's parts", "ChatML goes on", "think", "counts null"])
def test_a_server_with_a_style_of_its_own_is_asked_once(store_of, chat_server, style, run):
    store, server = store_of(10), chat_server(share_styled=1.0, style=style, tries=99)
    assert "10 with all 5" in run(store, "--model", "parrot", "--base-url", server.base_url)
    assert set(server.log()["tries"].values()) == {1}


def test_what_a_server_breaks_is_asked_again_and_what_it_answers_is_kept(store_of, chat_server, run):
    """One server for all styles: a fault falls on the first try of each request alone."""
    store, server = store_of(5), chat_server()
    for number, style in enumerate([*BROKEN, *WASTED], start=1):
        server.set_faults(share_styled=1.0, style=style, retry_after="0.01", forget=True)
        model = ("--model", f"parrot{number}", "--base-url", server.base_url, "--replace")
        assert "5 with all 5" in run(store, *model), style
        lines = [line for line in journal_of(store) if line["model"] == f"parrot{number}"]
        assert list(server.log()["tries"].values()) == [2] * 5, style
        assert [line["problem"] for line in lines].count("") == 5
        if style in WASTED:
            assert sorted(line["problem"] for line in lines)[5:] == [WASTED[style][1]] * 5
            assert {(line["input_tokens"], line["output_tokens"]) for line in lines} == {(100, 80)}
        else:
            assert len(lines) == 5, style


def test_what_stays_wrong_is_named(store_of, chat_server, run):
    """One server for all styles, in each of which it answers every request."""
    store, server = store_of(5), chat_server()
    for number, (style, (_, status, said)) in enumerate(FINAL.items(), start=1):
        server.set_faults(share_styled=1.0, style=style, tries=99, forget=True)
        model = ("--model", "parrot", "--base-url", server.base_url, "--variants", number + 5, "--replace")
        assert re.search(said.replace("of 5", f"of {number + 5}"), run(store, *model, status=status)), style


def test_retry_after_is_waited_for(store_of, chat_server, run):
    """A lower bound on time: the server said so."""
    store, server = store_of(5), chat_server(share_429=1.0, retry_after=2)
    run(store, "--model", "parrot", "--base-url", server.base_url)
    arrivals = server.log()["arrivals"]
    assert len(arrivals) == 10
    assert arrivals[5] - arrivals[0] >= 2


def test_concurrency_adapts_to_rate_limits(store_of, chat_server, run):
    store, server = store_of(200), chat_server(most_running=4, latency_s=0.05, retry_after="0.1")
    run(store, "--model", "parrot", "--base-url", server.base_url, "--concurrency", 64)
    log = server.log()
    assert len(log["answered"]) == 200
    assert log["given"]["429"] < 200, "most requests find a place"


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_asked_again(store_of, chat_server, kills, run):
    number = 60 * kills
    calm = store_of(number)
    run(calm, "--model", "parrot", "--base-url", chat_server().base_url)
    expected = table_of(calm)
    for name in ("paraphrases.jsonl", "paraphrases.arrow"):
        (calm / "test/train" / name).unlink()
    server, rng, concurrency = chat_server(latency_s=0.1, share_few=0.1), random.Random(0), 8
    words = command(calm, "--model", "parrot", "--base-url", server.base_url, "--concurrency", concurrency)
    in_flight_at_kills, begun = 0, 0
    for _ in range(kills):
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        asked = sum(server.log()["tries"].values())
        while process.poll() is None and sum(server.log()["tries"].values()) == asked and rng.random() < 0.999:
            time.sleep(0.01)
        begun += sum(server.log()["tries"].values()) > asked
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        while server.log()["running"]:  # what was asked is answered yet
            time.sleep(0.01)
        paid = sum(server.log()["answered"].values())
        kept = len(whole_lines(calm))
        lost = paid - kept - in_flight_at_kills
        assert 0 <= lost <= concurrency, "no more is lost than what was in flight"
        in_flight_at_kills += lost
    assert begun > kills / 2
    run(calm, "--model", "parrot", "--base-url", server.base_url)
    log = server.log()
    assert sum(log["answered"].values()) == len(journal_of(calm)) + in_flight_at_kills
    assert table_of(calm) == expected


def whole_lines(store):
    path = store / "test/train/paraphrases.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def test_a_torn_last_line_is_removed(store_of, chat_server, run):
    store, server = store_of(10), chat_server()
    run(store, "--model", "parrot", "--base-url", server.base_url)
    expected = table_of(store)
    path = store / "test/train/paraphrases.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert table_of(store) == expected
    assert sorted(server.log()["tries"].values()) == [1] * 9 + [2]


def test_a_damaged_journal_is_named(store_of, run):
    store = store_of(10)
    run(store, "--model", "grammar")
    path = store / "test/train/paraphrases.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{nonsense", *lines[3:]]) + "\n")
    assert f"{path}, line 4 isn't an answer" in run(store, "--model", "grammar", status=2)


def test_ctrl_c_keeps_what_is_being_answered(store_of, chat_server):
    store, server = store_of(200), chat_server(latency_s=0.5)
    process = subprocess.Popen(
        command(store, "--model", "parrot", "--base-url", server.base_url, "--concurrency", 8),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not server.log()["tries"]:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; re-run the same command to resume" in said
    assert sum(server.log()["answered"].values()) == len(journal_of(store)) > 0


def test_a_second_ctrl_c_does_not_wait(store_of, chat_server):
    store, server = store_of(40), chat_server(latency_s=3600.0)
    process = subprocess.Popen(
        command(store, "--model", "parrot", "--base-url", server.base_url, "--timeout", 7200),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not server.log()["tries"]:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)  # two at once may arrive as one
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_ctrl_c_ends_pauses(store_of, chat_server):
    store, server = store_of(40), chat_server(share_429=0.5, tries=99, retry_after=3000)
    process = subprocess.Popen(
        command(store, "--model", "parrot", "--base-url", server.base_url), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(server.log()["tries"]) < 40:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in said
    assert len(journal_of(store)) == len(table_of(store)) == len(server.log()["answered"]) > 0


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"share_401": 0.1}, "refused the key (401)"),
        ({"share_quota": 0.1, "should_retry": "false"}, "the account's quota is used up"),
        ({"share_429": 0.1, "retry_after": 7200}, "the server asks to wait 7,200 s"),
        ({"share_500": 0.1, "retry_after": "Fri, 31 Dec 2100 23:59:59 GMT"}, "the server asks to wait"),
    ],
)
def test_what_ends_a_run_loses_nothing_that_is_being_answered(store_of, chat_server, fault, why, run):
    store, server = store_of(100), chat_server(latency_s=0.3, tries=99, **fault)
    said = run(store, "--model", "parrot", "--base-url", server.base_url, status=2)
    assert why in said
    assert len(journal_of(store)) == len(table_of(store)) == sum(server.log()["answered"].values()) > 0
    server.set_faults()
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert len(table_of(store)) == 100
    assert set(server.log()["answered"].values()) == {1}


@pytest.mark.parametrize(
    ("fault", "why"), [("400", "400: .*Cannot take this"), ("torn", "doesn't answer with chat completions")]
)
def test_what_goes_wrong_with_one_request_ends_that_one_alone(store_of, chat_server, fault, why, run):
    store, server = store_of(100), chat_server(**{f"share_{fault}": 0.1}, tries=99)
    said = run(store, "--model", "parrot", "--base-url", server.base_url, key=KEY, status=1)
    assert re.search(rf"not answered: '.+': .*{why}", said)
    assert "not answered yet: " in said
    assert KEY not in said
    assert 80 < len(table_of(store)) == len(journal_of(store)) < 100
    server.set_faults()
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert len(table_of(store)) == 100


def test_after_a_rate_limit_that_the_client_gives_up_on_there_are_pauses(store_of, chat_server, run):
    store, server = store_of(5), chat_server(share_429=1.0, tries=99, retry_after=0.1, should_retry="false")
    said = run(store, "--model", "parrot", "--base-url", server.base_url, status=1)
    assert "not answered yet: 5 captions" in said
    assert set(server.log()["tries"].values()) == {1 + MAX_PAUSES}
    assert not (store / "test/train/paraphrases.arrow").exists(), "an empty table is none"


def test_a_table_stays_until_all_of_its_successor_is_there(store_of, chat_server, run):
    store, server = store_of(40), chat_server(share_400=0.2, tries=99)
    run(store, "--model", "grammar")
    expected = table_of(store)
    model = ("--model", "parrot", "--base-url", server.base_url, "--replace")
    assert "the existing table is kept" in run(store, *model, status=1)
    assert table_of(store) == expected
    server.set_faults()
    run(store, *model)
    assert {row["model"] for row in table_of(store)} == {"parrot"}
    assert "already has paraphrases by 'parrot dcase2023/5'" in run(store, *model[:-1], "--variants", 3, status=2)


def test_an_empty_table_does_not_take_the_place_of_a_full_one(make_clip, noise, write_split, chat_server, run):
    store, server = write_split([make_clip("a.wav", noise(0.01), ["A dog barks once."])]).store.path, chat_server()
    model = ("--model", "parrot", "--base-url", server.base_url)
    run(store, *model)
    expected = table_of(store)
    write_split([make_clip("a.wav", noise(0.01), ["A cat meows once."])])
    server.set_faults(share_refused=1.0, tries=99)
    assert "the existing table is kept, since no caption has a paraphrase" in run(store, *model)
    assert table_of(store) == expected
    run(store, "--model", "crow", *model[2:], "--replace")
    assert table_of(store) == expected


class Failing:
    """A model that answers as rules do, but for a request of its own, which makes it fail as nobody thought of."""

    def __init__(self, failing):
        self.failing, self.rules, self.is_stopping = failing, RuleBasedParaphraser(), asyncio.Event()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error): ...

    async def ask(self, request):
        if request.caption == self.failing:
            raise LookupError("nobody thought of it")
        await self.is_stopping.wait()
        return await self.rules.ask(request)

    def stop(self):
        self.is_stopping.set()


def test_an_error_that_nobody_thought_of_loses_nothing_that_is_being_answered(store_of):
    split = open_split(store_of(40), "test/train")
    captions = ParaphraseJob(split, "parrot", 5)
    with Journal(captions.journal) as journal, ParaphraseProgress(split.name, 40, str) as progress:
        answered = AnswerLog(captions)
        model = Failing(split.captions[1][2])
        run = ParaphraseRun(model, journal, answered, Budget(None, None, answered), 1, progress)
        with pytest.raises(LookupError, match="nobody thought of it"):
            run.ask_all(captions.distinct_requests(), 20)
    assert len(whole_lines(split.store.path)) == 7, "of the captions before, which were being answered"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 80}, (100, 80)),
        ({"prompt_tokens": 100.0, "completion_tokens": "80"}, (None, None)),
        ({"completion_tokens": 80}, (None, 80)),
        (None, (None, None)),
        ([1], (None, None)),
    ],
)
def test_tokens_that_a_server_counts_in_its_own_way_are_unknown(usage, counts):
    body = {"choices": [{"message": {"content": "1. A hound woofs."}, "finish_reason": "stop"}], "usage": usage}
    assert parse_completion(body) == Answer("1. A hound woofs.", "", *counts)


def test_json_that_is_too_deep_is_none():
    assert parse_json_or_none(b"[" * 200_000) is None


def test_an_instruction_that_changed_has_another_version():
    """Answers to the one are no answers to the other: with a new text, change INSTRUCTION_VERSION, and this."""
    assert INSTRUCTION_VERSION == "dcase2023"
    assert hashlib.sha256(INSTRUCTION.encode()).hexdigest()[:16] == "b0171f85511d8030"


def test_errors_do_not_raise_the_number_of_requests():
    slots = AdaptiveConcurrencyLimiter(64)
    slots.record_status(429)
    for status in (500, 503, 400):
        slots.record_status(status)
    assert slots.limit == 32
    slots.record_status(200)
    assert slots.limit > 32


@pytest.mark.parametrize(
    ("key", "url", "why"),
    [
        ("sk-1\nsk-2", "http://localhost:1/v1", "OPENAI_API_KEY contains a blank"),
        ("sk-é", "http://localhost:1/v1", "beyond ASCII"),
        ("", "localhost:8000", "isn't an address"),
        ("", "http://[::1/v1", "isn't an address"),
        ("", "ftp://localhost/v1", "isn't an address"),
        ("", "http://me:sk-1@localhost:1/v1", "contains a user before an @"),
        ("", "me:sk-1@localhost:1", "contains a user before an @"),
        ("sk-1", "http://8.8.8.8/v1", "OPENAI_API_KEY would be sent over the network unencrypted; use https, or unset"),
        ("sk-1", "HTTP://[::ffff:8.8.8.8]/v1", "unencrypted"),
        ("sk-1", "http://8.8.8.8:443/v1", "unencrypted"),
        ("sk-1", "http://no-such-host.invalid/v1", "unencrypted"),
    ],
)
def test_a_key_or_an_address_that_cannot_be_is_named(store_of, key, url, why, run):
    said = run(store_of(5), "--model", "parrot", "--base-url", url, key=key, status=2)
    assert why in said
    assert "sk-" not in said


@pytest.mark.parametrize(
    "url",
    ["http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8000", "http://10.1.2.3/v1", "http://192.168.0.7:80",
     "http://172.16.0.1", "http://169.254.0.1", "http://[fd00::1]/v1", "https://8.8.8.8/v1"],
)  # fmt: skip
def test_a_key_may_be_sent_encrypted_or_within_a_private_network(url):
    assert not chat_client.is_exposed(url)


def test_the_key_is_never_told(store_of, chat_server, run):
    store, server = store_of(10), chat_server(paid_key=KEY)
    said = run(store, "--model", "parrot", "--base-url", server.base_url, key=KEY)
    said += run(store, "--model", "absent", "--base-url", server.base_url, "--replace", key=KEY, status=2)
    assert "has no model 'absent'" in said
    wrong = KEY.replace("very", "not")
    said += run(store, "--model", "crow", "--base-url", server.base_url, "--replace", key=wrong, status=2)
    assert "refused the key (401)" in said
    assert "secret" not in said
    for path in (store / "test/train").iterdir():
        assert b"secret" not in path.read_bytes()


def test_a_key_is_asked_for_before_anything_else(store_of, run):
    assert "OPENAI_API_KEY isn't set" in run(store_of(5), status=2)


def test_a_server_that_is_away_is_given_up(store_of, chat_server, run):
    store, server = store_of(40), chat_server(share_500=1.0, tries=99, retry_after=0.1)
    said = run(store, "--model", "parrot", "--base-url", server.base_url, status=2)
    assert "the server doesn't answer" in said
    server.set_faults()
    assert "40 with all 5" in run(store, "--model", "parrot", "--base-url", server.base_url)


def test_the_budget_ends_a_run_and_counts_earlier_ones(store_of, chat_server, run):
    store, server = store_of(100), chat_server()
    model = ("--model", "parrot", "--base-url", server.base_url, "--concurrency", 4)
    said = run(store, *model, "--price", 1000, 2000, "--budget", 2.6, status=2)  # 0.26 USD an answer
    assert "the budget of 2.6 USD is spent" in said
    asked = len(server.log()["tries"])
    assert 5 <= asked <= 10
    run(store, *model, "--price", 1000, 2000, "--budget", 2.6, status=2)
    assert len(server.log()["tries"]) <= 10
    said = run(store, *model, "--price", 1000, 2000, "--budget", 1000)
    assert len(server.log()["tries"]) == 100
    assert "26.00 USD" in said
    refused = run(store, "--model", "jay", "--base-url", server.base_url, "--budget", 3, status=2)
    assert "no price of 'jay' is known" in refused


def test_a_dry_run_asks_nothing(store_of, chat_server, run):
    store, server = store_of(40), chat_server()
    said = run(store, "--dry-run")
    assert "40 captions, 40 distinct requests to gpt-3.5-turbo" in said
    assert re.search(r"price: 0\.0\d USD \(0\.0\d with --batch\)", said)
    assert not (store / "test/train/paraphrases.jsonl").exists()
    model = ("--model", "gpt-4o-mini-2024-07-18", "--base-url", server.base_url)
    run(store, *model)
    said = run(store, *model, "--dry-run")
    assert "already answered: 40; to be sent: 0" in said
    assert len(server.log()["tries"]) == 40


def test_another_models_paraphrases_are_not_replaced_by_accident(store_of, run):
    store = store_of(5)
    run(store, "--model", "grammar")
    assert f"already has paraphrases by 'grammar {grammar.VERSION}/5'" in run(
        store, "--model", "x", "--base-url", "http://localhost:1", status=2
    )


def test_two_runs_at_once_are_refused(store_of, run):
    store = store_of(5)
    with Journal(store / "test/train/paraphrases.jsonl"):
        assert "another command is writing" in run(store, "--model", "grammar", status=2)


def test_clips_with_the_same_caption_and_tags_share_a_request(make_clip, noise, write_split, chat_server, run):
    captions = ["A dog barks loudly while rain falls."]
    clips = [make_clip(f"{n}.wav", noise(0.01), captions, keywords=("dog",)) for n in range(3)]
    other = make_clip("other.wav", noise(0.01), captions, keywords=("cat",))
    store, server = write_split([*clips, other]).store.path, chat_server()
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert len(server.log()["tries"]) == 2
    assert len(table_of(store)) == 4


def test_a_corrected_caption_is_asked_about(make_clip, noise, write_split, chat_server, run):
    server = chat_server()
    texts = ["A dog barks while rain falls.", "A bell rings."]
    store = write_split([make_clip("a.wav", noise(0.01), texts)]).store.path
    run(store, "--model", "parrot", "--base-url", server.base_url)
    write_split([make_clip("a.wav", noise(0.01), [texts[0], "A bell chimes twice."])])
    run(store, "--model", "parrot", "--base-url", server.base_url)
    assert len(server.log()["tries"]) == 3
    assert {row["caption_hash"] for row in table_of(store)} == {
        hash_caption(text) for text in (texts[0], "A bell chimes twice.")
    }


class TestBatches:
    def arguments(self, server):
        return "--model", "parrot", "--base-url", server.base_url, "--batch", "--poll", 0.1

    def test_the_table_is_that_of_single_requests(self, store_of, chat_server, run):
        store, server = store_of(60), chat_server(share_refused=0.1, share_few=0.1)
        run(store, *self.arguments(server))
        found = table_of(store)
        batches = list(server.log()["batches"].values())
        assert len(batches) == 2, "the refused requests are submitted again"
        assert len(batches[0]["requests"].splitlines()) == 60
        run(store, *self.arguments(server))
        assert len(server.log()["batches"]) == 2
        (store / "test/train/paraphrases.jsonl").unlink()
        (store / "test/train/paraphrases-batches.json").unlink()
        run(store, "--model", "parrot", "--base-url", chat_server().base_url)
        assert [row["variants"] for row in table_of(store)] == [row["variants"] for row in found]

    def test_killed_while_it_waits_it_finds_its_batch_again(self, store_of, chat_server, run):
        store, server = store_of(40), chat_server()
        words = command(store, *self.arguments(server)[:-1], 3600)
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not server.log()["batches"]:
            time.sleep(0.02)
        process.kill()
        process.wait()
        run(store, *self.arguments(server))
        assert len(server.log()["batches"]) == 1
        assert len(table_of(store)) == 40
        assert set(server.log()["tries"].values()) == {1}

    def test_what_an_expired_batch_has_not_answered_is_handed_in_again(self, store_of, chat_server, run):
        store, server = store_of(40), chat_server(batch_status="expired", batch_share=0.5)
        said = run(store, *self.arguments(server), status=2)
        assert "not answered yet: 1 captions" in said  # half of what is left in each round, and of one, none
        assert [len(batch["requests"].splitlines()) for batch in server.log()["batches"].values()] == [
            40,
            20,
            10,
            5,
            3,
            1,
        ]
        server.set_faults()
        run(store, *self.arguments(server))
        assert len(table_of(store)) == 40
        assert set(server.log()["answered"].values()) == {1}

    def test_a_server_that_gives_every_batch_the_same_id_is_asked_twice_at_most(self, store_of, chat_server, run):
        store, server = store_of(10), chat_server(batch_status="expired", batch_share=0.5, batch_same=True)
        assert "the id of an earlier batch again: batch-0" in run(store, *self.arguments(server), status=2)
        assert len(server.log()["arrivals"]) == 2

    def test_a_batch_that_is_not_taken_is_named(self, store_of, chat_server, run):
        store, server = store_of(10), chat_server(batch_status="failed")
        assert "was not accepted: the model isn't there" in run(store, *self.arguments(server), status=2)

    def test_the_budget(self, store_of, chat_server, run):
        store, server = store_of(40), chat_server()
        said = run(store, *self.arguments(server), "--price", 2000, 4000, "--budget", 2.6, status=2)
        assert "the budget of 2.6 USD is spent" in said
        assert len(server.log()["tries"]) in (9, 10), "tokens are estimated"
        said = run(store, "--model", "parrot", "--base-url", server.base_url, "--price", 2000, 4000, status=0)
        assert f"{self.usd(store):.2f} USD" in said

    def usd(self, store):
        """What the journal's answers cost: 0.52 USD each, and half in a batch."""
        return sum(0.26 if "batch" in line else 0.52 for line in journal_of(store))

    def test_a_batch_whose_word_was_lost_is_not_handed_in_twice(self, store_of, chat_server, run):
        store, server = store_of(20), chat_server(batch_cut=True)
        run(store, *self.arguments(server))
        assert len(server.log()["batches"]) == 1
        assert len(table_of(store)) == 20

    def test_errors_with_the_status_of_success_are_asked_about_again_and_named(self, store_of, chat_server, run):
        store, server = store_of(10), chat_server(share_styled=0.4, style="500")
        run(store, *self.arguments(server))
        assert len(table_of(store)) == 10
        server.set_faults(share_styled=1.0, style="500", tries=99)
        said = run(store, *self.arguments(server), "--variants", 3, "--replace", status=2)
        assert "no request of the last batch was answered: Something of the server's" in said

    def test_several_batches(self, store_of, chat_server, run):
        store, server = store_of(40), chat_server()
        run(store, *self.arguments(server), "--batch-size", 15)
        sizes = [len(batch["requests"].splitlines()) for batch in server.log()["batches"].values()]
        assert sizes == [15, 15, 10]
        assert len(table_of(store)) == 40

    def test_a_limit_on_what_is_queued(self, store_of, chat_server, run):
        store, server = store_of(50), chat_server(most_queued=10)
        run(store, *self.arguments(server), "--batch-size", 10)
        assert len(table_of(store)) == 50
        assert set(server.log()["answered"].values()) == {1}

    def test_after_a_rate_limit_a_batch_is_created_as_the_server_asks(self, store_of, chat_server, run):
        """A lower bound on time: the server said so."""
        store, server = store_of(10), chat_server(batch_429=2)
        run(store, *self.arguments(server))
        arrivals = server.log()["arrivals"]
        assert len(arrivals) == 3
        assert arrivals[2] - arrivals[0] >= 2
        assert len(table_of(store)) == 10

    def test_what_a_batch_is_about_is_not_asked_at_once(self, store_of, chat_server, run):
        store, server = store_of(10), chat_server(files_s=3600.0)
        process = subprocess.Popen(command(store, *self.arguments(server)), cwd=ROOT, stderr=subprocess.DEVNULL)
        while not server.log()["answered"]:
            time.sleep(0.02)
        process.kill()
        process.wait()
        server.set_faults()
        single = ("--model", "parrot", "--base-url", server.base_url)
        said = run(store, *single, status=2)
        assert (
            "test/train was submitted to parrot and isn't collected (batch-0): re-run the command with --batch" in said
        )
        run(store, *single, "--variants", 3)
        assert len(server.log()["tries"]) == 20, "another instruction is another request"
        run(store, *single, "--replace", "--batch")
        run(store, *single)
        assert len(server.log()["tries"]) == 20

    def test_a_batch_of_another_server_stays_open(self, store_of, chat_server, run):
        store, server, other = store_of(10), chat_server(), chat_server()
        process = subprocess.Popen(
            command(store, *self.arguments(server)[:-1], 3600), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        while "submitted batch" not in process.stderr.readline():
            pass
        process.kill()
        process.communicate()
        assert "has no batch batch-0 (404)" in run(store, *self.arguments(other), status=2)
        assert not other.log()["batches"]
        run(store, *self.arguments(server))
        assert len(server.log()["batches"]) == 1
        assert len(table_of(store)) == 10

    def test_what_may_have_been_taken_is_not_asked_at_once(self, store_of, chat_server, run):
        """The file of requests is noted before the server can take it, and forgotten where it says that it didn't."""
        store, server = store_of(10), chat_server(batch_cut=True)
        process = subprocess.Popen(
            command(store, *self.arguments(server)[:-1], 3600), cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while not server.log()["batches"]:
            time.sleep(0.02)
        process.kill()
        process.wait()
        server.set_faults()
        single = ("--model", "parrot", "--base-url", server.base_url)
        assert re.search(r"isn't collected \((a batch of file-0|batch-0)\)", run(store, *single, status=2))
        run(store, *self.arguments(server))
        assert len(server.log()["batches"]) == 1
        assert "10 with all 5" in run(store, *single)
        assert set(server.log()["answered"].values()) == {1}

    def test_killed_while_it_collects_nothing_is_asked_again(self, store_of, chat_server, run):
        store, server = store_of(40), chat_server(files_s=3600.0)
        process = subprocess.Popen(command(store, *self.arguments(server)), cwd=ROOT, stderr=subprocess.DEVNULL)
        while not server.log()["answered"]:
            time.sleep(0.02)
        process.kill()
        process.wait()
        server.set_faults()
        run(store, *self.arguments(server))
        expected = table_of(store)
        path = store / "test/train/paraphrases.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in whole_lines(store)[:25]))
        (store / "test/train/paraphrases-batches.json").unlink()
        run(store, *self.arguments(server))
        assert table_of(store) == expected
        assert len(journal_of(store)) == 40
        assert set(server.log()["answered"].values()) == {1}

    def test_a_batch_whose_answers_are_gone_is_asked_again(self, store_of, chat_server, run):
        store, server = store_of(10), chat_server(batch_lost=True)
        assert "the answers of batch batch-0 no longer exist (404)" in run(store, *self.arguments(server), status=2)
        server.set_faults()
        run(store, *self.arguments(server))
        assert len(table_of(store)) == 10


class TestImport:
    def entries(self, store):
        split = open_split(store, "test/train")
        return [
            {"path": f"clotho\\development\\{clip_id.rpartition('/')[2]}", "caption": caption.lower().rstrip("."),
             "variations": [f"{n}. {text}" for n, text in enumerate(reword(caption, 5), start=1)]}
            for clip_id, captions in zip(split.clip_ids, split.captions, strict=True)
            for caption in captions
        ]  # fmt: skip

    @pytest.fixture
    def give(self, run, tmp_path):
        """A function that imports a file of variations: what the command says."""

        def give_to(store, value, status=0):
            file = tmp_path / "variations.json"
            file.write_text(value if isinstance(value, str) else json.dumps(value))
            return run(store, "--corpus", "test", "--split", "train", status=status, first=("import", file))

        return give_to

    def test_published_variations(self, store_of, give):
        store = store_of(20)
        entries = self.entries(store)
        entries[0]["variations"][0] = entries[0]["caption"]
        entries.append({"path": "else.wav", "caption": "x", "variations": ["a b"]})
        said = give(store, entries)
        rows = table_of(store)
        assert [len(row["variants"]) for row in rows] == [4] + [5] * 19
        assert rows[1]["variants"] == reword(open_split(store, "test/train").captions[0][1], 5)
        assert {row["model"] for row in rows} == {"imported"}
        assert "1 fail: not the original (not kept)" in said
        assert "variations.json, entry 21: test/train has no clip 'else.wav'" in said

    def test_clips_of_the_same_name_share_what_was_written(self, make_clip, noise, write_split, give):
        clips = [make_clip(name, noise(0.01), ["A dog barks."]) for name in ("a/x.wav", "b/x.wav")]
        store = write_split(clips).store.path
        give(store, [{"path": "x.wav", "caption": "a dog barks", "variations": ["A hound woofs."]}])
        assert [row["variants"] for row in table_of(store)] == [["A hound woofs."]] * 2

    def test_they_are_not_replaced_by_accident(self, store_of, run, give):
        """Not even by the model that is said to have written them."""
        store = store_of(10)
        give(store, self.entries(store))
        arguments = ("--model", "imported", "--base-url", "http://localhost:1")
        assert "already has paraphrases by 'imported'" in run(store, *arguments, status=2)
        give(store, self.entries(store)[:5])
        assert len(table_of(store)) == 5

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("{", "isn't JSON"),
            ({"path": "x"}, "isn't a list"),
            ([{"path": "x", "caption": "y", "variations": "z"}], "entry 1"),
            ([{"path": "x", "caption": "y", "variations": ["z"]}], "its 1 entries are about other captions"),
            ([], "empty"),
        ],
    )
    def test_what_is_wrong_is_named(self, store_of, give, value, why):
        assert why in give(store_of(5), value, status=2)


def test_the_page_tells_what_is_good_but_not_used(make_clip, noise, write_split):
    split = write_split([make_clip("a.wav", noise(0.01), ["A dog barks once."])])
    captions = ParaphraseJob(split, "parrot", 2)
    (request,) = captions.distinct_requests()
    texts = [f"A hound woofs {word}." for word in ("once", "at 5 p.m.", "loudly", "twice")]
    answer = Answer("\n".join(f"{n}. {text}" for n, text in enumerate(texts, start=1)))
    asyncio.run(append_line(captions.journal, to_line(request, answer)))
    answered = AnswerLog(captions)
    ((row, _),) = filter_paraphrases(captions, answered, 1, ParaphraseOutcome())
    answered.file.close()
    assert list(row.used) == [0, 2]
    write_page(split.store.path / "page.html", split.name, "parrot", captions.instruction, [row])
    page = (split.store.path / "page.html").read_text()
    assert re.findall(r'"dropped">([^<]+)<', page) == [texts[1], texts[3]]
    assert re.findall(r"([^<>]+)</span> <span class=\"unused\">", page) == [texts[3]]


async def append_line(path, line):
    with Journal(path) as journal:
        await journal.append(line)


def test_the_page_shows_everything(make_clip, noise, write_split, chat_server, run):
    captions = ["A dog & a cat run once while rain falls.", "A <b>dog</b> & a cat run twice while rain falls."]
    clips = [make_clip("a.wav", noise(0.01), captions, keywords=("dog", "<i>tag</i>"))]
    store, server = write_split(clips).store.path, chat_server(share_refused=0.5, tries=99)
    run(store, "--model", "parrot", "--base-url", server.base_url)
    said = run(store, first=("review",))
    page = (store / "test/train/paraphrases.html").read_text()
    assert f"test/train: {store}/test/train/paraphrases.html" in said
    assert page.count("<section") == 2
    assert "A dog &amp; a cat run once" in page
    assert "A &lt;b&gt;dog&lt;/b&gt; &amp; a cat run twice" in page
    assert "&lt;i&gt;tag&lt;/i&gt;" in page
    assert "<b>" not in page
    assert not re.search(r"(?:src|href)=", page)
    assert "no paraphrases" in run(store, "--split", "other", first=("review",), status=2)
    write_split([make_clip("b.wav", noise(0.01), ["A bell rings twice."])], name="other", paraphrases=[
        Paraphrase("test/other/b.wav", "A bell rings twice.", ("Twice a bell rings.",), "imported")
    ])  # fmt: skip
    said = run(store, "--out", store / "page.html", first=("review",), status=2)
    assert "one page can't show several splits (test/other, test/train)" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--variants", "0"), "isn't an integer of at least 1"),
        (("--timeout", "-1"), "isn't a number above 0"),
        (("--budget", "nan"), "isn't a number above 0"),
        (("--model", "grammar", "--batch"), "--batch: grammar needs no server"),
        (("--model", "grammar", "--concurrency", "2"), "--concurrency: grammar needs no server"),
        (("--model", "grammar", "--base-url", "http://localhost:1"), "--base-url: grammar needs no server"),
        (("--batch", "--concurrency", "2"), "--concurrency: with --batch the server sets it"),
        (("--poll", "2"), "--poll: it has no effect without --batch"),
        (("--batch", "--batch-size", "60000"), "the API takes 50,000 at most"),
    ],
)
def test_bad_arguments_are_refused(store_of, arguments, why, run):
    assert why in run(store_of(5), *arguments, status=2)


def test_a_store_that_cannot_be_written_is_named(store_of, run):
    store = store_of(5)
    (store / "test/train/paraphrases.jsonl").mkdir()
    assert "paraphrases.jsonl can't be used: Is a directory" in run(store, "--model", "grammar", status=2)


def test_a_split_that_is_not_there(store_of, run):
    assert "holds no split 'clotho/development'" in run(store_of(5), first=("clotho",), status=2)


def test_a_table_of_before_has_neither_instruction_nor_time(store_of, run):
    store = store_of(5)
    split = open_split(store, "test/train")
    captions = ParaphraseJob(split, "x", 5)
    rows = [
        {"clip_id": clip_id, "caption_hash": hash_caption(request.caption), "variants": ["a b"], "model": "grammar"}
        for clip_id, request in captions.iter_requests()
    ]
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(store / "test/train/paraphrases.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as out,
    ):
        out.write_table(table)
    assert len(split.read_paraphrases()) == 5
    run(store, first=("review",))
    model = ("--model", "x", "--base-url", "http://localhost:1")
    assert "already has paraphrases by 'grammar'" in run(store, *model, status=2)
    run(store, "--model", "grammar")
    assert len(table_of(store)) == 5


def test_paraphrases_keep_what_wrote_them(make_clip, noise, write_split):
    row = Paraphrase("test/train/a.wav", "A dog.", ("a hound",), "grammar", "dcase2023/5")
    split = write_split([make_clip("a.wav", noise(0.01), ["A dog."])], paraphrases=[row])
    assert split.read_paraphrases_table().to_pylist() == [
        {"clip_id": row.clip_id, "caption_hash": hash_caption("A dog."), "variants": ["a hound"], "model": "grammar",
         "instruction": "dcase2023/5", "time": None}
    ]  # fmt: skip
