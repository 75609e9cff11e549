"""A server that speaks OpenAI's chat and batch protocol, with faults: `python chat_server.py '{"FAULT": ...}'`.

It answers with what `reword` writes, and prints its port. `GET /log` tells what it was asked and
what it answered, `POST /faults` sets other faults. A fault falls on a request by its prompt and how often that has
come, so that the same faults fall whatever the order of requests.

    share_429, share_500, ...    shares of requests; all of them are in FAULTS
    share_styled, style    answers in a style of `answer_styles`
    retry_after    seconds, told with a 429 or 500
    should_retry   "false": the client is told not to try again by itself
    latency_s      of every answer
    most_running   more requests at a time get a 429
    tries          a fault falls on the first so many tries of a request only
    forget         tries before count no more
    paid_key       what the key has to be
    canned         the same five sentences whatever is asked, for next to no CPU time
    batch_status, batch_share    how a batch ends, and how much of it is answered
    batch_cut      the connection is cut once a batch is taken
    batch_lost     the files of batches are gone
    batch_same     every batch has the id of the first one
    batch_429      so many tries to create a batch get a 429
    most_queued    requests in batches that haven't ended; a batch with which there would be more fails
    files_s        what it takes until a file of answers is sent
"""

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter

from aiohttp import web
from answer_styles import write_body

from data.paraphrasing.job import INSTRUCTION

FAULTS = {
    "share_429": 0.0,
    "share_500": 0.0,
    "share_cut": 0.0,
    "share_slow": 0.0,
    "share_torn": 0.0,
    "share_refused": 0.0,
    "share_few": 0.0,
    "share_filtered": 0.0,
    "share_400": 0.0,
    "share_401": 0.0,
    "share_quota": 0.0,
    "share_garbled": 0.0,
    "share_long": 0.0,
    "share_styled": 0.0,
    "style": "",
    "forget": False,
    "retry_after": "",
    "should_retry": "",
    "latency_s": 0.0,
    "most_running": 10**6,
    "tries": 1,
    "paid_key": "",
    "canned": False,
    "batch_status": "",
    "batch_share": 1.0,
    "batch_cut": False,
    "batch_lost": False,
    "batch_429": 0,
    "batch_same": False,
    "most_queued": 10**6,
    "files_s": 0.0,
}
SLOW_S = 30.0
ERRORS = {
    "429": (429, "Rate limit reached", "rate_limit_exceeded"),
    "500": (500, "The server had an error", "server_error"),
    "filtered": (400, "The response was filtered", "content_filter"),
    "400": (400, "Cannot take this from {key}", "bad_request"),
    "401": (401, "Incorrect API key provided: {key}", "invalid_api_key"),
    "quota": (429, "You exceeded your current quota", "insufficient_quota"),
}


class Server:
    def __init__(self, faults):
        self.faults = FAULTS | faults
        self.tries = Counter()  # by prompt
        self.answered = Counter()  # by prompt, whether or not the answer arrived
        self.given = Counter()  # faults
        self.running = self.most = 0
        self.arrivals = []
        self.files, self.batches = {}, {}

    async def log(self, request):
        names = ("tries", "answered", "given", "most", "running", "arrivals")
        batches = {
            name: batch | {"requests": self.files[batch["input_file_id"]]} for name, batch in self.batches.items()
        }
        return web.json_response({name: getattr(self, name) for name in names} | {"batches": batches})

    async def set_faults(self, request):
        self.faults = FAULTS | await request.json()
        if self.faults["forget"]:
            self.tries.clear()
        return web.json_response({})

    def fault(self, prompt, number):
        """What goes wrong with a request: drawn from its prompt and its number alone."""
        if number > self.faults["tries"]:
            return None
        draw = int.from_bytes(hashlib.sha256(f"{prompt}{number}".encode()).digest()[:6]) / 2**48
        for fault in FAULTS:
            if fault.startswith("share_"):
                draw -= self.faults[fault]
                if draw < 0:
                    return fault.removeprefix("share_")
        return None

    async def chat(self, request):
        body = await request.json()
        if refusal := self.refuse(request, body):
            return refusal
        (message,) = body["messages"]
        prompt = message["content"]
        self.tries[prompt] += 1
        self.arrivals.append(time.time())
        fault = "429" if self.running >= self.faults["most_running"] else self.fault(prompt, self.tries[prompt])
        if fault:
            self.given[fault] += 1
        if fault in ERRORS:
            names = {"retry-after": "retry_after", "x-should-retry": "should_retry"}
            headers = {name: str(self.faults[key]) for name, key in names.items() if self.faults[key]}
            status, message, code = ERRORS[fault]
            return error(status, message.format(key=key_of(request)), code, headers)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(SLOW_S if fault == "slow" else self.faults["latency_s"])
        finally:
            self.running -= 1
        if fault == "cut":
            request.transport.abort()
            return web.Response()
        if fault == "garbled":
            request.transport.write(b"HTTP/1.1 nonsense\r\n\r\n")
            request.transport.close()
            return web.Response()
        self.answered[prompt] += 1
        if fault == "torn":
            return web.Response(text='{"id": "x", "choices": [{"mess', content_type="application/json")
        if self.faults["canned"]:
            return web.Response(body=CANNED, content_type="application/json")
        if fault == "styled":
            headers = {"retry-after": str(self.faults["retry_after"])} if self.faults["retry_after"] else None
            return web.Response(text=write_body(self.faults["style"], completion(body, "")), headers=headers)
        return web.json_response(completion(body, fault))

    def refuse(self, request, body):
        key = key_of(request)
        if self.faults["paid_key"] not in ("", key):
            return error(401, f"Incorrect API key provided: {key}", "invalid_api_key")
        if body["model"] == "absent":
            return error(404, "The model `absent` does not exist", "model_not_found")
        return None

    async def upload(self, request):
        form = await request.post()
        text = form["file"].file.read().decode()
        name = f"file-{len(self.files)}"
        self.files[name] = text
        return web.json_response({"id": name, "object": "file", "bytes": len(text), "created_at": 0, "filename": "x",
                                  "purpose": "batch", "status": "processed"})  # fmt: skip

    async def download(self, request):
        if self.faults["batch_lost"]:
            return error(404, "No such file", "not_found")
        await asyncio.sleep(self.faults["files_s"])
        return web.Response(text=self.files[request.match_info["name"]])

    async def create_batch(self, request):
        body = await request.json()
        if self.given["batch_429"] < self.faults["batch_429"]:
            self.given["batch_429"] += 1
            self.arrivals.append(time.time())
            return error(429, "Rate limit reached", "rate_limit_exceeded", {"retry-after": "1"})
        self.arrivals.append(time.time())
        name = "batch-0" if self.faults["batch_same"] else f"batch-{len(self.batches)}"
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        states = ("validating", "in_progress")
        queued = sum(batch["request_counts"]["total"] for batch in self.batches.values() if batch["status"] in states)
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": body["endpoint"], "input_file_id": body["input_file_id"],
            "completion_window": "24h", "status": "validating", "created_at": int(time.time()),
            "metadata": body.get("metadata"), "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }  # fmt: skip
        if queued + len(lines) > self.faults["most_queued"]:
            self.fail(self.batches[name], "Enqueued token limit reached")
        if self.faults["batch_cut"]:
            request.transport.abort()
        return web.json_response(self.batches[name])

    async def batch(self, request):
        """A batch; each look at it brings it to its next state."""
        if request.match_info["name"] not in self.batches:
            return error(404, "No such batch", "not_found")
        batch = self.batches[request.match_info["name"]]
        status = self.faults["batch_status"]
        if batch["status"] == "validating":
            batch["status"] = "failed" if status == "failed" else "in_progress"
            if status == "failed":
                self.fail(batch, "the model isn't there")
        elif batch["status"] == "in_progress":
            self.complete(batch)
        return web.json_response(batch)

    def fail(self, batch, message):
        batch["status"] = "failed"
        batch["errors"] = {"object": "list", "data": [{"code": "x", "message": message}]}

    def complete(self, batch):
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        number = round(self.faults["batch_share"] * len(lines))
        out, failed = [], []
        for place, line in enumerate(lines):
            prompt = line["body"]["messages"][0]["content"]
            self.tries[prompt] += 1
            fault = self.fault(prompt, self.tries[prompt])
            if place >= number:
                value = {"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired"}}
                failed.append(value)
                continue
            self.answered[prompt] += 1
            body = completion(line["body"], fault)
            body["choices"][0]["message"]["content"] += "\u2028"  # a line's end to Python, but not to JSON lines
            if fault == "styled":
                body = json.loads(write_body(self.faults["style"], body))
            response = {"status_code": 200, "body": body}
            out.append({"custom_id": line["custom_id"], "response": response, "error": None})
        batch["status"] = self.faults["batch_status"] or "completed"
        for name, values in (("output_file_id", out), ("error_file_id", failed)):
            if values:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = "".join(
                    json.dumps(value, ensure_ascii=False) + "\n" for value in reversed(values)
                )

    async def list_batches(self, request):
        found = list(self.batches.values())[::-1]
        return web.json_response({"object": "list", "data": found, "has_more": False})


def key_of(request):
    return request.headers["authorization"].removeprefix("Bearer ")


def error(status, message, code, headers=None):
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


def reword(caption, number):
    """Sentences that contain a caption, all different."""
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return [f"In take {name}, {caption[:1].lower()}{caption[1:]}" for name in names[:number]]


def completion(body, fault):
    prompt = body["messages"][0]["content"]
    caption = prompt.split("\n\n")[1].rpartition(" [")[0]
    number = int(prompt.removeprefix(INSTRUCTION.partition("{number}")[0]).partition(" ")[0])
    sentences = reword(caption, number)
    text = "\n".join(f"{place}. {sentence}" for place, sentence in enumerate(sentences, start=1))
    if fault == "refused":
        text = "I'm sorry, but I can't help with that."
    if fault == "few":
        text = "Here is a caption:\n\n" + text.splitlines()[0]
    if fault == "long":
        text = text[: text.rindex(" ")]
    reason = "length" if fault == "long" else "stop"
    return {
        "id": "chat-1", "object": "chat.completion", "created": 0, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 80, "total_tokens": 180},
    }  # fmt: skip


CANNED = json.dumps(
    {
        "choices": [
            {
                "message": {"content": "\n".join(f"{n}. Sound number {n} comes first." for n in range(1, 6))},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 80},
    }
).encode()


async def main():
    server = Server(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    application = web.Application(client_max_size=2**30)
    application.add_routes(
        [
            web.get("/log", server.log),
            web.post("/faults", server.set_faults),
            web.post("/v1/chat/completions", server.chat),
            web.post("/v1/files", server.upload),
            web.get("/v1/files/{name}/content", server.download),
            web.post("/v1/batches", server.create_batch),
            web.get("/v1/batches", server.list_batches),
            web.get("/v1/batches/{name}", server.batch),
        ]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
