"""Files of released weights: from the Hugging Face hub, from a URL, or from where they lie already."""

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType

from eqx_vit.files import cache_folder
from eqx_vit.weights.read import find_in_folder, read_index

_HUB = "hf-hub:"


def is_remote(place: str) -> bool:
    """Whether a place is on a hub or the web, and not on this machine."""
    return place.startswith((_HUB, "https://", "http://"))


def fetch(place: str, file: str, *, sha256: str | None = None) -> Path:
    """A file on this machine, downloaded if it has to be.

    **Arguments:** `place` is `hf-hub:owner/name` (or `...@revision`), the URL of the file itself, a local folder or a
    local file; `file` the name within a repository or folder, and the one that a download from a URL gets. Where a
    repository or folder holds a `.safetensors` file in parts, their index comes back.

    **Raises:** `FileNotFoundError` that says what to do for a file that is not there and cannot be downloaded;
    `ValueError` for a file that `sha256` does not fit; `ImportError` without huggingface_hub.
    """
    if place.startswith(_HUB):
        path = _from_hub(place.removeprefix(_HUB), file)
    elif is_remote(place):
        path = _from_url(place, file, sha256)
    else:
        path = Path(place).expanduser()
        path = find_in_folder(path, file) if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
    if sha256 is not None and _digest(path) != sha256:
        raise ValueError(f"{path} is damaged or another file: its sha256 is not {sha256}. Delete it and try again")
    return path


def _from_hub(name: str, file: str) -> Path:
    hub = _huggingface_hub()
    repository, _, revision = name.partition("@")
    absent = (OSError, hub.errors.EntryNotFoundError)  # every error of the network is an OSError

    def download(file: str) -> Path:
        return Path(hub.hf_hub_download(repository, file, revision=revision or None))

    def download_parts() -> Path | None:
        with contextlib.suppress(*absent):
            index = download(f"{file}.index.json")
            for part in read_index(index):
                download(part)
            return index
        return None

    try:
        return download(file)
    except hub.errors.HFValidationError as error:
        raise ValueError(f"{_HUB}{name} is not the name of a repository: {error}") from error
    except absent as error:
        index = download_parts() if file.endswith(".safetensors") else None
        if index is not None:
            return index
        raise FileNotFoundError(
            f"{file} of {_HUB}{name} is not in the cache {hub.constants.HF_HUB_CACHE} and cannot be downloaded "
            f"({_first_line(error)}). Where the hub can be reached, run: hf download {repository} {file}; "
            "then copy the cache here, or give the file's own path as pretrained="
        ) from error


def _from_url(url: str, name: str, sha256: str | None) -> Path:
    """The file of a URL from our cache, which a download enters whole or not at all."""
    path = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.exists():
        return path
    hub = _huggingface_hub()
    manual = f"download {url} elsewhere and give the file's own path as pretrained="
    if hub.is_offline_mode():
        raise FileNotFoundError(f"{url} is not in the cache {path.parent} and HF_HUB_OFFLINE is set: {manual}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}.tmp")
    try:
        with urllib.request.urlopen(url, timeout=30) as response, open(unfinished, "wb") as out:
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise OSError("it is a web page, perhaps one that wants a confirmation first")
            length = int(response.headers.get("Content-Length") or 0)
            with hub.utils.tqdm(total=length or None, unit="B", unit_scale=True, desc=name) as bar:
                while block := response.read(2**20):
                    out.write(block)
                    bar.update(len(block))
        if length and unfinished.stat().st_size != length:
            raise OSError(f"the connection ended after {unfinished.stat().st_size} of {length} bytes")
        if sha256 is not None and _digest(unfinished) != sha256:
            raise ValueError(f"{url} is not the file that was released: its sha256 is not {sha256}")
        os.replace(unfinished, path)
    except OSError as error:
        raise FileNotFoundError(f"{url} cannot be downloaded ({_first_line(error)}): {manual}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
    return path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ImportError(
            "released weights need huggingface_hub: pip install 'eqx_vit[weights]'", name="huggingface_hub"
        ) from error
    return huggingface_hub
