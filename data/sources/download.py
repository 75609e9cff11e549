"""Download published files with verified checksums: plain files, 7z archives, datasets of the Hugging Face Hub.

A file gets its name only after its checksum has been verified. Until then, its data is kept beside it as
NAME.CHECKSUM.part, from which the next download resumes, also in another process. Existing libraries don't do that:
pooch and torch.hub restart such a file, as does huggingface_hub's snapshot_download, which discards the data when it is
interrupted (its issue 4196) and over plain HTTP compares only sizes. huggingface_hub is therefore used only to list a
dataset and its checksums, and one downloader based on requests and urllib3 fetches all files.
"""

import hashlib
import logging
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx2
import py7zr
import requests
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from requests.adapters import HTTPAdapter
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.util import Retry

from data.errors import UserError
from data.runtime.console import PlainConsole

logger = logging.getLogger("chorale.download")

RETRY = Retry(total=5, backoff_factor=1, status_forcelist=(408, 429, 500, 502, 503, 504), raise_on_status=False)
"""Retries until a server responds: waits of 0, 2, 4, 8 and 16 s, or as long as its Retry-After header says."""
TIMEOUT_S = 60.0
"""Connection and read timeout: seconds without data."""
CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
"""Pattern of the checksums that the hub lists: SHA-1 or SHA-256, in hexadecimal."""
CHUNK_BYTES = 2**16
"""Number of bytes read at a time; at most this much is lost when a connection drops."""


def fetch_files(base_url: str, md5_by_name: dict[str, str], target: Path) -> None:
    """Download files into the folder `target`, and verify their checksums: the file `base_url`/NAME for each NAME in
    `md5_by_name`, which has the MD5 checksums in hexadecimal.

    An existing file with the right checksum is kept, without a request. Raises UserError if a file can't be downloaded
    or has another checksum.
    """
    with open_session() as session:
        for name, md5 in md5_by_name.items():
            unused = hashlib.md5(usedforsecurity=False)
            fetch_file(session, f"{base_url}/{quote(name)}", target / name, unused, md5)


def fetch_dataset(repo: str, target: Path) -> None:
    """Download all files of a dataset repository on the Hugging Face Hub into `target`.

    All files come from the commit that is the latest at the start. Their checksums are those in the hub's listing:
    SHA-256 of large files, git's SHA-1 of others. HF_ENDPOINT and HF_TOKEN are used as in huggingface_hub. Raises
    UserError as `fetch_files` does, and if the hub can't list the repository.
    """
    hub = HfApi()
    try:
        commit = hub.repo_info(repo, repo_type="dataset").sha
        listed = list(hub.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset"))
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"dataset {repo} can't be listed on {hub.endpoint}: {error}; "
            "re-run the same command once the hub can be reached"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # depending on the hub's JSON
        raise UserError(
            f"dataset {repo} can't be listed: {hub.endpoint} doesn't answer as the Hugging Face Hub does "
            f"({type(error).__name__}: {error}); check HF_ENDPOINT"
        ) from error
    with open_session() as session:
        if token := get_token():
            # requests removes it when the hub redirects to another host
            session.headers["Authorization"] = f"Bearer {token}"
        for file in listed:
            if isinstance(file, RepoFile):
                require_inside(file.path, f"dataset {repo}")
                if not CHECKSUM.fullmatch(str(file.lfs.sha256 if file.lfs else file.blob_id)):
                    raise UserError(
                        f"dataset {repo}: {hub.endpoint} lists no checksum of {file.path}: check HF_ENDPOINT"
                    )
                url = hf_hub_url(repo, file.path, repo_type="dataset", revision=commit)
                if file.lfs:
                    fetch_file(session, url, target / file.path, hashlib.sha256(), file.lfs.sha256)
                else:  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
                    blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
                    fetch_file(session, url, target / file.path, blob, file.blob_id)


def open_session() -> requests.Session:
    """Return an HTTP session that retries a request if the server doesn't respond or is temporarily unavailable."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # offsets refer to the bytes of the file itself
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRY))
    return session


def fetch_file(session: requests.Session, url: str, path: Path, empty_digest: "hashlib._Hash", checksum: str) -> None:
    """Download the file at `url` to `path`, or the part of it that is missing, and verify its checksum. `checksum` is
    in hexadecimal; `empty_digest` is a new hash object of its algorithm.

    Raises UserError as `fetch_files` does. Downloaded data with a wrong checksum is removed.
    """
    part = path.with_name(f"{path.name}.{checksum[:8]}.part")
    console = PlainConsole(stderr=True)
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
                with progress.open(path, "rb", description=f"checking {path.name}") as existing_file:
                    actual_checksum = hashlib.file_digest(existing_file, empty_digest.copy).hexdigest()  # type: ignore[arg-type]
                if actual_checksum == checksum:
                    logger.info("%s: already exists", path)
                    return
                logger.warning(
                    "%s: its %s is %s, expected %s: downloading it again",
                    path,
                    empty_digest.name,
                    actual_checksum,
                    checksum,
                )
            actual_checksum = resume_download(session, url, part, empty_digest, checksum, progress)
        if actual_checksum != checksum:
            part.unlink()
            raise UserError(
                f"{url}: its {empty_digest.name} is {actual_checksum}, expected {checksum}; "
                "the downloaded data was removed: "
                f"re-run the same command to download it again"
            )
        part.replace(path)
        logger.info("%s: downloaded, %s", path, decimal(path.stat().st_size))
    except requests.RequestException as error:
        raise UserError(
            f"{url} can't be downloaded: {error}; fix the cause, then re-run the same command to resume"
        ) from error
    except OSError as error:
        raise UserError(
            f"{url} can't be written to {part}: {error}; free disk space or change the permissions, "
            f"then re-run the same command to resume"
        ) from error


def resume_download(
    session: requests.Session, url: str, part: Path, empty_digest: "hashlib._Hash", checksum: str, progress: Progress
) -> str:
    """Append the data of the file at `url` that is still missing to the file `part`, and return the checksum of the
    complete file, in hexadecimal. `checksum` is the expected one, `empty_digest` a new hash object of its algorithm,
    and `progress` shows the progress.

    If the connection drops, it is made again as long as each attempt brings some bytes. No If-Range header is needed:
    the name of `part` contains the checksum of the complete file, which is verified at the end.
    """
    task = progress.add_task(part.name, total=None)
    with part.open("a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, empty_digest.copy)
        while digest.hexdigest() != checksum:
            start = file.tell()
            headers = {"Range": f"bytes={start}-"} if start else {}
            try:
                with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
                    if response.status_code == requests.codes.requested_range_not_satisfiable:
                        break  # the file is complete
                    response.raise_for_status()
                    if response.status_code != requests.codes.partial_content:  # the server ignores ranges
                        file.seek(0)
                        file.truncate()
                        digest = empty_digest.copy()
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
                logger.warning("%s: connection dropped after %s: %s", url, decimal(file.tell()), error)
    return digest.hexdigest()


def require_inside(name: str, origin: str) -> None:
    """Raise UserError, whose message begins with `origin`, if a relative file name points outside the folder that it is
    relative to.
    """
    path = PurePosixPath(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{origin}: the name {name!r} points outside its folder; nothing was written")
    if not path.parts or "\0" in str(path):
        raise UserError(f"{origin}: {name!r} can't be the name of a file; nothing was written")


def extract_archive(archive: Path, target: Path) -> None:
    """Extract a 7z archive into `target`, unless all of its files exist with the right sizes.

    Files get their names only after all have been extracted. Raises UserError if the archive is absent or corrupt,
    contains links, absolute names or names with '..', and if files can't be written.
    """
    scratch = target / f".{archive.name}.part"
    try:
        with py7zr.SevenZipFile(archive) as opened:
            members = opened.list()
            for member in members:
                require_inside(member.filename, str(archive))  # py7zr strips the root from a name and continues
                if not (member.is_file or member.is_directory):
                    raise UserError(f"{archive}: {member.filename!r} is neither a file nor a folder")
            files = [member for member in members if member.is_file]
            paths = [target / file.filename for file in files]
            if all(
                path.is_file() and path.stat().st_size == file.uncompressed
                for path, file in zip(paths, files, strict=True)
            ):
                logger.info("%s: already extracted", archive)
                return
            logger.info("%s: extracting %d files", archive, len(files))
            opened.extractall(scratch)
        for path, file in zip(paths, files, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            (scratch / file.filename).replace(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{archive} can't be extracted into {target}: {error}; fix the cause, then re-run the same command"
        ) from error
    except Exception as error:  # what py7zr raises for a damaged archive depends on where in it the damage is
        raise UserError(f"{archive} can't be extracted: {error}; remove it and download it again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
