"""The run storage: a folder that every node sees, or a prefix in an object store.

    models/SIGNATURE/           trained models
    trials/SIGNATURE-NUMBER/    checkpoints of a training under the lease of that number
    teachers/SIGNATURE/         embeddings of training splits by teachers
    features/KEY/               outputs of frozen encoders
    leases/SIGNATURE/           holders of trials (trainables.records.lease)
    mlflow.db, artifacts/       the tracking store, unless a server keeps it
    embeddings/                 embeddings by members of a submission, on the machine that writes it

An object store is named as s3://bucket/runs, with region, endpoint_override and scheme as in a store's URI; its keys
are read from the environment or from the machine's role, never from the URI.
"""

import functools
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import obstore
import pyarrow.fs
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from data.errors import UserError
from data.sources.json_text import parse_json
from data.store.files import rename_folder, sync, sync_folder
from data.store.scratch import create_scratch_folder
from data.store.storage import open_filesystem, refuse_credentials

MAX_HEADER_BYTES = 2**27
"""Maximum size of the header of a safetensors file that is read; it lists the names of the tensors."""

LAST_FILE = "trial.json"
"""File of a model that is copied last to an object store: if it exists, the model is complete."""


@dataclass(frozen=True)
class RunStorage:
    """Location of a run storage. Create it with `RunStorage.of`; it holds no open connection, so it can be sent to
    other processes.
    """

    location: str

    @classmethod
    def of(cls, location: "RunStorage | Path | str") -> "RunStorage":
        """Return the run storage at a folder or URI, which need not exist. Raises UserError for a URI that contains
        keys or is of an unknown kind.
        """
        if isinstance(location, RunStorage):
            return location
        if "://" not in str(location):
            return cls(str(Path(location).resolve()))
        refuse_credentials(str(location))
        runs = cls(str(location).rstrip("/"))
        _open_objects(runs.location)
        return runs

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        """Whether the storage is in an object store."""
        return "://" in self.location

    @property
    def folder(self) -> Path:
        """Local folder of the storage. Raises UserError for an object store."""
        if self.is_remote:
            raise UserError(f"{self} is in an object store: this command needs a local folder: name one with --runs")
        return Path(self.location)

    def locate(self, name: str) -> str:
        """Return the absolute path or the URI of a file or folder, given its name in the storage."""
        scheme, host, path, query, _ = urlsplit(self.location)
        return urlunsplit((scheme, host, f"{path}/{name}", query, "")) if self.is_remote else f"{self.location}/{name}"

    def create(self, name: str, contents: bytes) -> bool:
        """Write a small file unless it exists, and return whether it was written. If several processes try at the same
        time, exactly one succeeds.
        """
        try:
            obstore.put(_open_objects(self.location), name, contents, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def write(self, name: str, contents: bytes) -> None:
        """Write a small file atomically, replacing an existing one."""
        obstore.put(_open_objects(self.location), name, contents)
        if not self.is_remote:
            sync(self.folder / name)
            sync((self.folder / name).parent)

    def read(self, name: str) -> bytes | None:
        """Return the contents of a small file, or None if it doesn't exist."""
        try:
            return bytes(obstore.get(_open_objects(self.location), name).bytes())
        except FileNotFoundError:
            return None

    def list_names(self, folder: str) -> list[str]:
        """Return the names, relative to the storage, of all files in a folder and its subfolders."""
        return [entry["path"] for entry in obstore.list(_open_objects(self.location), folder).collect()]

    def age_difference(self, name: str, later_name: str) -> timedelta:
        """Return how much later the file `later_name` was written than the file `name`, by the storage's own clock."""
        objects = _open_objects(self.location)
        return obstore.head(objects, later_name)["last_modified"] - obstore.head(objects, name)["last_modified"]

    def remove(self, folder: str) -> None:
        """Remove a folder with all its contents, if it exists."""
        if self.is_remote:
            obstore.delete(_open_objects(self.location), self.list_names(folder))
        else:
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def has_model(self, signature: str) -> bool:
        """Return whether the storage contains the complete model of the trial with this signature."""
        return self.read(f"models/{signature}/{LAST_FILE}") is not None and not self.has_damaged_model(signature)

    def has_damaged_model(self, signature: str) -> bool:
        """Return whether the storage contains an incomplete model of the trial with this signature, such as after a
        power cut. Always False for an object store, which stores files as a whole.
        """
        if self.is_remote:
            return False
        folder = self.folder / "models" / signature
        return folder.is_dir() and not has_complete_weights(folder)

    def store_model(self, signature: str, folder: Path) -> None:
        """Store a folder with the trained model of the trial with this signature atomically, unless the trial already
        has one. In a local storage the folder is moved instead of copied.
        """
        target = f"models/{signature}"
        if self.has_model(signature):
            return
        if not self.is_remote:
            shutil.rmtree(self.folder / target, ignore_errors=True)  # a damaged model
            rename_folder(folder, self.folder / target)
            return
        filesystem, path = open_filesystem(self.locate(target))
        for file in sorted(folder.iterdir(), key=lambda file: file.name == LAST_FILE):
            pyarrow.fs.copy_files(str(file), f"{path}/{file.name}", pyarrow.fs.LocalFileSystem(), filesystem)

    @property
    def local_folder(self) -> Path:
        """Local folder for files that only this machine needs: the storage itself or, for an object store, the user's
        folder of state ($XDG_STATE_HOME or ~/.local/state).
        """
        if not self.is_remote:
            return self.folder
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "chorale"

    def make_scratch(self) -> AbstractContextManager[Path]:
        """Return a context manager that creates a temporary folder, in which a model is written before it is stored:
        beside the stored models, so that it can be moved, or anywhere on this machine for an object store.
        """
        return create_scratch_folder(None if self.is_remote else self.folder / "models")

    def fetch_model(self, signature: str, scratch: Path) -> Path:
        """Return the local folder of the trained model of the trial with this signature; from an object store it is
        copied into `scratch` first.
        """
        return self.fetch(f"models/{signature}", scratch)

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return the local path of a folder of the storage; from an object store it is copied into `scratch` first."""
        if not self.is_remote:
            return self.folder / name
        filesystem, path = open_filesystem(self.locate(name))
        scratch.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(path, str(scratch), filesystem, pyarrow.fs.LocalFileSystem())
        return scratch

    def sync(self, name: str) -> None:
        """Wait until a folder that another library has written is on the disk, with its name; an object store has it
        once it is written.
        """
        if not self.is_remote:
            sync_folder(self.folder / name)
            sync((self.folder / name).parent)

    def write_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Call `write` to fill an empty folder, and store that folder under a name, replacing an existing one.

        A local folder is renamed once it is complete; in an object store it is copied file by file.
        """
        if self.is_remote:
            with create_scratch_folder() as scratch:
                write(scratch)
                filesystem, path = open_filesystem(self.locate(name))
                pyarrow.fs.copy_files(str(scratch), path, pyarrow.fs.LocalFileSystem(), filesystem)
            return
        target = self.folder / name
        part = target.with_name(f".{target.name}.part")
        for folder in (part, target):
            shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        rename_folder(part, target)


def has_complete_weights(folder: Path) -> bool:
    """Return whether the folder of a model or a checkpoint has weights, and all its files of weights have the size
    that their headers state.
    """
    files = list(folder.glob("*.safetensors"))
    return bool(files) and all(file.stat().st_size == read_stated_size(file) for file in files)


def read_stated_size(path: Path) -> int:
    """Return the size in bytes that the header of a safetensors file states; -1 if the header is incomplete.

    Format: https://huggingface.co/docs/safetensors, 8 bytes with the length of the header, the header as JSON, and the
    tensors at the offsets that it states.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MAX_HEADER_BYTES))
    try:
        tensors: dict[str, dict[str, list[int]]] = parse_json(header)
    except ValueError:
        return -1
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


@functools.cache
def _open_objects(location: str) -> ObjectStore:
    """Return obstore's object for reading and writing a run storage, local or remote; it is opened once per process.
    Raises UserError if it can't be opened.
    """
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
