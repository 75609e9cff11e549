"""Downloads and archives: from real servers, broken off, killed and gone on with."""

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import py7zr
import pytest

from data.errors import UserError
from data.sources import download

ROOT = Path(__file__).parents[3]
NAMES = ("plain.csv", "Dogs &amp; cats, é ü 雨 .7z", "100% #1?.csv")
BIG = random.Random(0).randbytes(400_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Answers from `server.files`, with the server's ailments."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        place = self.headers["Range"]
        self.server.log.append((path, place))
        self.server.authorizations.append(self.headers["Authorization"])
        if self.server.refusals:
            self.server.refusals -= 1
            return self.answer(503)
        if path in self.server.redirects:
            return self.answer(302, {"Location": self.server.redirects[path]})
        if path not in self.server.files:
            return self.answer(404)
        contents = self.server.files[path]
        start = int(place.removeprefix("bytes=").removesuffix("-")) if place and self.server.ranges else 0
        if start and start >= len(contents):
            return self.answer(416, {"Content-Range": f"bytes */{len(contents)}"})
        if start and self.server.hold:
            self.server.held.set()
            self.server.released.wait()
            self.close_connection = True
            return None
        headers = {"Content-Range": f"bytes {start}-{len(contents) - 1}/{len(contents)}"} if start else {}
        rest = contents[start:]
        sent = self.server.breaks.pop(0) if self.server.breaks else len(rest)
        self.close_connection = sent < len(rest)
        return self.answer(206 if start else 200, headers, rest, sent)

    def answer(self, status, headers=None, body=b"", sent=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def running_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.redirects, server.log, server.authorizations = {}, {}, [], []
    server.ranges, server.refusals, server.breaks = True, 0, []
    server.hold, server.held, server.released = False, threading.Event(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def elsewhere():
    with running_server() as server:
        yield server


@pytest.fixture
def big(server):
    """A server with one file, and what `fetch` is told of it."""
    server.files = {"/big.7z": BIG}
    return server, {"big.7z": md5(BIG)}


def md5(contents):
    return hashlib.md5(contents).hexdigest()


def parts(folder):
    return list(folder.glob("*.part"))


def start_child(statement, **environment):
    code = f"""
import resource, sys
from pathlib import Path
from data.runtime.command_line import command
from data.sources.download import extract_archive, fetch_dataset, fetch_files

def limit_files(num_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))

@command
def main(argv):
    {statement}

sys.exit(main())
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def run_child(statement, **environment):
    with start_child(statement, **environment) as child:
        said = child.communicate(timeout=60)[1]
    return child.returncode, said


def test_files_of_any_name_are_fetched_and_kept_without_a_request(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    contents = {name: name.encode() * 1_000 for name in NAMES} | {"empty": b""}
    server.files = {f"/records/1/files/{name}": data for name, data in contents.items()}
    checksums = {name: md5(data) for name, data in contents.items()}
    base_url = f"{server.url}/records/1/files"
    download.fetch_files(base_url, checksums, tmp_path / "new" / "folder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == contents
    assert len(server.log) == len(contents) - 1  # of an empty file all is there before it is asked for
    assert f"{tmp_path}/new/folder/plain.csv: downloaded, 9.0 kB" in caplog.messages
    server.log.clear()
    download.fetch_files(base_url, checksums, tmp_path / "new" / "folder")
    assert not server.log


def test_a_file_with_other_contents_is_fetched_again(big, tmp_path, caplog):
    server, checksums = big
    (tmp_path / "big.7z").write_bytes(BIG[:-1] + b"x")
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    assert f"its md5 is {md5(BIG[:-1] + b'x')}, expected {md5(BIG)}: downloading it again" in caplog.text


def test_a_download_goes_on_where_its_connection_broke_off(big, tmp_path):
    server, checksums = big
    server.breaks = [200_000, 100_000]
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    starts = [int(place.removeprefix("bytes=").removesuffix("-")) for _, place in server.log[1:]]
    assert [place for _, place in server.log[:1]] == [None]
    assert 200_000 - download.CHUNK_BYTES < starts[0] <= 200_000 < starts[1] <= 300_000
    assert not parts(tmp_path)


def test_a_killed_download_goes_on_in_another_process(big, tmp_path):
    server, checksums = big
    server.breaks, server.hold = [200_000], True
    # Its second request says that what came of the first is written.
    with start_child(f"fetch_files({server.url!r}, {checksums}, Path({str(tmp_path)!r}))") as child:
        assert server.held.wait(timeout=60)
        child.send_signal(signal.SIGKILL)
    server.released.set()
    (part,) = parts(tmp_path)
    there = part.stat().st_size
    assert there > 100_000
    assert not (tmp_path / "big.7z").exists()
    server.hold = False
    server.log.clear()
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    assert server.log == [("/big.7z", f"bytes={there}-")]
    assert not parts(tmp_path)


def test_a_killed_download_that_had_come_whole_needs_no_request(big, tmp_path):
    server, checksums = big
    (tmp_path / f"big.7z.{checksums['big.7z'][:8]}.part").write_bytes(BIG)
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    assert not server.log


def test_a_server_that_gives_whole_files_only_is_asked_for_the_whole_file_again(big, tmp_path):
    server, checksums = big
    server.ranges, server.breaks = False, [200_000]
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    assert len(server.log) == 2


def test_a_server_that_breaks_off_without_sending_more_is_given_up_and_what_came_is_kept(big, tmp_path):
    server, checksums = big
    server.breaks = [200_000, 0]
    with pytest.raises(UserError, match=f"{server.url}/big.7z can't be downloaded: .* the same command to resume"):
        download.fetch_files(server.url, checksums, tmp_path)
    assert len(server.log) == 2
    assert parts(tmp_path)[0].stat().st_size > 100_000


def test_a_server_that_is_overloaded_for_a_while_is_asked_again(big, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0))
    server, checksums = big
    server.refusals = 2
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG
    assert len(server.log) == 3


def test_a_server_that_stays_overloaded_is_named(big, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0))
    server, checksums = big
    server.refusals = 99
    with pytest.raises(UserError, match=f"{server.url}/big.7z can't be downloaded: 503"):
        download.fetch_files(server.url, checksums, tmp_path)
    assert len(server.log) == 1 + download.RETRY.total


def test_waits_between_requests_grow():
    retry, waits = download.RETRY, []
    for _ in range(download.RETRY.total):
        retry = retry.increment("GET", "/", error=ConnectionRefusedError())
        waits.append(retry.get_backoff_time())
    assert waits == [0, 2, 4, 8, 16]


@pytest.mark.parametrize("served", [BIG[:-1] + b"x", BIG[:100_000]])
def test_wrong_contents_are_removed_and_both_checksums_said(big, tmp_path, served):
    server, checksums = big
    server.files["/big.7z"] = served
    said = f"{server.url}/big.7z: its md5 is {md5(served)}, expected {md5(BIG)}"
    with pytest.raises(UserError, match=re.escape(said)):
        download.fetch_files(server.url, checksums, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_as_long_as_the_file_and_wrong_is_removed(big, tmp_path):
    server, checksums = big
    (tmp_path / f"big.7z.{checksums['big.7z'][:8]}.part").write_bytes(BIG[:-1] + b"x")
    with pytest.raises(UserError, match="removed: re-run the same command"):
        download.fetch_files(server.url, checksums, tmp_path)
    download.fetch_files(server.url, checksums, tmp_path)
    assert (tmp_path / "big.7z").read_bytes() == BIG


def test_a_file_that_the_server_has_not_is_named_and_asked_for_once(server, tmp_path):
    with pytest.raises(UserError, match=f"{server.url}/absent.csv can't be downloaded: 404"):
        download.fetch_files(server.url, {"absent.csv": md5(b"")[::-1]}, tmp_path)
    assert len(server.log) == 1


def test_a_server_that_is_out_of_reach_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY", download.RETRY.new(backoff_factor=0))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{url}/a.csv can't be downloaded: .*refused.* re-run the same command"):
        download.fetch_files(url, {"a.csv": md5(b"a")}, tmp_path)


def test_a_download_goes_on_once_there_is_room(big, tmp_path):
    server, checksums = big
    status, said = run_child(f"limit_files(150_000); fetch_files({server.url!r}, {checksums}, Path({str(tmp_path)!r}))")
    assert (status, said.count("\n")) == (2, 1)
    assert f"error: {server.url}/big.7z can't be written to {tmp_path}/big.7z." in said
    assert "File too large; free disk space" in said
    (part,) = parts(tmp_path)
    there = part.stat().st_size
    assert there > 100_000
    download.fetch_files(server.url, checksums, tmp_path)
    assert server.log[-1] == ("/big.7z", f"bytes={there}-")
    assert (tmp_path / "big.7z").read_bytes() == BIG


MEMBERS = {
    "development/Dogs &amp; cats, é ü .wav": b"first" * 5_000,
    "development/雨 &#39;rain&#39;.wav": b"",
    "validation/a.wav": b"second" * 5_000,
}


def write_archive(path, members):
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, contents in members.items():
            archive._writestr(contents, name)  # without the check of names
    return path


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "audio.7z", MEMBERS)


def extracted(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_is_extracted_once(archive, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    download.extract_archive(archive, out)
    assert extracted(out) == MEMBERS
    written = {path: path.stat().st_ino for path in out.rglob("*")}
    download.extract_archive(archive, out)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == written
    assert caplog.messages == [f"{archive}: extracting 3 files", f"{archive}: already extracted"]


@pytest.mark.parametrize("harm", ["shorter", "gone"])
def test_an_archive_is_extracted_again_where_a_file_is_harmed(archive, tmp_path, harm):
    out = tmp_path / "out"
    download.extract_archive(archive, out)
    file = out / "validation" / "a.wav"
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(b"second")
    (out / ".audio.7z.part").mkdir()  # as a killed extraction leaves it
    (out / ".audio.7z.part" / "left.wav").touch()
    download.extract_archive(archive, out)
    assert extracted(out) == MEMBERS


def test_an_archive_leaves_other_files_in_place(archive, tmp_path):
    (tmp_path / "out" / "development").mkdir(parents=True)
    (tmp_path / "out" / "development" / "other.wav").write_bytes(b"other")
    download.extract_archive(archive, tmp_path / "out")
    assert extracted(tmp_path / "out") == MEMBERS | {"development/other.wav": b"other"}


@pytest.mark.parametrize("name", ["../evil.wav", "development/../../evil.wav", "/evil.wav"])
def test_an_archive_with_names_that_lead_out_of_it_is_refused(tmp_path, name):
    archive = write_archive(tmp_path / "evil.7z", {"good.wav": b"good", name: b"evil"})
    with pytest.raises(UserError, match=re.escape(f"{archive}: the name {name!r} points outside its folder")):
        download.extract_archive(archive, tmp_path / "out")
    assert extracted(tmp_path).keys() == {"evil.7z"}


def test_an_archive_with_a_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    with py7zr.SevenZipFile(tmp_path / "links.7z", "w") as archive:
        archive.write(tmp_path / "link", "development/link")
    with pytest.raises(UserError, match="'development/link' is neither a file nor a folder"):
        download.extract_archive(tmp_path / "links.7z", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_torn_or_changed_archive_is_named_and_nothing_is_extracted(archive, tmp_path):
    contents, out = archive.read_bytes(), tmp_path / "out"
    changed = [contents[:length] for length in range(0, len(contents), 20)]
    changed += [
        contents[:at] + bytes([contents[at] ^ 0x55]) + contents[at + 1 :] for at in range(40, len(contents), 20)
    ]
    for torn in changed:
        archive.write_bytes(torn)
        with pytest.raises(UserError, match=f"{archive} can't be extracted: .*; remove it and download it again"):
            download.extract_archive(archive, out)
        assert not extracted(out)
    archive.write_bytes(contents)
    download.extract_archive(archive, out)
    assert extracted(out) == MEMBERS


def test_an_absent_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/audio.7z can't be extracted"):
        download.extract_archive(tmp_path / "audio.7z", tmp_path / "out")


def test_an_archive_is_extracted_whole_or_not_at_all_on_a_full_disk(archive, tmp_path):
    out = tmp_path / "out"
    statement = f"extract_archive(Path({str(archive)!r}), Path({str(out)!r}))"
    status, said = run_child(f"limit_files(26_000); {statement}")
    assert (status, "File too large" in said, "Traceback" in said) == (2, True, False)
    assert not extracted(out)
    assert run_child(statement)[0] == 0
    assert extracted(out) == MEMBERS


@pytest.fixture
def hub(server, elsewhere):
    """As much of the hub as a dataset's download needs: its large files lie on another server."""
    contents = {
        "README.md": b"---\nlicence: academic\n---\n",
        "json_files/sb final.json": b"{}",
        "Zip/a &amp; é.z01": BIG,
    }
    server.contents = contents
    listing = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "Zip"}]
    for name, data in contents.items():
        file = {"type": "file", "size": len(data), "path": name, "oid": git_sha1(data)}
        resolved = f"/datasets/lab/sounds/resolve/{COMMIT}/{name}"
        if name.startswith("Zip/"):
            file["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            elsewhere.files["/blob"] = data
            server.redirects[resolved] = f"{elsewhere.url}/blob?signature=1"
        else:
            server.files[resolved] = data
        listing.append(file)
    server.listing = listing
    set_listing(server)
    return server


def set_listing(hub):
    hub.files["/api/datasets/lab/sounds"] = json.dumps({"id": "lab/sounds", "sha": COMMIT}).encode()
    hub.files[f"/api/datasets/lab/sounds/tree/{COMMIT}"] = json.dumps(hub.listing).encode()


def git_sha1(data):
    done = subprocess.run(["git", "hash-object", "--stdin"], input=data, capture_output=True, check=True)
    return done.stdout.decode().strip()


def run_dataset(hub, target, before="", repo="lab/sounds", **environment):
    return run_child(f"{before}fetch_dataset({repo!r}, Path({str(target)!r}))", HF_ENDPOINT=hub.url, **environment)


def test_a_dataset_is_fetched_as_published_and_kept(hub, elsewhere, tmp_path):
    status, said = run_dataset(hub, tmp_path, HF_TOKEN="hf_secret")
    assert (status, "secret" in said) == (0, False)
    assert extracted(tmp_path) == hub.contents
    # The hub's library asks for other things too, without a token.
    tokens = {token for (path, _), token in zip(hub.log, hub.authorizations, strict=True) if "lab/sounds" in path}
    assert tokens == {"Bearer hf_secret"}
    assert elsewhere.authorizations == [None]
    hub.log.clear()
    elsewhere.log.clear()
    assert run_dataset(hub, tmp_path)[0] == 0
    assert [path for path, _ in hub.log + elsewhere.log if "lab/sounds" in path or path == "/blob"] == [
        "/api/datasets/lab/sounds",
        f"/api/datasets/lab/sounds/tree/{COMMIT}",
    ]


def test_a_datasets_download_goes_on_where_it_stopped(hub, elsewhere, tmp_path):
    status, said = run_dataset(hub, tmp_path, before="limit_files(150_000); ")
    assert (status, "File too large" in said) == (2, True)
    (part,) = parts(tmp_path / "Zip")
    there = part.stat().st_size
    assert run_dataset(hub, tmp_path)[0] == 0
    assert elsewhere.log == [("/blob", None), ("/blob", f"bytes={there}-")]
    assert extracted(tmp_path) == hub.contents


@pytest.mark.parametrize("name", ["README.md", "Zip/a &amp; é.z01"])
def test_a_datasets_file_that_was_changed_or_torn_is_found_and_fetched_again(hub, tmp_path, name):
    assert run_dataset(hub, tmp_path)[0] == 0
    for harmed in (b"x" + hub.contents[name][1:], hub.contents[name][:-1]):
        (tmp_path / name).write_bytes(harmed)
        status, said = run_dataset(hub, tmp_path)
        assert (status, f"{tmp_path}/{name}: its sha" in said) == (0, True)
        assert extracted(tmp_path) == hub.contents


def test_wrong_contents_of_a_dataset_are_named_and_removed(hub, elsewhere, tmp_path):
    wrong = b"x" + BIG[1:]
    elsewhere.files["/blob"] = wrong
    status, said = run_dataset(hub, tmp_path)
    assert status == 2
    assert "Zip/a%20%26amp%3B%20%C3%A9.z01: its sha256 is " in said
    assert hashlib.sha256(wrong).hexdigest() in said
    assert hashlib.sha256(BIG).hexdigest() in said
    assert extracted(tmp_path).keys() == {"README.md", "json_files/sb final.json"}


def test_a_dataset_with_names_that_lead_out_of_it_is_refused(hub, tmp_path):
    hub.listing[1]["path"] = "../evil"
    set_listing(hub)
    status, said = run_dataset(hub, tmp_path / "out")
    assert status == 2
    assert "error: dataset lab/sounds: the name '../evil' points outside its folder" in said
    assert not extracted(tmp_path)


def test_a_dataset_that_the_hub_does_not_have_is_named(hub, tmp_path):
    status, said = run_dataset(hub, tmp_path, repo="lab/absent")
    assert (status, "Traceback" in said) == (2, False)
    assert f"error: dataset lab/absent can't be listed on {hub.url}: " in said


def test_a_hub_that_is_out_of_reach_is_named(hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hub.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    status, said = run_dataset(hub, tmp_path)
    assert (status, "Traceback" in said) == (2, False)
    assert f"error: dataset lab/sounds can't be listed on {hub.url}: " in said


def test_a_second_download_into_the_same_folder_is_refused_and_the_first_is_whole(hub, elsewhere, tmp_path):
    """In two processes, the first of which is waiting for the rest of a file when the second starts."""
    for answers in (hub.files, hub.redirects):
        for path in list(answers):
            answers[path.replace("lab/sounds", "cvssp/WavCaps")] = answers.pop(path)
    elsewhere.breaks, elsewhere.hold = [200_000], True
    words = ["data/prepare.py", "wavcaps", "--download", "--source", tmp_path / "source", "--store", tmp_path / "store"]
    start = partial(
        subprocess.Popen, [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "HF_ENDPOINT": hub.url},
    )  # fmt: skip
    with start() as first:
        assert elsewhere.held.wait(timeout=60)
        (part,) = parts(tmp_path / "source" / "Zip")
        there = part.read_bytes()
        with start() as second:
            said = second.communicate(timeout=60)[1]
        assert (second.returncode, said) == (
            2, f"error: another command is writing to {tmp_path / 'source'}; wait until it has finished\n"
        )  # fmt: skip
        assert part.read_bytes() == there
        elsewhere.hold = False
        elsewhere.released.set()
        first.communicate(timeout=60)
    found = extracted(tmp_path / "source")
    assert {name: found[name] for name in hub.contents} == hub.contents
    assert not parts(tmp_path / "source" / "Zip")
