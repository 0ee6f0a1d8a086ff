"""Files of Hugging Face data sets, each at one commit, so that its content is fixed."""

from __future__ import annotations

import re
from pathlib import Path

from interp.core.errors import InterpError

SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)@([^/]+)/(.+)")


def parse_address(address: str) -> tuple[str, str, str]:
    """The data set, commit and file of hf://owner/name@commit/file.

    Raises:
        InterpError: the address has another form.
    """
    if (found := _ADDRESS.fullmatch(address)) is None:
        do = "write hf://owner/name@commit/file, with all 40 digits of the commit"
        raise InterpError(address, "not the address of a file at a commit", do)
    name, revision, file = found.groups()
    return name, revision, file


def dataset_file(name: str, file: str, revision: str) -> Path:
    """A file of a data set at one commit, downloaded once into the Hugging Face cache.

    Raises:
        InterpError: an incomplete commit, no such file, or no network and no copy in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InterpError(
            f"data set {name}", f"revision {revision!r}", "give all 40 digits of a commit"
        )
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise InterpError(
            f"{file} of data set {name} at {revision[:8]}",
            "no network, or HF_HUB_OFFLINE is set, and no copy of the file in the Hugging Face "
            f"cache ({type(error).__name__})",
            "fetch it once, with network and access rights, or read a copy from a path",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InterpError(
            f"{file} of data set {name} at {revision[:8]}",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "check the name, file, commit, network and access rights",
        ) from error
