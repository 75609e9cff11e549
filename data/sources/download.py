"""Fetch what a corpus publishes: files with known checksums, 7z archives, datasets of the Hugging Face hub.

Nothing appears under its name before its checksum is right. What there is of a file until then lies beside it as
NAME.CHECKSUM.part, and the next download goes on from there, in another process too. The kept libraries don't do that:
pooch and torch.hub begin such a file again, and so does huggingface_hub's snapshot_download, which throws away what it
has of a file when it is ended (its issue 4196), and over plain HTTP compares sizes only. So that library gives the
listing of a dataset with its checksums, and one downloader over requests and urllib3 fetches from everywhere.
"""

import hashlib
import logging
import shutil
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx2
import py7zr
import requests
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from py7zr.exceptions import ArchiveError
from requests.adapters import HTTPAdapter
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.util import Retry

from data.errors import UserError

logger = logging.getLogger("chorale.download")

RETRY = Retry(total=5, backoff_factor=1, status_forcelist=(408, 429, 500, 502, 503, 504), raise_on_status=False)
"""Until a server answers: waits of 0, 2, 4, 8 and 16 s, or as long as it says in Retry-After."""
TIMEOUT_S = 60.0
"""Without a byte."""
CHUNK_BYTES = 2**16
"""As much of what has come is lost when a connection breaks off."""


def fetch(base_url: str, md5_by_name: dict[str, str], target: Path) -> None:
    """Fetch the files BASE_URL/NAME into `target`.

    A file that is there with the right checksum is kept, without a request. Raises UserError where a file can't be
    fetched or has another checksum.
    """
    with connect() as session:
        for name, md5 in md5_by_name.items():
            unused = hashlib.md5(usedforsecurity=False)
            fetch_file(session, f"{base_url}/{quote(name)}", target / name, unused, md5)


def dataset(repo: str, target: Path) -> None:
    """Fetch all files of a dataset's repository on the Hugging Face hub, as published, into `target`.

    All come from the commit that is the newest at the start. Their checksums are those of the hub's listing: SHA-256 of
    large files, git's SHA-1 of others. HF_ENDPOINT and HF_TOKEN serve as in huggingface_hub. Raises UserError as
    `fetch` does, and where the hub doesn't list the repository.
    """
    hub = HfApi()
    try:
        commit = hub.repo_info(repo, repo_type="dataset").sha
        listed = list(hub.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset"))
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"dataset {repo} can't be listed on {hub.endpoint}: {error}; run it again once the hub can be reached"
        ) from error
    with connect() as session:
        if token := get_token():
            # requests takes it off where the hub redirects elsewhere
            session.headers["Authorization"] = f"Bearer {token}"
        for file in listed:
            if isinstance(file, RepoFile):
                require_inside(file.path, f"dataset {repo}")
                url = hf_hub_url(repo, file.path, repo_type="dataset", revision=commit)
                if file.lfs:
                    fetch_file(session, url, target / file.path, hashlib.sha256(), file.lfs.sha256)
                else:  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
                    blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
                    fetch_file(session, url, target / file.path, blob, file.blob_id)


def connect() -> requests.Session:
    """A session that asks again where a server doesn't answer, or says that it can't at the moment."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # places in a file are those of its own bytes
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRY))
    return session


def fetch_file(session: requests.Session, url: str, path: Path, unused: "hashlib._Hash", checksum: str) -> None:
    """Fetch one file, or the rest of it; `unused` is a digest to which the file's bytes are to be added.

    Raises UserError as `fetch` does. A part with a wrong checksum is removed.
    """
    part = path.with_name(f"{path.name}.{checksum[:8]}.part")
    console = Console(stderr=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        ) as progress:
            if path.exists():
                with progress.open(path, "rb", description=f"checking {path.name}") as there:
                    found = hashlib.file_digest(there, unused.copy).hexdigest()  # type: ignore[arg-type]
                if found == checksum:
                    logger.info("%s: is there", path)
                    return
                logger.warning("%s: its %s is %s and not %s: fetched again", path, unused.name, found, checksum)
            found = fetch_rest(session, url, part, unused, checksum, progress)
        if found != checksum:
            part.unlink()
            raise UserError(
                f"{url}: its {unused.name} is {found} and not {checksum}, as published; what has come is removed: "
                f"run it again"
            )
        part.replace(path)
        logger.info("%s: fetched, %s", path, decimal(path.stat().st_size))
    except requests.RequestException as error:
        raise UserError(
            f"{url} can't be fetched: {error}; once that is put right, run it again: it goes on where it stopped"
        ) from error
    except OSError as error:
        raise UserError(
            f"{url} can't be written to {part}: {error}; make room, or let it be written, and run it again: it goes on "
            f"where it stopped"
        ) from error


def fetch_rest(
    session: requests.Session, url: str, part: Path, unused: "hashlib._Hash", checksum: str, progress: Progress
) -> str:
    """Add to `part` what it lacks, and give the checksum of the whole.

    A connection that breaks off in mid-file is made again as long as each brings some bytes. No If-Range is needed:
    `part` is named by the checksum of the file that it is a part of, which proves the whole.
    """
    task = progress.add_task(part.name, total=None)
    with part.open("a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, unused.copy)
        while digest.hexdigest() != checksum:
            start = file.tell()
            headers = {"Range": f"bytes={start}-"} if start else {}
            try:
                with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
                    if response.status_code == requests.codes.requested_range_not_satisfiable:
                        break  # there is no more
                    response.raise_for_status()
                    if response.status_code != requests.codes.partial_content:  # the server gives whole files only
                        file.seek(0)
                        file.truncate()
                        digest = unused.copy()
                    size = response.headers.get("Content-Length")
                    progress.reset(task, completed=file.tell(), total=file.tell() + int(size) if size else None)
                    for chunk in response.iter_content(CHUNK_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                        progress.advance(task, len(chunk))
                break
            except requests.RequestException as error:
                if file.tell() <= start:
                    raise
                logger.warning("%s broke off after %s: %s", url, decimal(file.tell()), error)
    return digest.hexdigest()


def require_inside(name: str, origin: str) -> None:
    """Refuse a file's name that leads out of the folder it is relative to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{origin}: the name {name!r} leads out of its folder; nothing was written")


def extract(archive: Path, target: Path) -> None:
    """Extract a 7z archive into `target`, unless all of its files are there with their sizes.

    Files get their names when all are extracted. Raises UserError for an archive that is absent, torn, or holds links
    or names with '..' or from the root, and where files can't be written.
    """
    scratch = target / f".{archive.name}.part"
    try:
        with py7zr.SevenZipFile(archive) as opened:
            members = opened.list()
            for member in members:
                require_inside(member.filename, str(archive))  # py7zr takes the root off a name, and goes on
                if not (member.is_file or member.is_directory):
                    raise UserError(f"{archive}: {member.filename!r} is neither a file nor a folder")
            files = [member for member in members if member.is_file]
            paths = [target / file.filename for file in files]
            if all(
                path.is_file() and path.stat().st_size == file.uncompressed
                for path, file in zip(paths, files, strict=True)
            ):
                logger.info("%s: is extracted", archive)
                return
            logger.info("%s: %d files are extracted", archive, len(files))
            opened.extractall(scratch)
        for path, file in zip(paths, files, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            (scratch / file.filename).replace(path)
    except (ArchiveError, LZMAError, EOFError) as error:
        raise UserError(f"{archive} can't be extracted: {error}; remove it and download it again") from error
    except OSError as error:
        raise UserError(
            f"{archive} can't be extracted into {target}: {error}; put that right and run it again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
