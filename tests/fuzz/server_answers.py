"""Answers of servers: of language models, of MLflow and of the Hugging Face Hub; and files of paraphrases.

A server in this process sends files as answers, as servers sent them: MLflow's own server wrote its answers.
"""

import hashlib
import json
import os
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from urllib.parse import unquote, urlsplit

import certifi
import numpy as np
from kinds import Kind
from mutations import mutate

from data.errors import UserError

REPEATED = 3
"""Number of times that an answer is sent mutated, one after the other; then it is sent as it is, as some are asked for
until they say that something has ended.
"""

CAPTIONS = ("A dog barks.",)
SENTENCES = "\n".join(f"{number}. In take {name}, a dog barks." for number, name in enumerate(("one", "two"), start=1))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class AnswerServer(ThreadingHTTPServer):
    """A server that sends files. `answers` has a file and a status by method and path, and `forward` is a function that
    answers what isn't in there, if there is one.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.forward = {}, None
        self.whole, self.sent = {}, {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, root, name, route, contents, status=200):
        """Write an answer to a file, and send it for requests like `route`."""
        path = root / re.sub(r"\W+", "-", name)
        path.write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())
        self.answers[route] = path, status
        self.whole[path] = path.read_bytes()
        return path

    def find(self, method, target, body):
        """The status and the contents of the answer to a request."""
        if self.forward:
            return self.forward(method, target, body)
        path = unquote(urlsplit(target).path)
        for route in (f"{method} {target} {body.decode(errors='replace')}", f"{method} {path}"):
            if route in self.answers:
                file, status = self.answers[route]
                self.sent[file] = self.sent.get(file, 0) + 1
                return status, file.read_bytes() if self.sent[file] <= REPEATED else self.whole[file]
        return 404, b'{"error": {"message": "nothing is here"}}'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet: two would take 40 ms

    def answer(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, contents = self.server.find(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def log_message(self, *args):
        pass


def build(root):
    """Write every answer, and start the server that sends them."""
    server, authorities = AnswerServer(), root / "authorities.pem"
    authorities.write_text(
        Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    os.environ["SSL_CERT_FILE"] = str(authorities)  # clients read all of them each time
    os.environ.update(OPENAI_API_KEY="none", HF_ENDPOINT=server.url, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    store = write_store(root)
    return build_chat(root, server, store) | build_hub(root, server) | build_mlflow(root, server)


def write_store(root):
    """A store with a split whose captions can be paraphrased."""
    from data.schema import SourceClip, Split
    from data.store import shard_writer, split_writer

    folder = root / "store" / "clotho" / "development"
    folder.mkdir(parents=True)
    samples = np.zeros(1_600, np.float32)
    clips = [
        SourceClip(f"clotho/development/{number}.wav", partial(iter, (samples,)), (caption,), f"row {number}")
        for number, caption in enumerate(CAPTIONS)
    ]
    path = folder / shard_writer.build_shard_name(0, clips, "pcm16")
    summary = shard_writer.write_shard(path, "clotho", "development", clips, "pcm16")
    split_writer.write_split(folder, Split("clotho", "development", tuple(clips)), "pcm16", [summary])
    return root / "store"


# Chat models.


def build_chat(root, server, store):
    from data.paraphrasing.job import ParaphraseJob
    from data.store.stored_split import open_split

    job = ParaphraseJob(open_split(store, "clotho/development"), "parrot", 2)
    message = {"role": "assistant", "content": SENTENCES}
    usage = {"prompt_tokens": 100, "completion_tokens": 80, "total_tokens": 180}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    completion = {"id": "c-1", "object": "chat.completion", "created": 0, "model": "parrot", "choices": [choice],
                  "usage": usage}  # fmt: skip
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": SENTENCES}]
    in_parts = completion | {"choices": [choice | {"message": message | {"content": parts}}]}
    error = {"error": {"message": "Cannot take this", "code": "bad_request", "type": "invalid_request_error"}}
    kinds = {}

    def add(name, route, contents, read, status=200):
        path = server.add(root, name, route, contents, status)
        kinds[name] = Kind(path, partial(read, server), is_error=status >= 400)

    for name, contents, status in (
        ("chat completion", completion, 200), ("chat completion in parts", in_parts, 200), ("chat error", error, 400),
    ):  # fmt: skip
        route = f"POST /{name.replace(' ', '-')}/chat/completions"
        add(name, route, contents, partial(paraphrase, store=store, path=name.replace(" ", "-")), status)
    file = {"id": "file-0", "object": "file", "bytes": 1, "created_at": 0, "filename": "x", "purpose": "batch",
            "status": "processed"}  # fmt: skip
    batch = {
        "id": "batch-0", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-0",
        "completion_window": "24h", "status": "completed", "created_at": 0, "output_file_id": "file-1",
        "error_file_id": "file-2", "request_counts": {"total": 2, "completed": 1, "failed": 1},
    }  # fmt: skip
    requests = list(job.distinct_requests())
    lines = [
        {"custom_id": request.key, "response": {"status_code": 200, "body": completion}, "error": None}
        for request in requests
    ]
    failed = [{"custom_id": requests[0].key, "response": None, "error": {"code": "batch_expired"}}]
    read = partial(paraphrase, store=store, path="v1", words=("--batch", "--poll", "0.001"))
    add("batch file", "POST /v1/files", file, read)
    add("batch created", "POST /v1/batches", batch | {"status": "validating"}, read)
    add("batch", "GET /v1/batches/batch-0", batch, read)
    add("batch list", "GET /v1/batches", {"object": "list", "data": [], "has_more": False}, read)
    for name, contents in (("file-1", lines), ("file-2", failed)):
        text = "".join(json.dumps(line) + "\n" for line in contents)
        add(f"batch answers {name}", f"GET /v1/files/{name}/content", text.encode(), read)
    return kinds | build_stored(root, server, store, requests)


def build_stored(root, server, store, requests):
    """Files of paraphrases that others may have written."""
    published = [{"path": f"x/{number}.wav", "caption": caption, "variations": ["In take one, a dog barks."]}
                 for number, caption in enumerate(CAPTIONS)]  # fmt: skip
    (root / "published.json").write_text(json.dumps(published))
    fields = {
        "instruction": requests[0].instruction,
        "problem": "",
        "time": "2024-01-01T00:00:00+00:00",
        "input_tokens": 1,
    }
    line = fields | {"model": "parrot", "answer": SENTENCES, "output_tokens": 1}
    folder = root / "journal" / "clotho" / "development"
    copytree(store, root / "journal")
    journal, batches = folder / "paraphrases.jsonl", folder / "paraphrases-batches.json"
    journal.write_text("".join(json.dumps(line | {"key": request.key}) + "\n" for request in requests))
    entry = {"model": "parrot", "instruction": requests[0].instruction, "batch": "batch-9", "state": "collected"}
    batches.write_text(json.dumps({"file-9": entry, "file-8": entry}))
    read = partial(paraphrase, server, store=root / "journal", path="chat-completion")
    return {
        "published.json": Kind(root / "published.json", partial(import_published, root, store)),
        "paraphrases.jsonl": Kind(journal, read),
        "paraphrases-batches.json": Kind(batches, read),
    }


def paraphrase(server, out, store, path, words=()):
    """Paraphrase the captions of a store by the command."""
    server.sent.clear()
    run_paraphrase(
        out, store, "clotho", "--split", "development", "--model", "parrot", "--variants", 2, "--base-url",
        f"{server.url}/{path}", "--timeout", 10, *words)  # fmt: skip


def import_published(root, store, out):
    run_paraphrase(out, store, "import", root / "published.json", "--split", "development")


def run_paraphrase(out, store, *words):
    from data import paraphrase

    copytree(store, out / "store")
    status = paraphrase.main([*words, "--store", out / "store"])
    if status:
        raise UserError(f"status {status}")


# The hub.


def build_hub(root, server):
    contents = {"README.md": b"---\nlicence: academic\n---\n", "Zip/a.z01": b"sounds" * 100}
    listing = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "Zip"}]
    for name, data in contents.items():
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        listing.append({"type": "file", "size": len(data), "path": name, "oid": blob})
        server.add(root, f"hub file {name}", f"GET /datasets/lab/sounds/resolve/{COMMIT}/{name}", data)
    listing[-1]["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    path = "/api/datasets/lab/sounds"
    answers = {
        "hub's repository": server.add(root, "hub info", f"GET {path}", {"id": "lab/sounds", "sha": COMMIT}),
        "hub's listing": server.add(root, "hub listing", f"GET {path}/tree/{COMMIT}", listing),
        "hub's file": server.answers[f"GET /datasets/lab/sounds/resolve/{COMMIT}/README.md"][0],
    }
    return {name: Kind(file, partial(read_dataset, server), mutate) for name, file in answers.items()}


def read_dataset(server, out):
    from data.sources.download import fetch_dataset

    server.sent.clear()
    fetch_dataset("lab/sounds", out / "below" / "sounds")


# MLflow.


def build_mlflow(root, server):
    """Fill a ledger by MLflow's own server, read it, and keep the answers."""
    from trainables.records.mlflow_ledger import create_ledger

    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{root}/mlflow.db", "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/", "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(root / "kept"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    from mlflow.server import app

    recorded, ids = {}, {}

    def fix_ids(text):
        """A text with the same ids and times in each run, so that the mutations are the same."""
        text = re.sub(rb"[0-9a-f]{32}", lambda match: ids.setdefault(match[0], b"%032x" % len(ids)), text)
        return re.sub(rb"\b\d{13}\b", b"1700000000000", text)

    def forward(method, target, body):
        sent = app.test_client().open(target, method=method, data=body, content_type="application/json")
        recorded[f"{method} {target} {body.decode(errors='replace')}"] = sent.status_code, sent.data
        return sent.status_code, sent.data

    server.forward = forward
    ledger = create_ledger(root / "runs", server.url)
    fill_ledger(root, ledger)
    kinds = {}
    for step in (open_ledger, find_sweep, find_trial, load_best_metrics, list_epochs, load_recipe, read_events):
        recorded.clear()
        step(ledger)
        for route, (status, contents) in recorded.items():
            route, contents = fix_ids(route.encode()).decode(), fix_ids(contents)
            if status != 200 or route in server.answers:
                continue
            method, target = route.split()[:2]
            endpoint = re.sub("[0-9a-f]{32}", "RUN", urlsplit(target).path).rpartition("/mlflow/")[2]
            name = f"MLflow's {endpoint}" + (f" of {step.__name__}" if endpoint == "runs/search" else "")
            if name not in kinds:
                path = server.add(root, name, route, contents, status)
                server.answers.setdefault(f"{method} {unquote(urlsplit(target).path)}", (path, status))
                kinds[name] = Kind(path, partial(read_ledger, server, step, ledger))
            else:
                server.add(root, f"{name} {len(server.answers)}", route, contents, status)
    server.forward = None
    del kinds["MLflow's server-info"]  # MLflow's client reads it once
    return kinds


def fill_ledger(root, ledger):
    from own_files import tiny

    from trainables.records.ledger import Event
    from trainables.records.mlflow_log import RunLog

    run_id = ledger.claim(tiny(0), "0" * 16, ledger.start_sweep("first", ["0" * 16], {"store": "store"}))
    log = RunLog(ledger.tracking_uri, run_id)
    for epoch in (1, 2):
        log.log_epoch({"epoch": epoch, "map10": epoch / 10, "train_loss": 1.0, "validation_loss": 1.0, "best_epoch": 2})
    log.flush()
    (root / "trial.json").write_text("{}")
    ledger.client.log_artifact(run_id, str(root / "trial.json"))
    ledger.finish(run_id)
    event = Event("ensemble", "first", "0" * 16, "", "", {"size": "1"}, [("map10", 0.5, 1)], [root / "trial.json"])
    ledger.log_event(event)


def read_ledger(server, step, ledger, out):
    server.sent.clear()
    step(ledger)


def open_ledger(ledger):
    from trainables.records import mlflow_ledger

    mlflow_ledger.open_ledger("runs", ledger.tracking_uri)


def find_sweep(ledger):
    ledger.find_sweep()


def find_trial(ledger):
    """The only trial, if it has finished."""
    if (run := ledger.find_finished_trial("0" * 16)) is None:
        raise UserError("it isn't there")
    return run


def load_best_metrics(ledger):
    ledger.load_best_metrics(find_trial(ledger))
    ledger.load_curves(find_trial(ledger))


def list_epochs(ledger):
    ledger.list_epochs(find_trial(ledger))


def load_recipe(ledger):
    ledger.load_recipe(find_trial(ledger))


def read_events(ledger):
    for event in ledger.iter_events("ensemble"):
        with ledger.open_event_file(event, "trial.json") as path:
            path.read_bytes()
