"""Sharing a bundle: the verb `push`, through huggingface_hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_dppmg.bundle import Bundle
from recbole_dppmg.errors import BundleError, ConfigError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"push: {message}; see push --help")


def push(argv: Sequence[str]) -> int:
    """Upload a bundle to a model repository and print its address.

    Raises:
        BundleError, ConfigError: see `push_to_hub`.
    """
    parser = _Parser(prog="run_dppmg.py push", description="Upload a bundle to the Hugging Face hub.")
    parser.add_argument("--bundle", type=Path, default=Path("outputs/latest/bundle"), help="its folder [%(default)s]")
    parser.add_argument("--repo", required=True, help="owner/name of the repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it private")
    given = parser.parse_args(argv)
    print(push_to_hub(given.bundle, given.repo, given.private))
    return 0


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> str:
    """Upload a bundle, after a check that it is whole; returns the address of the commit.

    It names users by their ids and items with their texts and images: see that you may share them.

    Args:
        repository: `owner/name`; made if it is not there, then `private` or not.

    Raises:
        BundleError: the folder is no bundle, or the hub refuses it.
        ConfigError: the repository's name is not one.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give that of a bundle")
    Bundle.from_pretrained(folder)
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message="A bundle of recbole-dppmg"
        )
    except HFValidationError as error:
        raise ConfigError(f"--repo={repository}: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise BundleError(f"{folder}: not uploaded to {repository} ({error}); log in with `hf auth login`") from error
    return str(done.commit_url)
