"""Where a store lies: a folder, or a prefix in an object store whose files are kept in a bounded cache on this machine.

A store's layout is in `data.schema`. Files whose name holds a hash never change: those of a folder are memory-mapped in
place, those of an object store are fetched in aligned blocks, each of which is kept in the cache until it is the least
recently used one (`data.store.block_cache`). Other files are small, and read afresh each time.
"""

import contextlib
import functools
import hashlib
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs

from data.errors import UserError
from data.runtime.options import option
from data.store.block_cache import Cache, map_file

logger = logging.getLogger(__name__)

Location: TypeAlias = "Path | str | Store"
"""A folder, a URI that pyarrow.fs.FileSystem.from_uri knows, as users give them, or a store."""

MANIFEST = "manifest.json"

IMMUTABLE = re.compile(r"-[0-9a-f]{8,}\.(arrow|json)$")
"""Names of files that never change."""

BLOCK_BYTES = 4 * 2**20
"""Fetched at a time: a 30-s window of PCM is 1.9 MB, so most windows lie in one block or two."""

MAX_MAPPED = 4096
"""Files mapped at a time in one process, of the 65,530 mappings that Linux gives one by default."""

PUBLIC_SETTINGS = {"endpoint_override", "scheme", "region"}
"""Of a URI's query, what may be shown: others can hold keys."""


@dataclass(frozen=True, repr=False)
class Store:
    """A store of clips: `location` is an absolute path or a URI. Make one with `of`.

    It holds nothing open, so it can be sent to other processes; what is open is kept once a process. Where an object
    store can't be reached or refuses, every method raises a UserError that says why.
    """

    location: str

    @classmethod
    def of(cls, location: Location) -> "Store":
        """The store at a path or URI, be it there or not. Raises UserError for a URI that pyarrow doesn't know."""
        if isinstance(location, Store):
            return location
        if "://" not in str(location):
            return cls(str(Path(location).resolve()))
        filesystem, root = filesystem_of(str(location))
        return cls(root if isinstance(filesystem, pyarrow.fs.LocalFileSystem) else str(location))

    def __str__(self) -> str:
        """The location without credentials."""
        if not self.is_remote:
            return self.location
        scheme, host, path, query, _ = urlsplit(self.location)
        user, _, bare_host = host.rpartition("@")
        settings = [(name, value) for name, value in parse_qsl(query) if name in PUBLIC_SETTINGS]
        return urlunsplit((scheme, bare_host if ":" in user else host, path, urlencode(settings, safe=":/"), ""))

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return "://" in self.location

    @property
    def path(self) -> Path:
        """Its folder. Raises UserError for an object store."""
        if self.is_remote:
            raise UserError(
                f"{self} is in an object store; this needs a folder: give one, and `python data/prepare.py upload` it"
            )
        return Path(self.location)

    def read(self, name: str) -> bytes:
        """The contents of a small file as they are at this moment. Raises FileNotFoundError where it is absent."""
        if not self.is_remote:
            return (self.path / name).read_bytes()
        filesystem, root = filesystem_of(self.location)
        with _reaching(self), filesystem.open_input_stream(f"{root}/{name}", compression=None) as file:
            return cast(bytes, file.read())

    def map(self, name: str) -> pa.Buffer:
        """An immutable file as a whole, memory-mapped; one of an object store is copied into the cache first.

        Raises FileNotFoundError where it is absent.
        """
        return _remote_file(self, name).map() if self.is_remote else _mapped(self.location, name)

    def slice(self, name: str, offset: int, num_bytes: int) -> pa.Buffer:
        """`num_bytes` of an immutable file from `offset` on, without a copy where they lie in one block or in a folder.

        Raises FileNotFoundError where the file is absent, and UserError where it is shorter.
        """
        try:
            if self.is_remote:
                return _remote_file(self, name).slice(offset, num_bytes)
            return _mapped(self.location, name).slice(offset, num_bytes)
        except IndexError:
            raise UserError(
                f"{self}: {name} has no {num_bytes} bytes from {offset} on: it is torn; prepare its split again"
            ) from None

    def open(self, name: str, offset: int, num_bytes: int) -> BinaryIO:
        """The same range as a file to read and seek in, as soundfile does; blocks are fetched as they are needed."""
        if not self.is_remote:
            return cast(BinaryIO, pa.BufferReader(self.slice(name, offset, num_bytes)))
        return io.BufferedReader(_Range(self, name, offset, num_bytes), BLOCK_BYTES // 16)

    def splits(self) -> list[str]:
        """The splits that are there, as sorted 'corpus/split'; none where the store is absent."""
        if not self.is_remote:
            return sorted(str(path.parent.relative_to(self.path)) for path in self.path.glob(f"*/*/{MANIFEST}"))
        filesystem, root = filesystem_of(self.location)

        def folders(path: str) -> list[str]:
            listed = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
            return [info.path for info in listed if info.type == pyarrow.fs.FileType.Directory]

        try:
            with _reaching(self):
                splits = sorted(split for corpus in folders(root) for split in folders(corpus))
                manifests = filesystem.get_file_info([f"{split}/{MANIFEST}" for split in splits])
        except FileNotFoundError:
            return []
        return [split.removeprefix(f"{root}/") for split, info in zip(splits, manifests, strict=True) if info.is_file]


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """The option of commands that read or write a store."""

    store: str = option("folder or URI of the store", "store")


def copy(store: Store, to: Location) -> None:
    """Copy a store from its folder to an object store. What was copied already isn't copied again.

    A split's manifest is copied last, so it is there as a whole or not at all; a store's own tables go first: a split
    must not be there before the exclusions that it is trained with.
    """
    target = Store.of(to)
    if not target.is_remote:
        raise UserError(f"{target} is a folder, not an object store (as s3://bucket/store): copy it there with `cp -r`")
    if not (splits := store.splits()):
        raise UserError(f"{store} holds no split: prepare one, or give the store's folder")
    filesystem, root = filesystem_of(target.location)
    for folder in (store.path, *(store.path / split for split in splits)):
        files = [path for path in folder.iterdir() if path.suffix in {".arrow", ".json"}]
        files.sort(key=lambda path: (path.name == MANIFEST, not IMMUTABLE.search(path.name), path.name))
        prefix = f"{root}/{folder.relative_to(store.path).as_posix()}".removesuffix("/.")
        with _reaching(target):
            there = filesystem.get_file_info(pyarrow.fs.FileSelector(prefix, allow_not_found=True))
            sizes = {info.base_name: info.size for info in there}
            for path in files:
                if not IMMUTABLE.search(path.name) or sizes.get(path.name) != path.stat().st_size:
                    source = pyarrow.fs.LocalFileSystem()
                    pyarrow.fs.copy_files(str(path), f"{prefix}/{path.name}", source, filesystem)
        logger.info("copied %s", prefix)


@functools.lru_cache(MAX_MAPPED)
def _mapped(folder: str, name: str) -> pa.Buffer:
    return map_file(f"{folder}/{name}")


def forget_mapped() -> None:
    """Map a folder's files anew from now on: for who can't assume that they are as they were written."""
    _mapped.cache_clear()


@functools.cache
def filesystem_of(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """A URI's file system, opened once a process, and the path of the store in it."""
    try:
        filesystem, root = pyarrow.fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError) as error:
        # Where it can't be parsed, all before the last @ may be credentials.
        shown = re.sub("://.*@", "://", location, flags=re.DOTALL).partition("?")[0]
        reason = str(error).replace(location, shown).partition("\n")[0]
        raise UserError(
            f"{shown} can't be opened: {reason}; give a folder, or a URI with keys percent-encoded, as "
            f"s3://bucket/store?region=us-east-1 or s3://bucket/store?endpoint_override=http://host:port&scheme=http"
        ) from None
    if isinstance(filesystem, pyarrow.fs.S3FileSystem):
        # from_uri sets a retry strategy that tries a dead endpoint for 100 s, and a throttled request only once.
        # S3FileSystem's own default does neither; but its arguments don't cover all of a URI's settings.
        rebuild, arguments = filesystem.__reduce__()
        rebuilt = rebuild(*arguments)
        filesystem = rebuilt if rebuilt.equals(filesystem) else filesystem
    return filesystem, root.rstrip("/")


@contextlib.contextmanager
def _reaching(store: Store) -> Iterator[None]:
    """Say in the user's terms why an object store can't be read or written; a file's absence stays what it is."""
    try:
        yield
    except FileNotFoundError:
        filesystem, root = filesystem_of(store.location)
        bucket = root.partition("/")[0]
        with contextlib.suppress(OSError):  # keys that may read files needn't be allowed to look at the bucket
            if bucket and filesystem.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
                raise UserError(f"{store}: there is no bucket {bucket!r}; check its name and the endpoint") from None
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{store} can't be reached: {error}; check the bucket's name, the endpoint and the region in the URI, the "
            f"network, and the credentials (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
        ) from error


class _RemoteFile:
    """An immutable file of an object store, read through the cache."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.filesystem, root = filesystem_of(store.location)
        self.path = f"{root}/{name}"
        self.key = hashlib.sha256(f"{store}\n{self.path}".encode()).hexdigest()

    @functools.cached_property
    def file(self) -> pa.NativeFile:
        """Open to read; that asks for its size, so it is done only where something has to be fetched."""
        with _reaching(self.store):
            return self.filesystem.open_input_file(self.path)

    def fetch(self, index: int) -> bytes:
        """A block, from the object store. The file's last one is shorter."""
        file = self.file
        with _reaching(self.store):
            return cast(bytes, file.read_at(BLOCK_BYTES, min(index * BLOCK_BYTES, file.size())))

    def block(self, index: int) -> pa.Buffer:
        """A block, from the cache if it is there."""
        cache, key = Cache.of_environment(), f"{self.key}.{index}"
        if (cached := cache.get(key)) is not None:
            return cached
        fetched = self.fetch(index)
        cache.put(key, [fetched], len(fetched))
        return pa.py_buffer(fetched)

    def slice(self, offset: int, num_bytes: int) -> pa.Buffer:
        """A range, joined from blocks. Raises IndexError where the file is shorter."""
        parts, end = [], offset + num_bytes
        while offset < end:
            index, begin = divmod(offset, BLOCK_BYTES)
            parts.append(self.block(index).slice(begin, min(BLOCK_BYTES - begin, end - offset)))
            offset += parts[-1].size
        return parts[0] if len(parts) == 1 else pa.py_buffer(b"".join(parts))

    def map(self) -> pa.Buffer:
        """The file as a whole."""
        cache = Cache.of_environment()
        if (cached := cache.get(self.key)) is not None:
            return cached
        size = self.file.size()
        blocks = map(self.fetch, range(-(-size // BLOCK_BYTES)))
        if (cached := cache.put(self.key, blocks, size)) is not None:
            return cached
        return pa.py_buffer(b"".join(map(self.fetch, range(-(-size // BLOCK_BYTES)))))


@functools.lru_cache(MAX_MAPPED)
def _remote_file(store: Store, name: str) -> _RemoteFile:
    return _RemoteFile(store, name)


class _Range(io.RawIOBase):
    """A range of a remote file, as a file. One read never goes past a block's end, so none is fetched needlessly."""

    def __init__(self, store: Store, name: str, offset: int, num_bytes: int) -> None:
        self.store, self.name, self.offset, self.num_bytes = store, name, offset, num_bytes
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.num_bytes)[whence]
        return self.position

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        start = self.offset + self.position
        count = max(0, min(len(target), self.num_bytes - self.position, BLOCK_BYTES - start % BLOCK_BYTES))
        target[:count] = memoryview(self.store.slice(self.name, start, count)).cast("B")
        self.position += count
        return count
