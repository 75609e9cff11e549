"""Where results lie: a folder that every node sees, or a prefix in an object store.

    models/SIGNATURE/           trained models, as fine-tunings start from them
    trials/SIGNATURE-NUMBER/    checkpoints of a training under its lease of that number
    leases/SIGNATURE/           who trains a trial (trainables.records.lease)
    mlflow.db, artifacts/       the tracking store, where no server keeps it
    embeddings/                 what members of a submission have embedded, on the machine that writes it

An object store is named as s3://bucket/runs, with region, endpoint_override and scheme as in a store's URI; its keys
come from the environment or from the machine's role, never from the URI.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import obstore
import pyarrow.fs
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from data.errors import UserError
from data.store.storage import filesystem_of

LAST_FILE = "trial.json"
"""Of a model in an object store: it is copied last, so a model that has it is whole."""


@dataclass(frozen=True)
class Runs:
    """The place of results; make one with `of`. It holds nothing open, so it can be sent to other processes."""

    location: str

    @classmethod
    def of(cls, location: "Runs | Path | str") -> "Runs":
        """A folder or URI, be it there or not. Raises UserError for a URI with keys, or of an unknown kind."""
        if isinstance(location, Runs):
            return location
        if "://" not in str(location):
            return cls(str(Path(location).resolve()))
        scheme, host, path, *_ = urlsplit(str(location))
        if "@" in host:
            raise UserError(
                f"{scheme}://{host.rpartition('@')[2]}{path}: keys don't belong into the URI of runs, which is logged; "
                "give them in the environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        runs = cls(str(location).rstrip("/"))
        _objects(runs.location)
        return runs

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return "://" in self.location

    @property
    def folder(self) -> Path:
        """The folder. Raises UserError for an object store."""
        if self.is_remote:
            raise UserError(f"{self} is in an object store; this needs a folder of runs")
        return Path(self.location)

    def at(self, name: str) -> str:
        """The path or URI of what has a name there."""
        scheme, host, path, query, _ = urlsplit(self.location)
        return urlunsplit((scheme, host, f"{path}/{name}", query, "")) if self.is_remote else f"{self.location}/{name}"

    def create(self, name: str, contents: bytes) -> bool:
        """Write a small file unless it is there; whether it was written. Of several who try, one does it."""
        try:
            obstore.put(_objects(self.location), name, contents, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def write(self, name: str, contents: bytes) -> None:
        """Write a small file, whole or not at all, whatever was there."""
        obstore.put(_objects(self.location), name, contents)

    def read(self, name: str) -> bytes | None:
        """A small file's contents, None where there is none."""
        try:
            return bytes(obstore.get(_objects(self.location), name).bytes())
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, and below."""
        return [entry["path"] for entry in obstore.list(_objects(self.location), folder).collect()]

    def age(self, name: str, other: str) -> timedelta:
        """How much longer ago one file was written than another, by the storage's own clock."""
        objects = _objects(self.location)
        return obstore.head(objects, other)["last_modified"] - obstore.head(objects, name)["last_modified"]

    def remove(self, folder: str) -> None:
        """Remove a folder with all that is in it."""
        if self.is_remote:
            obstore.delete(_objects(self.location), self.names(folder))
        else:
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def has_model(self, signature: str) -> bool:
        """Whether a trained model is there."""
        return self.read(f"models/{signature}/{LAST_FILE}") is not None

    def keep_model(self, signature: str, folder: Path) -> None:
        """Take a model's folder in; it appears whole or not at all. In a folder of runs it is moved, not copied."""
        target = f"models/{signature}"
        if self.has_model(signature):
            return
        if not self.is_remote:
            folder.rename(self.folder / target)
            return
        filesystem, path = filesystem_of(self.at(target))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == LAST_FILE):
            pyarrow.fs.copy_files(str(file), f"{path}/{file.name}", pyarrow.fs.LocalFileSystem(), filesystem)

    @property
    def local_folder(self) -> Path:
        """Where this machine keeps what no other needs."""
        return Path(tempfile.gettempdir()) / "chorale" if self.is_remote else self.folder

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder to write a model to before it is taken in: beside the others, or on this machine."""
        if self.is_remote:
            return tempfile.TemporaryDirectory()
        models = self.folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=models, prefix=".")

    def model(self, signature: str, scratch: Path) -> Path:
        """Return the folder of a trained model; that of an object store is copied into `scratch` first."""
        return self.fetch(f"models/{signature}", scratch)

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return a folder of that name; that of an object store is copied into `scratch` first."""
        if not self.is_remote:
            return self.folder / name
        filesystem, path = filesystem_of(self.at(name))
        scratch.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(path, str(scratch), filesystem, pyarrow.fs.LocalFileSystem())
        return scratch

    def store(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder, and keep it under that name; what had the name is replaced.

        In a folder of runs it is renamed once it is complete; in an object store it is copied file by file.
        """
        if self.is_remote:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
                filesystem, path = filesystem_of(self.at(name))
                pyarrow.fs.copy_files(scratch, path, pyarrow.fs.LocalFileSystem(), filesystem)
            return
        target = self.folder / name
        part = target.with_name(f".{target.name}.part")
        for folder in (part, target):
            shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        part.rename(target)


@functools.cache
def _objects(location: str) -> ObjectStore:
    """Opened once a process."""
    scheme, host, path, query, _ = urlsplit(location)
    if not scheme:
        return LocalStore(location, mkdir=True)
    settings = dict(parse_qsl(query))
    unknown = sorted(set(settings) - {"region", "endpoint_override", "scheme"})
    if unknown:
        raise UserError(f"{location}: unknown setting {unknown[0]!r}; known: endpoint_override, region, scheme")
    options: dict[str, str] = {"region": settings["region"]} if "region" in settings else {}
    if "endpoint_override" in settings:
        address = settings["endpoint_override"].rpartition("://")[2]
        options["endpoint"] = f"{settings.get('scheme', 'https')}://{address}"
    client = {"allow_http": settings.get("scheme") == "http"}
    try:
        opened: ObjectStore = from_url(  # type: ignore[call-overload]
            urlunsplit((scheme, host, path, "", "")), client_options=client, **options
        )
        return opened
    except (BaseError, ValueError) as error:
        raise UserError(f"{location} can't be opened: {str(error).partition(chr(10))[0]}") from error
