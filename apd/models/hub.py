"""Classifiers on the Hugging Face hub, or on what HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path

from apd.errors import UserError, one_line
from apd.models.description import CONFIG, HUB
from apd.models.saved import PROMPTS


def download(repository: str, revision: str | None = None) -> Path:
    """The folder with the files of ``USER/NAME``, fetched or found in the hub's cache.

    Args:
        revision: a branch, tag or commit; default: the main branch.

    Raises:
        UserError: the hub's client is not installed, or there is no such repository or revision.
    """
    client = _client(f"{HUB}{repository}")
    try:
        found = client.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, PROMPTS]
        )
    except Exception as error:  # whatever the network and its libraries raise
        raise UserError(f"{HUB}{repository} could not be downloaded ({one_line(error)})") from error
    return Path(found)


def push(folder: str | Path, repository: str) -> str:
    """Upload what ``save`` wrote as ``USER/NAME``, which is made if need be; returns its address.

    Who you are is told to the hub's client by ``hf auth login`` or HF_TOKEN.

    Raises:
        UserError: the hub's client is not installed, or the hub refuses.
    """
    client = _client(f"--push {repository}")
    try:
        address = client.create_repo(repository, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message="apd-clip")
    except Exception as error:
        raise UserError(f"{repository} could not be written ({one_line(error)})") from error
    return str(address)


def _client(wanted: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{wanted} needs the hub's client ({one_line(error)}): pip install 'apd-clip[hf]'"
        ) from error
    return huggingface_hub
