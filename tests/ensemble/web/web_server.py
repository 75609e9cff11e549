"""Files of the library that the tests of the page search, and a server in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
GONE = "gone.wav"

SOUNDS = {
    "low tone, long.wav": (44_100, 55.0, 2),
    "birds/owl.aiff": (44_100, 6.0, 2),
    "birds/wren.flac": (32_000, 4.0, 1),
    "birds/rare/bittern.mp3": (44_100, 5.0, 1),
    "city/bell.au": (22_050, 3.0, 1),
    "city/tram & <img src=x>.ogg": (48_000, 8.0, 2),
    GONE: (16_000, 2.0, 1),
}
"""Sample rate, duration in seconds and number of channels of each file."""


class Server:
    """A server in a process of its own, which loads the exported ensemble."""

    def __init__(self, searched, *words):
        # Its own session, so that Ctrl-C can be sent to it alone.
        command = [sys.executable, "ensemble/search.py", str(searched), "--serve", "--port", "0", *words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr.read()

    def interrupt(self):
        """Send Ctrl-C; return the seconds until the server has ended, its exit status and its standard error."""
        began_s = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        return time.perf_counter() - began_s, self.process.returncode, errors

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
