"""Mutations of files: each follows from the name of a file and a number alone."""

import io
import random
import re
import unicodedata
import zipfile
import zlib

WORDS = (
    b"null", b"-1", b"1e999", b"NaN", b"true", b"{}", b"[]", b'""', b'"../../../../etc"', b'"/etc"', b'".."',
    b'"\\ud800"', b'"\\u0000"', b"9" * 5_000, b"[" * 100_000, b"9223372036854775808", b'"x"',
    b"18446744073709551616", b"0.5", b"1",
)  # fmt: skip
NUMBERS = [
    value.to_bytes(width, "little", signed=True) for width in (4, 8) for value in (0, -1, 1, 255, 400, 2**31 - 1)
]
NUMBERS += [(2**63 - 1).to_bytes(8, "little"), (2**40).to_bytes(8, "little")]


HEADERS = dict.fromkeys(("model.safetensors", "best.safetensors", "optimizer.safetensors"), (0, 8))
HEADERS |= dict.fromkeys(("scores.npy", "relevance.npy", "groups.npy"), (8, 2))
"""Where files have the length of a header of text that follows it, and the number of bytes of that length."""


def mutate(contents, name, number):
    """The contents with one to four random edits; those of a zip are edits of the zip, or of a file in it, and those of
    a file with a header of text are edits of the file, or one of its header.
    """
    rng = random.Random(f"{name} {number}")
    if name.endswith((".zip", ".pt")) and rng.randrange(3):
        return mutated_zip(contents, rng)
    if name in HEADERS and rng.randrange(2):
        return mutated_header(contents, rng, *HEADERS[name])
    edit = mutated_text if name.endswith((".json", ".yaml")) or name == "summary" else mutated_bytes
    for _ in range(rng.choice((1, 1, 2, 4))):
        contents = edit(contents, rng)
    return with_checksums(contents) if name.endswith(".7z") and rng.randrange(2) else contents


def with_checksums(archive):
    """A 7z archive with the checksums of its two headers corrected, without which no further byte of them is read."""
    start, size = int.from_bytes(archive[12:20], "little"), int.from_bytes(archive[20:28], "little")
    header_sum = zlib.crc32(archive[32 + start : 32 + start + size]).to_bytes(4, "little")
    start_header = archive[12:28] + header_sum
    return archive[:8] + zlib.crc32(start_header).to_bytes(4, "little") + start_header + archive[32:]


def mutated_zip(contents, rng):
    """A zip with a file in it edited, by rows and cells or by bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(contents)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            edit = rng.choice((mutated_text, mutated_bytes)) if name == chosen else lambda data, _: data
            after.writestr(name, edit(before.read(name), rng))
    return out.getvalue()


def mutated_header(contents, rng, position, width):
    """A file with its header of text edited, and the length of the header corrected."""
    begin = position + width
    end = begin + int.from_bytes(contents[position:begin], "little")
    header = mutated_text(contents[begin:end], rng)
    length = min(len(header), 2 ** (8 * width) - 1)
    return contents[:position] + length.to_bytes(width, "little") + header + contents[end:]


def mutated_text(contents, rng):
    """A value, a key or a part of a text replaced by another one, by nothing, or by what is seldom there."""
    if not rng.randrange(4):
        return mutated_bytes(contents, rng)
    parts = re.split(rb'("[^"]*"|[-\w.]+|[\[\]{},:\n])', contents)
    chosen, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[chosen] = rng.choice((b"", parts[other], parts[chosen] * 2, *rng.sample(WORDS, 5)))
    return b"".join(parts)


def mutated_bytes(contents, rng):
    """Bits flipped, numbers overwritten, and parts taken away, doubled or exchanged."""
    data = bytearray(contents)
    if not data:
        return b"x"
    start, other, width = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice((1, 4, 8, 64))
    match rng.randrange(8):
        case 0 | 1:
            data[start] ^= 1 << rng.randrange(8)
        case 2 | 3:
            value = rng.choice(NUMBERS)
            start -= start % 4
            data[start : start + len(value)] = value
        case 4:
            del data[start:]
        case 5:
            del data[start : start + width]
        case 6:
            data[start:start] = rng.randbytes(width)
        case 7:
            data[start : start + width], data[other : other + width] = (
                data[other : other + width],
                data[start : start + width],
            )
    return bytes(data)


TROUBLE = (
    *(b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"/", b"../outside.wav", b"/etc/hostname"),
    *(b"null", b"NaN", b"-1", b"1e999", b"true", b"{}", b"[]", b"{[]: 1}", rb"\ud800", rb"\u0000", b"Not found"),
    *(b"[" * 100_000, b"9" * 5_000, b"x" * 140_000),
)


def mutate_table(contents, name, number, edits=(), encoding="utf-8"):
    """The first mutations make one of the edits each, the others one to three of bytes, of cells or of lines."""
    if number < len(edits):
        return contents.replace(*edits[number])
    rng = random.Random(f"{name} {number}")
    for _ in range(rng.choice((1, 1, 2, 3))):
        edit = rng.choice((mutated_span, mutated_cell, mutated_lines))
        contents = edit(contents, rng, encoding)
    return contents


def mutated_span(contents, rng, _):
    start = rng.randrange(len(contents) + 1)
    end = min(len(contents), start + rng.choice((0, 1, 1, 5, 50)))
    flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in contents[start : start + 1])
    return rng.choice(
        (
            contents[:start],
            contents[:start] + contents[end:],
            contents[:start] + flipped + contents[start + 1 :],
            contents[:start] + rng.choice(TROUBLE) + contents[end:],
            contents[:start] + contents[start:end] * 2 + contents[end:],
        )
    )


def mutated_cell(contents, rng, _):
    cells = re.split(rng.choice((rb'([,"\n\[\]{}:]+)', rb"(,(?! )|[\r\n]+)")), contents)
    place, other = rng.randrange(len(cells)), rng.randrange(len(cells))
    cells[place] = rng.choice((b"", cells[place].swapcase(), cells[other], rng.choice(TROUBLE)))
    return b"".join(cells)


def mutated_lines(contents, rng, encoding):
    """Lines, or rows of a JSON table: taken away, exchanged, or there twice, with a difference in writing or none."""
    parts = re.split(rb"(?<=\n)|(?<=\}), ", contents)
    place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    text = parts[place].decode(encoding, "replace")
    decomposed = unicodedata.normalize("NFD", text).encode(encoding, "replace")
    line = rng.choice((b"", parts[other], *(parts[place] + again for again in (parts[place], parts[place].swapcase()))))
    parts[place] = rng.choice((line, parts[place] + decomposed))
    return (b", " if b"}, " in contents else b"").join(parts)


HEADER_BYTES = 48
PATTERNS = [bytes(4), b"\xff" * 4, *(value.to_bytes(4, order) for value in (1, 255) for order in ("little", "big"))]
FIELDS = [(place, width, pattern) for place in range(0, HEADER_BYTES, 2) for width in (2, 4) for pattern in PATTERNS]
"""Every field of the simple headers is one of these: sizes, rates and counts become 0, 1, 255 and 2^32 - 1."""


def mutate_recording(contents, name, number):
    """Every second mutation overwrites a field of the header, the others make one to four random edits."""
    rng = random.Random(f"{name} {number}")
    if not number % 2:
        place, width, pattern = rng.choice(FIELDS)
        field = pattern[:width] if pattern[0] else pattern[-width:]
        return contents[:place] + field + contents[place + width :]
    edited = bytearray(contents)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(rng.choice((64, 256, len(contents))))
        other, width = rng.randrange(len(contents)), rng.choice((1, 4, 8, 16))
        match rng.randrange(6):
            case 0:
                edited[place : place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in edited[place : place + 1])
            case 1:
                edited[place : place + width] = rng.randbytes(width)
            case 2:
                del edited[place:]
            case 3:
                del edited[place : place + width]
            case 4:
                edited[place:place] = rng.randbytes(width)
            case 5:  # chunks exchanged
                one, two = edited[place : place + width], edited[other : other + width]
                edited[place : place + width], edited[other : other + width] = two, one
    return bytes(edited)
