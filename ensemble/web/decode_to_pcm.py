"""Program that decodes an audio file in a process of its own, with limits on memory and time.

    python -m ensemble.web.decode_to_pcm PATH SKIPPED_SAMPLES MAX_SAMPLES CPU_SECONDS MEMORY_BYTES

It writes 16-bit PCM (mono, little-endian, at SAMPLE_RATE_HZ) to standard output, without the first SKIPPED_SAMPLES and
at most MAX_SAMPLES of it. Warnings are lines on standard error; after an error, the last line is the reason and the
status is 2.
"""

import os
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.decoding.audio import decode_file
from data.errors import UserError
from data.schema import Samples
from data.waveform import AudioError, to_pcm16


def limit_resources(cpu_s: int, memory_bytes: int) -> None:
    """Limit the CPU time and the address space of this process, and let it write no core dump."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def cut_blocks(blocks: Iterable[Samples], skipped: int, max_samples: int) -> Iterator[Samples]:
    """Yield blocks of samples without the first `skipped` samples, and at most `max_samples` of the rest."""
    for block in blocks:
        part = block[skipped:][:max_samples]
        skipped = max(0, skipped - len(block))
        max_samples -= len(part)
        if len(part):
            yield part
        if not max_samples:
            return


def decode(path: Path, skipped: int, max_samples: int) -> int:
    """Write the samples of an audio file to standard output, and return the exit status."""
    blocks = decode_file(path)
    try:
        for block in cut_blocks(blocks, skipped, max_samples):
            sys.stdout.buffer.write(to_pcm16(block).data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AudioError, UserError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except MemoryError:
        sys.stderr.write("decoding it needs too much memory\n")
        return 2
    sys.stderr.writelines(f"{warning}\n" for warning in blocks.warnings)
    return 0


if __name__ == "__main__":
    limit_resources(int(sys.argv[4]), int(sys.argv[5]))
    sys.exit(decode(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
