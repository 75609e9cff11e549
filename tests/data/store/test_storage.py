"""Where a store lies: a folder, or an object store read through a bounded cache."""

import hashlib
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
import soundfile

from data.errors import UserError
from data.leakage.exclusions import EXCLUSIONS_FILE, read_excluded_ids
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch
from data.schema import EXCLUSIONS, SAMPLE_RATE_HZ
from data.store import storage
from data.store.files import write_arrow_table
from data.store.storage import BLOCK_BYTES, Store
from data.store.stored_split import open_split

SPLIT = "test/train"
SHARD = f"{SPLIT}/clips-00000-0123456789abcdef.arrow"
SIZE = 2 * BLOCK_BYTES + 12_345


@pytest.fixture(autouse=True)
def environment(object_store_keys, monkeypatch, tmp_path):
    monkeypatch.setenv("CHORALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHORALE_CACHE_GB", raising=False)


@pytest.fixture(scope="module")
def server(start_object_store, tmp_path_factory):
    server, filesystem = start_object_store(tmp_path_factory.mktemp("server") / "log")
    with filesystem.open_output_stream("bucket/private/table.arrow") as file:  # in one PUT: moto guards only such ones
        file.write(b"a table")
    yield server
    server.process.terminate()
    server.process.wait()


@pytest.fixture
def folder(tmp_path):
    """A store in a folder: its files needn't be Arrow's."""
    root = tmp_path / "folder"
    for name, contents in {
        SHARD: np.random.default_rng(0).bytes(SIZE),
        f"{SPLIT}/clips-00000-0123456789abcdef.json": b"{}",
        f"{SPLIT}/paraphrases.arrow": b"other words",
        f"{SPLIT}/manifest.json": b"{}",
        f"{SPLIT}/.clips-00001.arrow.17.part": b"half",
        "test/unfinished/clips-00000-0123456789abcdef.arrow": b"a shard",
        "exclusions.arrow": b"a table",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return Store.of(root)


@pytest.fixture
def remote(server, folder, tmp_path):
    """The same store in an object store."""
    uri = server.uri(f"bucket/{tmp_path.name}")
    storage.upload_store(folder, uri)
    return Store.of(uri)


def cached_files(tmp_path):
    return [path for path in (tmp_path / "cache" / "blocks").iterdir() if path.name != "size"]


def cached_bytes(tmp_path):
    sizes = []
    for entry in os.scandir(tmp_path / "cache" / "blocks"):
        try:
            sizes.append(entry.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


def test_every_range_is_the_same_in_a_folder_and_in_an_object_store(folder, remote):
    ends = np.sort(np.random.default_rng(1).integers(0, SIZE + 1, (30, 2)), axis=1).tolist()
    ends += [[0, SIZE], [BLOCK_BYTES, 2 * BLOCK_BYTES], [SIZE - 1, SIZE], [7, 7], [BLOCK_BYTES - 1, BLOCK_BYTES + 1]]
    for start, end in ends:
        expected = folder.slice(SHARD, start, end - start)
        assert remote.slice(SHARD, start, end - start) == expected
        for store in (folder, remote):
            with store.open(SHARD, start, end - start) as file:
                assert file.read() == expected
                assert file.tell() == end - start
                file.seek(-(end - start) // 2, os.SEEK_END)
                assert file.read(5) == expected.to_pybytes()[(end - start) // 2 :][:5]
    assert remote.map(SHARD) == folder.map(SHARD)


def test_each_block_is_fetched_once_for_all_processes(remote, server, tmp_path, run_command):
    read = (
        "import sys; from data.store.storage import Store; Store.of(sys.argv[1]).slice(sys.argv[2], 4000000, 1000000)"
    )
    for _ in range(2):
        assert run_command("-c", read, remote.location, SHARD).returncode == 0
    for offset in range(0, 8_000_000, 1_000_000):
        remote.slice(SHARD, offset, 1_000_000)
    assert server.requests("GET").count(f"bucket/{tmp_path.name}/{SHARD}") == 2


def test_a_whole_file_is_fetched_once(remote, server, tmp_path):
    name = f"{SPLIT}/clips-00000-0123456789abcdef.json"
    assert remote.map(name).to_pybytes() == b"{}"
    assert remote.map(name).to_pybytes() == b"{}"
    assert server.requests("GET").count(f"bucket/{tmp_path.name}/{name}") == 1


READ_AT_RANDOM = """
import hashlib, sys
import numpy as np
from data.store.storage import BLOCK_BYTES, Store
location, folder, name, seed = sys.argv[1:]
remote, local = Store.of(location), Store.of(folder)
size = local.map(name).size
for offset in np.random.default_rng(int(seed)).integers(0, size - 2_000_000, 30).tolist():
    assert remote.slice(name, offset, 2_000_000) == local.slice(name, offset, 2_000_000)
"""


def start_reading(remote, folder, seed, **environment):
    command = [sys.executable, "-c", READ_AT_RANDOM, remote.location, folder.location, SHARD, str(seed)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], env=os.environ | environment)


def test_two_processes_that_fetch_the_same_blocks_at_once_both_read_them_right(remote, folder, tmp_path):
    readers = [start_reading(remote, folder, seed=0) for _ in range(2)]
    assert [reader.wait() for reader in readers] == [0, 0]
    assert [path.stat().st_size for path in cached_files(tmp_path)] == [BLOCK_BYTES + 8, BLOCK_BYTES + 8]


def test_the_cache_stays_within_its_bound_while_two_processes_read(server, folder, tmp_path):
    (folder.path / SHARD).write_bytes(np.random.default_rng(0).bytes(8 * BLOCK_BYTES))
    remote = Store.of(server.uri(f"bucket/{tmp_path.name}"))
    storage.upload_store(folder, remote.location)
    bound = 4 * BLOCK_BYTES
    foreign = [tmp_path / "cache" / "blocks" / "notes.txt", tmp_path / "cache" / "thesis.tex"]
    foreign[0].parent.mkdir(parents=True)
    for path in foreign:
        path.write_text("a user's own")
    largest, readers = 0, [start_reading(remote, folder, seed, CHORALE_CACHE_GB=str(bound / 1e9)) for seed in range(2)]
    while any(reader.poll() is None for reader in readers):
        largest = max(largest, cached_bytes(tmp_path))
        time.sleep(0.002)
    assert [reader.wait() for reader in readers] == [0, 0]
    assert bound - 2 * BLOCK_BYTES < largest <= bound + 2 * BLOCK_BYTES
    assert all(path.read_text() == "a user's own" for path in foreign)


def test_the_least_recently_used_block_goes_first(remote, server, monkeypatch, tmp_path):
    monkeypatch.setenv("CHORALE_CACHE_GB", str((2 * BLOCK_BYTES + 1000) / 1e9))
    for block in (0, 1, 0, 2):
        remote.slice(SHARD, block * BLOCK_BYTES, 100)
        time.sleep(0.01)
    before = len(server.requests("GET"))
    remote.slice(SHARD, 0, 100)
    remote.slice(SHARD, 2 * BLOCK_BYTES, 100)
    assert len(server.requests("GET")) == before
    remote.slice(SHARD, BLOCK_BYTES, 100)
    assert len(server.requests("GET")) == before + 1


def test_what_is_mapped_outlives_its_eviction(remote, folder, monkeypatch, tmp_path):
    whole = remote.map(SHARD)
    monkeypatch.setenv("CHORALE_CACHE_GB", "0.001")
    remote.slice(SHARD, 0, 100)
    assert len(cached_files(tmp_path)) == 1
    assert whole == folder.map(SHARD)


def test_a_file_left_by_a_killed_process_is_removed_in_time(remote, monkeypatch, tmp_path):
    remote.slice(SHARD, 0, 100)
    being_written, abandoned = [tmp_path / "cache" / "blocks" / f"{'0' * 64}.0.part{name}" for name in ("a", "b")]
    being_written.write_bytes(b"half")
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    monkeypatch.setenv("CHORALE_CACHE_GB", "0.001")
    remote.slice(SHARD, BLOCK_BYTES, 100)
    assert being_written.exists()
    assert not abandoned.exists()


@pytest.mark.parametrize("left_bytes", [0, 5, 1000, BLOCK_BYTES])
def test_a_torn_file_in_the_cache_is_fetched_again(remote, folder, tmp_path, left_bytes):
    remote.slice(SHARD, 0, 100)
    remote.map(SHARD)
    for path in cached_files(tmp_path):
        os.truncate(path, left_bytes)
    assert remote.slice(SHARD, 0, 100) == folder.slice(SHARD, 0, 100)
    assert remote.map(SHARD) == folder.map(SHARD)
    assert sorted(path.stat().st_size for path in cached_files(tmp_path)) == [BLOCK_BYTES + 8, SIZE + 8]


def test_a_window_of_a_long_recording_fetches_few_blocks(server, folder, noise, tmp_path):
    path = folder.path / SHARD
    soundfile.write(path, np.tile(noise(60), 10), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    junk = b"x" * 1_000_000
    path.write_bytes(junk + (audio := path.read_bytes()) + junk)
    storage.upload_store(folder, server.uri(f"bucket/{tmp_path.name}"))
    remote = Store.of(server.uri(f"bucket/{tmp_path.name}"))
    start, count = 500 * SAMPLE_RATE_HZ, 30 * SAMPLE_RATE_HZ
    windows = []
    for store in (folder, remote):
        with soundfile.SoundFile(store.open(SHARD, len(junk), len(audio))) as file:
            file.seek(start)
            windows.append(file.read(count, dtype="float32"))
    np.testing.assert_array_equal(windows[0], np.tile(noise(60), 10)[start : start + count])
    np.testing.assert_array_equal(windows[1], windows[0])
    assert len(audio) > 8 * BLOCK_BYTES
    assert len(cached_files(tmp_path)) <= 5


def test_reading_up_to_a_blocks_end_does_not_fetch_the_next_one(remote, tmp_path):
    with remote.open(SHARD, 0, SIZE) as file:
        file.seek(BLOCK_BYTES - 10)
        assert len(file.read(10)) == 10
    assert len(cached_files(tmp_path)) == 1


def test_a_full_disk_is_warned_of_once_and_reading_goes_on(remote, folder, run_command, tmp_path):
    limited = "import logging, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
    limited += "logging.basicConfig();"
    whole = "assert remote.map(name) == local.map(name)"
    done = run_command("-c", limited + READ_AT_RANDOM + whole, remote.location, folder.location, SHARD, 0)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("continuing without a cache") == 1
    assert cached_files(tmp_path) == []


def test_a_cache_that_cant_be_is_refused(remote, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHORALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set CHORALE_CACHE to another"):
        remote.slice(SHARD, 0, 100)
    monkeypatch.setenv("CHORALE_CACHE_GB", "plenty")
    with pytest.raises(UserError, match=r"CHORALE_CACHE_GB is 'plenty': give .* in GB"):
        remote.slice(SHARD, 0, 100)


def test_the_cache_lies_where_the_platform_keeps_caches(remote, monkeypatch, tmp_path):
    monkeypatch.delenv("CHORALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    remote.slice(SHARD, 0, 100)
    assert len(list((tmp_path / "xdg" / "chorale" / "blocks").glob("*.0"))) == 1


def test_files_of_a_folder_are_mapped_without_a_copy_or_an_open_descriptor(folder):
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    whole = folder.map(SHARD)
    assert folder.slice(SHARD, 1000, 100).address == whole.address + 1000
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_an_empty_file_in_a_folder_is_torn(folder):
    (folder.path / SHARD).write_bytes(b"")
    with pytest.raises(UserError, match="it is truncated"):
        folder.slice(SHARD, 0, 10)


@pytest.mark.parametrize("kind", ["folder", "remote"])
def test_a_small_file_is_read_as_it_is_at_the_moment(kind, folder, request):
    store = request.getfixturevalue(kind)
    assert store.read("exclusions.arrow") == b"a table"
    (folder.path / "exclusions.arrow").write_bytes(b"another table")
    if store.is_remote:
        storage.upload_store(folder, store.location)
    assert store.read("exclusions.arrow") == b"another table"


@pytest.mark.parametrize("kind", ["folder", "remote"])
def test_what_is_absent_or_torn_is_said(kind, request):
    store = request.getfixturevalue(kind)
    absent = f"{SPLIT}/clips-00009-0123456789abcdef.arrow"
    for act in (
        store.read,
        store.map,
        lambda name: store.slice(name, 0, 1),
        lambda name: store.open(name, 0, 1).read(),
    ):
        with pytest.raises(FileNotFoundError):
            act(absent)
    for offset in (SIZE - 5, 2 * SIZE):
        with pytest.raises(UserError, match=f"{SHARD} has no 10 bytes from {offset} on: it is truncated"):
            store.slice(SHARD, offset, 10)


@pytest.mark.parametrize("kind", ["folder", "remote"])
def test_the_splits_with_a_manifest_are_listed(kind, request, server, tmp_path):
    assert request.getfixturevalue(kind).list_splits() == [SPLIT]
    absent = tmp_path / "absent" if kind == "folder" else server.uri("bucket/absent")
    assert Store.of(absent).list_splits() == []


def test_a_store_is_where_its_path_or_uri_says(tmp_path, monkeypatch, remote):
    monkeypatch.chdir(tmp_path)
    assert Store.of("x") == Store.of(tmp_path / "x") == Store.of(f"file://{tmp_path}/x/") == Store(f"{tmp_path}/x")
    assert Store.of(Store("/x")) == Store("/x")
    assert Store("/x").path == Path("/x")
    with pytest.raises(UserError, match="in an object store, but a folder is needed"):
        _ = remote.path


@pytest.mark.parametrize("kind", ["folder", "remote"])
def test_a_store_can_be_sent_to_another_process(kind, request):
    store = request.getfixturevalue(kind)
    store.slice(SHARD, 0, 100)
    assert pickle.loads(pickle.dumps(store)) == store
    assert len(pickle.dumps(store)) < 500


@pytest.mark.parametrize("uri", ["s3://bucket/a store", "s3://bucket/store?speed=9", "swift://bucket/store"])
def test_a_uri_that_cant_be_understood_is_refused(uri):
    with pytest.raises(UserError, match=r"//bucket/\S* ?\S* can't be opened: .*; give a folder") as caught:
        Store.of(uri)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:SECRETWORD@bucket/store",
        "s3://AKIAKEY:SECRET%2FWORD@bucket/store?region=eu",
        "s3://AKIAKEY:SECRET/WORD@bucket/store",
        "s3://AKIAKEY@bucket/store",
        "gs://AKIAKEY:SECRETWORD@bucket/store",
        "swift://AKIAKEY:SECRETWORD@bucket/store",
        "s3://bucket/store?access_key=AKIAKEY&secret_key=SECRETWORD",
        "s3://bucket/store?session_token=SECRETWORD",
        "s3://bucket/store?endpoint_override=http://AKIAKEY:SECRETWORD@127.0.0.1:9&scheme=http",
    ],
)
def test_keys_in_a_uri_are_refused_with_the_remedy_and_not_shown(uri):
    with pytest.raises(
        UserError, match=r"//bucket/store: remove the keys .* AWS_SECRET_ACCESS_KEY.* profile"
    ) as caught:
        Store.of(uri)
    assert not re.search("AKIAKEY|SECRETWORD|WORD@", str(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_an_at_sign_in_a_path_or_before_the_host_of_another_service_is_no_key():
    assert str(Store.of("s3://bucket/a@b?region=us-east-1")) == "s3://bucket/a@b?region=us-east-1"
    assert str(Store.of("gs://anonymous@bucket/store")) == "gs://anonymous@bucket/store"


def test_a_store_in_a_bucket_is_read_with_the_keys_in_the_environment(server, remote, tmp_path):
    assert remote.read("exclusions.arrow") == b"a table"
    assert str(remote) == server.uri(f"bucket/{tmp_path.name}")
    assert repr(remote) == f"Store({str(remote)!r})"


def test_a_bucket_that_isnt_there_is_named(server, folder):
    store = Store.of(server.uri("nobucket/store"))
    for act in (store.list_splits, lambda: store.read("a"), lambda: store.slice("a", 0, 1)):
        with pytest.raises(
            UserError, match=r"s3://nobucket/store\S+.*(bucket 'nobucket' doesn't exist|NO_SUCH_BUCKET).*; check"
        ):
            act()
    with pytest.raises(UserError, match=r"s3://nobucket/store\S+ can't be reached: .*NO_SUCH_BUCKET"):
        storage.upload_store(folder, store.location)


def test_missing_credentials_are_named(server, monkeypatch, run_command):
    read = "import sys; from data.store.storage import Store; Store.of(sys.argv[1]).read('table.arrow')"
    uri = server.uri("bucket/private")
    assert run_command("-c", read, uri).returncode == 0
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused = run_command("-c", read, uri).stderr
    assert re.search(r"UserError: .* can't be reached: .*ACCESS_DENIED.*; check .*AWS_ACCESS_KEY_ID", refused)


def test_an_endpoint_that_never_answers_is_given_up_within_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        store = Store.of(f"s3://bucket/store?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"s3://bucket/store\S+:{port}\S* can't be reached: .*; check .*endpoint"):
            store.read("exclusions.arrow")
        assert time.monotonic() - began < 20


def test_settings_of_a_uri_that_pyarrow_cant_copy_are_kept():
    uri = "s3://bucket/store?region=us-east-1&tls_verify_certificates="
    filesystems = [storage.open_filesystem(f"{uri}{value}")[0] for value in ("true", "false")]
    assert not filesystems[0].equals(filesystems[1])


def test_a_copy_is_equal_and_its_manifest_last(remote, folder, server, tmp_path):
    prefix = f"bucket/{tmp_path.name}/"
    requests = [path for path in server.requests("PUT|POST") if path.startswith(prefix)]
    written = list(dict.fromkeys(path.removeprefix(prefix) for path in requests))
    names = ["exclusions.arrow", SHARD, SHARD.replace(".arrow", ".json"), f"{SPLIT}/paraphrases.arrow"]
    assert written == [*names, f"{SPLIT}/manifest.json"]
    for name in written:
        assert hashlib.sha256(remote.read(name)).digest() == hashlib.sha256(folder.read(name)).digest()


def test_copying_again_writes_only_what_may_have_changed(remote, folder, server, tmp_path):
    before = len(server.requests("PUT|POST"))
    storage.upload_store(folder, remote.location)
    written = {path.removeprefix(f"bucket/{tmp_path.name}/") for path in server.requests("PUT|POST")[before:]}
    assert written == {"exclusions.arrow", f"{SPLIT}/paraphrases.arrow", f"{SPLIT}/manifest.json"}


def test_only_a_store_in_a_folder_is_copied_to_an_object_store(remote, folder, tmp_path):
    with pytest.raises(UserError, match="is a folder, not an object store"):
        storage.upload_store(folder, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="in an object store, but a folder is needed"):
        storage.upload_store(remote, remote.location)
    with pytest.raises(UserError, match="holds no split"):
        storage.upload_store(Store.of(tmp_path / "absent"), remote.location)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
@pytest.mark.parametrize("codec", ["flac", "pcm16"])
def test_a_split_in_an_object_store_gives_the_same_batches(codec, server, make_clip, noise, write_split, tmp_path):
    clips = [make_clip(f"{seed}.wav", noise(1 + seed, seed), (f"Sound {seed}.", "Again.")) for seed in range(4)]
    local = write_split(clips, codec)
    row = {"clip_id": local.clip_ids[1], "split": "test/train", "reason": "it is heard elsewhere"}
    write_arrow_table(tmp_path / "store" / EXCLUSIONS_FILE, pa.Table.from_pylist([row], schema=EXCLUSIONS))
    uri = server.uri(f"bucket/{tmp_path.name}")
    storage.upload_store(local.store, uri)

    split = open_split(uri, "test/train")
    assert (split.fingerprint, split.clip_ids) == (local.fingerprint, local.clip_ids)
    np.testing.assert_array_equal(split.read_window(3, 50_000, 9_000), local.read_window(3, 50_000, 9_000))
    left_out = read_excluded_ids(uri, ["test/train"])
    assert left_out == {local.clip_ids[1]}
    batches = []
    for one, workers in ((local, 0), (split, 0), (split, 1)):
        pairs = ClipCaptionDataset([one], 0.5, 1.5, 0.0, 0, left_out)
        batches.append(list(load_epoch(pairs, 1, order_epoch(pairs, 1, 3), loader_workers=workers)))
    assert [len(batch.captions) for batch in batches[0]] == [3, 3]
    for others in batches[1:]:
        for batch, other in zip(batches[0], others, strict=True):
            assert batch.captions == other.captions
            assert batch.segments_per_clip.tolist() == other.segments_per_clip.tolist()
            np.testing.assert_array_equal(batch.segments, other.segments)
