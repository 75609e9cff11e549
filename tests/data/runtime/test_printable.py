"""Names of files, captions and names in archives reach a terminal as text, and become paths only as bare names."""

import ast
import contextlib
import csv
import io
import json
import logging
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.printable import escape_controls, hide_credentials, parse_bare_name, require_bare_name
from data.runtime.tables import Column, TextTable, print_table
from trainables.records.ledger import Sweep

ROOT = Path(__file__).parents[3]
HOSTILE = "a\x1b]0;OWNED\x07\x1b[2K\rb\u202ec\x9bd\u2028e\nskipped: forged"
"""Sets a terminal's title, removes the line, reverses text, and begins a line of its own."""

SHOWN = r"a\x1b]0;OWNED\x07\x1b[2K\x0db\u202ec\x9bd\u2028e\x0askipped: forged"


def controls(text):
    """The control and format characters of what was printed, other than the ends of lines and tabs."""
    return {character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Zl")} - {"\n", "\t"}


@given(st.text(st.characters(), max_size=20))
def test_what_is_shown_has_no_control_character_and_other_text_is_unchanged(text):
    shown = escape_controls(text)
    assert not controls(shown)
    assert "\n" not in shown
    assert shown == escape_controls(shown)
    assert shown.encode() is not None  # no surrogate is left, which standard output would refuse
    if text.isprintable():
        assert shown == text


@given(st.text(st.characters(), max_size=20), st.booleans())
def test_everything_that_is_printed_is_plain(text, is_terminal):
    """Rich's markup, emoji codes, cells of tables of both kinds, and lines."""
    console = PlainConsole(file=io.StringIO(), width=200, force_terminal=is_terminal, color_system=None)
    console.print_line(f"[bold]{text}[/x] :smile:")
    print_table(console, TextTable("title", [Column("one", False), Column("two", False)], [(text, "[/x]")]))
    table = Table(box=None)
    table.add_row(text, "[/x]")
    console.print(table)
    printed = console.file.getvalue()
    assert not controls(printed)
    assert printed.startswith(f"[bold]{escape_controls(text)}[/x] :smile:\n")
    assert printed.count("[/x]") == 3


def test_the_words_of_libraries_keep_their_lines_and_others_are_one_line(capsys):
    @command
    def main(argv):
        logging.getLogger("chorale.x").warning("%s", HOSTILE)
        logging.getLogger("data.store.storage").warning("%s", HOSTILE)
        logging.getLogger("a_library.x").warning("two\nlines\x1b[2K")
        raise UserError(f"{HOSTILE} is wrong")

    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        SHOWN, SHOWN, "two", r"lines\x1b[2K", f"error: {SHOWN} is wrong",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch):
    """The ledger is that of --runs, whatever other tests have left in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def hostile_corpus(tmp_path_factory):
    """A corpus whose table, recordings and captions have such names, one of which can't be decoded."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    names = [f"{HOSTILE}.wav", "[/x].wav", f"torn{HOSTILE}.wav", *(f"{number}.wav" for number in range(4))]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, rng.normal(0, 0.1, 8_000), 32_000)
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:2_000])
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [
            (name, f"A dog {HOSTILE} barks", ("train", "validation", "test")[n % 3]) for n, name in enumerate(names)
        ]
        csv.writer(file).writerows([("file_name", "caption", "split"), *rows])
    return folder


def test_no_command_of_a_store_sends_control_characters_to_the_terminal(hostile_corpus, call_command, tmp_path):
    store = tmp_path / "store"
    outputs = []
    for words in (
        ["folder", "--source", hostile_corpus, "--store", store],
        ["verify", "--store", store],
        ["describe", "--store", store, "--list"],
        [HOSTILE, "--store", store],
        ["--codec", HOSTILE],
    ):
        done = call_command("data/prepare.py", *words)
        outputs.append(done.stdout + done.stderr)
        assert not controls(outputs[-1])
        assert "\nskipped: forged" not in outputs[-1]
    assert r"torna\x1b]0;OWNED" in outputs[0]
    assert r"torna\x1b]0;OWNED" in outputs[2]


def test_names_in_the_zip_of_a_submission_are_shown(hostile_corpus, call_command, tmp_path):
    store, path = tmp_path / "store", tmp_path / f"zip{HOSTILE.replace('/', '')}.zip"
    assert call_command("data/prepare.py", "folder", "--source", hostile_corpus, "--store", store).returncode == 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"task6/{HOSTILE}", "x")
        archive.writestr(f"task6/A_B_task6b_1/{HOSTILE}_submission_1_metadata.yaml", "submission: [")
    words = ["validate", path, "--evaluation", store, "--split", "folder/test", "--format", "dcase2023"]
    done = call_command("ensemble/submission.py", *words)
    assert done.returncode == 1
    assert rf"wrong: task6/{SHOWN} belongs to no system" in done.stderr
    assert not controls(done.stderr)
    assert "\nskipped: forged" not in done.stderr


def test_consoles_are_made_and_printed_to_where_control_characters_are_shown_alone():
    """Any other Console would print names as they are, or as markup."""
    calls = []
    for path in [
        path for package in ("data", "trainables", "sweeps", "ensemble") for path in Path(ROOT, package).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "Console" or name.endswith((".print", "sys.stdout.write", "sys.stderr.write")):
                    calls.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert sorted(calls) == [
        "data/preparation/describe.py: PlainConsole(file=console.file, width=max(160, console.width)).print(table)",
        "data/runtime/command_line.py: sys.stderr.write(f'error: {make_printable(message)}\\n')",
        "data/runtime/console.py: self.print(make_printable(text), soft_wrap=soft_wrap)",
        "data/runtime/tables.py: console.print(table, soft_wrap=True)",
        "ensemble/reporting/tables.py: PlainConsole(width=max(PlainConsole().width, width)).print(shown)",
        # To the process that started it, which answers with it in JSON.
        "ensemble/web/decode_to_pcm.py: sys.stderr.write('decoding it needs too much memory\\n')",
        "ensemble/web/decode_to_pcm.py: sys.stderr.write(f'{error}\\n')",
        # The address with its token, which a console would hide.
        "ensemble/web/server.py: sys.stdout.write(f'{self.address}\\n')",
    ]


# Errors of the operating system.


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["sweeps/grid.py", "--runs", "/proc/absent/runs"],
            "/proc/absent can't be used: No such file or directory; check",
        ),
        (
            ["ensemble/select.py", "--metric", "map10", "--pool", "{corpus}", "--runs", "{file}/runs"],
            "file/runs can't be used: Not a directory; check the path: a part of it is a file",
        ),
        (
            ["sweeps/grid.py", "--dry-run", "--store", "{corpus}/absent", "--runs", "{long}"],
            "can't be used: File name too long; give a shorter name",
        ),
        (["data/prepare.py", "verify", "--store", "{loop}"], "Symlink loop"),
        (["data/prepare.py", "exclude", "--store", "{corpus}/store", "{corpus}"], "Is a directory"),
    ],
)
def test_an_error_of_the_operating_system_is_one_sentence(words, why, hostile_corpus, call_command, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    store = hostile_corpus / "store"
    if "{corpus}/store" in words and not store.exists():
        call_command("data/prepare.py", "folder", "--source", hostile_corpus, "--store", store)
    paths = {"file": tmp_path / "file", "loop": tmp_path / "loop", "corpus": hostile_corpus, "long": "x" * 300}
    done = call_command(*(word.format(**paths) for word in words))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert why in done.stderr


@contextlib.contextmanager
def file_size_limit(num_bytes):
    """A limit at which the operating system refuses to write further, as on a full disk, for this process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_to_its_end_is_named(hostile_corpus, call_command, tmp_path):
    """By a command whose code has no handling of its own for it; the error of a write has no file's name."""
    store = tmp_path / "store"
    call_command("data/prepare.py", "folder", "--source", hostile_corpus, "--store", store)
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(1_000, 1_300))))
    with file_size_limit(1_000):
        done = call_command("data/prepare.py", "exclude", "--store", store, tmp_path / "ids.txt")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {store / 'listed.arrow'} can't be used: ")
    assert "File too large; the file system or `ulimit -f` allows no file of this size: name another folder" in last
    assert "Traceback" not in done.stderr
    assert not list(store.rglob("*.part"))


def test_a_full_device_is_named_with_the_remedy(capsys):
    @command
    def main(argv):
        with open("/dev/full", "w") as file:  # noqa: PTH123
            file.write("x" * 100_000)

    assert main([]) == 2
    assert "No space left on device; free space on that disk" in capsys.readouterr().err


# Names that become paths.

NAMES = ["..", ".", "../x", "/abs", "a/b", "a\\b", "a\nb", "a\x1bb", "a\u202eb"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(name, call_command, tmp_path):
    with pytest.raises(UserError, match=r"it is used as the name of a file or folder"):
        Sweep("1", name, [], {})
    with pytest.raises(UserError, match=r"name another sweep"):
        Sweep("1", "first", ["0" * 16, name], {})
    before = set(tmp_path.rglob("*"))
    words = ["--runs", tmp_path / "runs" / "runs", "--store", tmp_path / "store", "--name", name]
    for command_words in (["retrain", tmp_path / "ensemble.json", *words], words):
        done = call_command("sweeps/grid.py", *command_words)
        assert done.returncode == 2
        assert "argument --name: the name" in done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_a_sweep_that_someone_else_logged_writes_nowhere_else(make_memory_ledger, call_command, tmp_path):
    """In MLflow's database, as whoever can write to the tracking server logs it: the newest sweep is the default."""
    from trainables.records.mlflow_ledger import create_ledger

    runs = tmp_path / "outer" / "runs"
    ledger = create_ledger(runs)
    ledger.start_sweep("../../../elsewhere", [], {"trials": {}})
    before = {path for path in tmp_path.rglob("*") if path.suffix != ".db"}
    for words in (["ensemble/report.py"], ["ensemble/select.py", "--metric", "map10"], ["sweeps/grid.py", "status"]):
        done = call_command(*words, "--runs", runs)
        assert done.returncode == 2
        assert "the ledger's sweep '../../../elsewhere'" in done.stderr
        assert "rename its run in MLflow" in done.stderr
    assert {path for path in tmp_path.rglob("*") if path.suffix != ".db"} == before


@given(st.text(st.characters(), min_size=1, max_size=10))
def test_a_name_that_is_taken_is_a_name_in_its_folder(name):
    try:
        require_bare_name(name, "the name", "")
    except UserError:
        return
    path = Path("/runs") / name
    assert Path(os.path.normpath(path)) == path
    assert path.parent == Path("/runs")
    assert parse_bare_name(name) == name
    assert json.loads(json.dumps(name)) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:5000/a@b", "http://***@host:5000/a@b"),
        ("s3://KEY:hunter2@bucket/store", "s3://***@bucket/store"),
        ("see https://hunter2@host, and s3://bucket", "see https://***@host, and s3://bucket"),
        ("s3://b/runs?access_key=hunter2&region=eu", "s3://b/runs?access_key=***&region=eu"),
        ("'https://h/v1?api-key=hunter2'", "'https://h/v1?api-key=***'"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("someone@example.org: a@b", "someone@example.org: a@b"),
        ("huggingface:NAME/MODEL@REVISION", "huggingface:NAME/MODEL@REVISION"),
    ],
)
def test_credentials_in_uris_are_hidden(text, shown):
    assert hide_credentials(text) == shown


@pytest.mark.parametrize(
    "words",
    [
        ["sweeps/grid.py", "--tracking-uri", "http://me:hunter2@127.0.0.1:9"],
        ["ensemble/select.py", "--tracking-uri", "http://me:hunter2@127.0.0.1:9", "--no-test"],
        ["sweeps/grid.py", "status", "--runs", "s3://b/runs?secret_key=hunter2"],
        ["sweeps/grid.py", "status", "--runs", "s3://me:hunter2@b/runs"],
        ["data/prepare.py", "describe", "--store", "s3://me:hunter2@b/store?endpoint_override=127.0.0.1:9&scheme=http"],
        ["ensemble/report.py", "--tracking-uri", "sqlite://me:hunter2@host/x"],
    ],
)
def test_no_message_contains_a_secret(words, call_command):
    done = call_command(*words)
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr
