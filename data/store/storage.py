"""Storage of a store: a folder, or a prefix in an object store that is read through a disk cache.

The layout of a store is described in `data.schema`. Files whose name contains a hash never change: those in a folder
are memory-mapped in place, those in an object store are fetched in aligned blocks, which stay in the cache until they
are the least recently used (`data.store.block_cache`). Other files are small, and read again each time.
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
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs

from data.errors import UserError
from data.runtime.options import option
from data.runtime.printable import SECRET_SETTING
from data.store.block_cache import BlockCache, map_file

logger = logging.getLogger(__name__)

Location: TypeAlias = "Path | str | Store"
"""Location of a store: a folder, a URI that pyarrow.fs.FileSystem.from_uri supports, or a Store."""

MANIFEST = "manifest.json"

IMMUTABLE_NAME = re.compile(r"-[0-9a-f]{8,}\.(arrow|json)$")
"""Pattern of the names of files that never change."""

BLOCK_BYTES = 4 * 2**20
"""Number of bytes fetched at a time: a 30-s window of PCM is 1.9 MB, so most windows are in one or two blocks."""

MAX_MAPPED = 4096
"""Maximum number of files mapped at a time per process; Linux allows 65,530 mappings by default."""


@dataclass(frozen=True, repr=False)
class Store:
    """Store of clips at `location`, an absolute path or a URI. Create it with `Store.of`.

    It holds no open files, so it can be sent to other processes; open files are cached per process. Every method raises
    UserError if an object store can't be reached or denies access.
    """

    location: str

    @classmethod
    def of(cls, location: Location) -> "Store":
        """Return the store at a path or URI, which doesn't have to exist. Raises UserError for a URI that contains keys
        or is of an unsupported kind.
        """
        if isinstance(location, Store):
            return location
        if "://" not in str(location):
            return cls(str(Path(location).resolve()))
        refuse_credentials(str(location))
        filesystem, root = open_filesystem(str(location))
        return cls(root if isinstance(filesystem, pyarrow.fs.LocalFileSystem) else str(location))

    def __str__(self) -> str:
        return self.location

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    @property
    def is_remote(self) -> bool:
        """True if the store is in an object store."""
        return "://" in self.location

    @property
    def path(self) -> Path:
        """Folder of the store. Raises UserError for an object store."""
        if self.is_remote:
            raise UserError(
                f"{self} is in an object store, but a folder is needed: give one, "
                "then copy it with `python data/prepare.py upload`"
            )
        return Path(self.location)

    def read(self, name: str) -> bytes:
        """Return the contents of a small file as they are now; `name` is its path relative to the store. Raises
        FileNotFoundError if it is absent.
        """
        if not self.is_remote:
            return (self.path / name).read_bytes()
        filesystem, root = open_filesystem(self.location)
        with (
            _store_errors_as_user_errors(self),
            filesystem.open_input_stream(f"{root}/{name}", compression=None) as file,
        ):
            return cast(bytes, file.read())

    def map(self, name: str) -> pa.Buffer:
        """Return the contents of an immutable file as a memory-mapped buffer; a file of an object store is
        copied into the cache first. `name` is its path relative to the store.

        Raises FileNotFoundError if it is absent.
        """
        return _remote_file(self, name).map() if self.is_remote else _map_local_file(self.location, name)

    def slice(self, name: str, offset: int, num_bytes: int) -> pa.Buffer:
        """Return `num_bytes` of an immutable file from `offset` on. They aren't copied if the store is a
        folder, or if they lie in one cached block.

        Raises FileNotFoundError if the file is absent, and UserError if it is shorter.
        """
        try:
            if self.is_remote:
                return _remote_file(self, name).slice(offset, num_bytes)
            return _map_local_file(self.location, name).slice(offset, num_bytes)
        except IndexError:
            raise UserError(
                f"{self}: {name} has no {num_bytes} bytes from {offset} on: it is truncated; prepare its split again"
            ) from None

    def open(self, name: str, offset: int, num_bytes: int) -> BinaryIO:
        """Open `num_bytes` of an immutable file from `offset` on as a seekable file object. From an object
        store, blocks are fetched when they are read.
        """
        if not self.is_remote:
            return cast(BinaryIO, pa.BufferReader(self.slice(name, offset, num_bytes)))
        return io.BufferedReader(_RangeFile(self, name, offset, num_bytes), BLOCK_BYTES // 16)

    def list_splits(self) -> list[str]:
        """Return the sorted names of the existing splits, 'corpus/split'; none if the store doesn't exist."""
        if not self.is_remote:
            return sorted(str(path.parent.relative_to(self.path)) for path in self.path.glob(f"*/*/{MANIFEST}"))
        filesystem, root = open_filesystem(self.location)

        def folders(path: str) -> list[str]:
            listed = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
            return [info.path for info in listed if info.type == pyarrow.fs.FileType.Directory]

        try:
            with _store_errors_as_user_errors(self):
                splits = sorted(split for corpus in folders(root) for split in folders(corpus))
                manifests = filesystem.get_file_info([f"{split}/{MANIFEST}" for split in splits])
        except FileNotFoundError:
            return []
        return [split.removeprefix(f"{root}/") for split, info in zip(splits, manifests, strict=True) if info.is_file]


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Command-line option --store, for commands that read or write a store."""

    store: str = option("folder or URI of the store", "store")


def upload_store(store: Store, to: Location) -> None:
    """Copy a store from its folder to an object store, except files that have been copied before.

    The manifest of a split is copied last, so that readers see the complete split or none; the store's own tables are
    copied first, because a split must not exist before the exclusions for its training do.
    """
    target = Store.of(to)
    if not target.is_remote:
        raise UserError(
            f"{target} is a folder, not an object store (such as s3://bucket/store): to copy to a folder, use `cp -r`"
        )
    if not (splits := store.list_splits()):
        raise UserError(f"{store} holds no split: prepare one, or give the folder of another store")
    filesystem, root = open_filesystem(target.location)
    for folder in (store.path, *(store.path / split for split in splits)):
        files = [path for path in folder.iterdir() if path.suffix in {".arrow", ".json"}]
        files.sort(key=lambda path: (path.name == MANIFEST, not IMMUTABLE_NAME.search(path.name), path.name))
        prefix = f"{root}/{folder.relative_to(store.path).as_posix()}".removesuffix("/.")
        with _store_errors_as_user_errors(target):
            existing = filesystem.get_file_info(pyarrow.fs.FileSelector(prefix, allow_not_found=True))
            sizes = {info.base_name: info.size for info in existing}
            for path in files:
                if not IMMUTABLE_NAME.search(path.name) or sizes.get(path.name) != path.stat().st_size:
                    source = pyarrow.fs.LocalFileSystem()
                    pyarrow.fs.copy_files(str(path), f"{prefix}/{path.name}", source, filesystem)
        logger.info("copied %s", prefix)


@functools.lru_cache(MAX_MAPPED)
def _map_local_file(folder: str, name: str) -> pa.Buffer:
    return map_file(f"{folder}/{name}")


def clear_mapped_files() -> None:
    """Discard the cached mappings of a folder's files, so that changed files are read again."""
    _map_local_file.cache_clear()


def refuse_credentials(uri: str) -> None:
    """Raise UserError, which doesn't show the keys, if the URI of an object store contains keys. Other users of the
    machine can see command lines, and Ray and MLflow record them.
    """
    scheme, host, path, query, _ = urlsplit(uri)
    user, _, bare_host = host.rpartition("@")
    # A name and an @ before the host of other schemes is an account or container. A bucket has no colon: in front of
    # one is a key whose '/' isn't percent-encoded.
    has_keys = ":" in user or (scheme == "s3" and (user or ":" in host))
    if has_keys or SECRET_SETTING.search(f"?{query}") or "@" in dict(parse_qsl(query)).get("endpoint_override", ""):
        address = f"{bare_host}{path}" if user or not has_keys else path.rpartition("@")[2]
        raise UserError(
            f"{scheme}://{address}: remove the keys from the URI, since command lines are recorded and can be seen by "
            "others; give them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or use a "
            "profile or a role of the machine"
        )


@functools.cache
def open_filesystem(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return two values for a URI: its file system, opened once per process, and the path of the store in that file
    system.
    """
    try:
        filesystem, root = pyarrow.fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError) as error:
        shown = location.partition("?")[0]
        reason = str(error).replace(location, shown).partition("\n")[0]
        raise UserError(
            f"{shown} can't be opened: {reason}; give a folder, or a URI such as "
            f"s3://bucket/store?region=us-east-1 or s3://bucket/store?endpoint_override=http://host:port&scheme=http"
        ) from None
    if isinstance(filesystem, pyarrow.fs.S3FileSystem):
        # from_uri sets a retry strategy that retries a dead endpoint for 100 s, and a throttled request not at all.
        # S3FileSystem's default does neither, but its arguments don't cover all settings of a URI.
        rebuild, arguments = filesystem.__reduce__()
        rebuilt = rebuild(*arguments)
        filesystem = rebuilt if rebuilt.equals(filesystem) else filesystem
    return filesystem, root.rstrip("/")


@contextlib.contextmanager
def _store_errors_as_user_errors(store: Store) -> Iterator[None]:
    """Re-raise failures to read or write an object store as UserError; FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:
        filesystem, root = open_filesystem(store.location)
        bucket = root.partition("/")[0]
        with contextlib.suppress(OSError):  # keys that may read files need not have access to the bucket itself
            if bucket and filesystem.get_file_info(bucket).type == pyarrow.fs.FileType.NotFound:
                raise UserError(f"{store}: bucket {bucket!r} doesn't exist; check its name and the endpoint") from None
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{store} can't be reached: {error}; check the bucket's name, the endpoint and the region in the URI, the "
            f"network, and the credentials (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
        ) from error


class _RemoteFile:
    """Immutable file of an object store, read through the cache."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.filesystem, root = open_filesystem(store.location)
        self.path = f"{root}/{name}"
        self.key = hashlib.sha256(f"{store}\n{self.path}".encode()).hexdigest()

    @functools.cached_property
    def file(self) -> pa.NativeFile:
        """Open file; opening it requests its size, so it is done only if something has to be fetched."""
        with _store_errors_as_user_errors(self.store):
            return self.filesystem.open_input_file(self.path)

    def fetch_block(self, index: int) -> bytes:
        """Fetch the block with this index from the object store: BLOCK_BYTES, fewer for the file's last block."""
        file = self.file
        with _store_errors_as_user_errors(self.store):
            return cast(bytes, file.read_at(BLOCK_BYTES, min(index * BLOCK_BYTES, file.size())))

    def read_block(self, index: int) -> pa.Buffer:
        """Return the block with this index from the cache, or fetch it and put it into the cache."""
        cache, key = BlockCache.from_environment(), f"{self.key}.{index}"
        if (cached := cache.get(key)) is not None:
            return cached
        fetched = self.fetch_block(index)
        cache.put(key, [fetched], len(fetched))
        return pa.py_buffer(fetched)

    def slice(self, offset: int, num_bytes: int) -> pa.Buffer:
        """Return `num_bytes` bytes of the file from the position `offset` on, joined from blocks. Raises IndexError if
        the file is shorter.
        """
        parts, end = [], offset + num_bytes
        while offset < end:
            index, begin = divmod(offset, BLOCK_BYTES)
            parts.append(self.read_block(index).slice(begin, min(BLOCK_BYTES - begin, end - offset)))
            offset += parts[-1].size
        return parts[0] if len(parts) == 1 else pa.py_buffer(b"".join(parts))

    def map(self) -> pa.Buffer:
        """Copy the whole remote file into the cache if it is missing there, and return it memory-mapped."""
        cache = BlockCache.from_environment()
        if (cached := cache.get(self.key)) is not None:
            return cached
        size = self.file.size()
        blocks = map(self.fetch_block, range(-(-size // BLOCK_BYTES)))
        if (cached := cache.put(self.key, blocks, size)) is not None:
            return cached
        return pa.py_buffer(b"".join(map(self.fetch_block, range(-(-size // BLOCK_BYTES)))))


@functools.lru_cache(MAX_MAPPED)
def _remote_file(store: Store, name: str) -> _RemoteFile:
    return _RemoteFile(store, name)


class _RangeFile(io.RawIOBase):
    """Range of a remote file as a file object of its own. A single read ends at the end of a block, so that no
    block is fetched needlessly.
    """

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
