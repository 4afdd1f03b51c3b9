"""Classifiers on the Hugging Face hub, or on what HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path

from apd.errors import UserError, one_line
from apd.models.description import CONFIG, HUB
from apd.models.saved import PROMPTS


def download(repository: str, revision: str | None = None) -> Path:
    """Download the files of ``USER/NAME``, unless the hub's cache has them; returns their folder.

    Args:
        revision: a branch, tag or commit; default: the main branch.

    Raises:
        UserError: the hub's client is not installed, or there is no such repository or revision.
    """
    client = _client(f"{HUB}{repository}")
    try:
        folder = client.snapshot_download(
            repository, revision=revision, allow_patterns=[CONFIG, PROMPTS]
        )
    except Exception as error:  # the libraries of the network raise many kinds
        raise UserError(f"{HUB}{repository} could not be downloaded ({one_line(error)})") from error
    return Path(folder)


def push(folder: str | Path, repository: str) -> str:
    """Upload a folder that ``save`` wrote to ``USER/NAME``, which is created if it is not there.

    The hub's client reads its credentials from ``hf auth login`` or HF_TOKEN.

    Returns:
        The repository's address.

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


def _client(purpose: str):
    """The hub's client; UserError, which names the ``purpose``, if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the hub's client ({one_line(error)}): pip install 'apd-clip[hf]'"
        ) from error
    return huggingface_hub
