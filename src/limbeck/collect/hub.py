"""Data sets on the Hugging Face Hub, by the Parquet files that they are kept in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.files import full_disk_named

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hub:"
_SOURCE = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::([^:]+))?")
_SHARD = re.compile(r"(-\d+-of-\d+(-\w+)?|(^|[-_./])\d+)$")
_CONVERTED = "refs/convert/parquet"


def parquet_files(source: str) -> Iterator[tuple[str, Path]]:
    """The Parquet files of hub:OWNER/NAME[@REVISION][:SPLIT], each downloaded when asked for.

    Gives (hub:OWNER/NAME/file, local path), in the order of their names, all of one commit. They
    come from REVISION, a branch, tag or commit; without it from the main branch, or from the hub's
    own conversion where that has none. SPLIT is train unless written, and may be FOLDER/SPLIT where
    several folders have one. Raises InputError for what the source gets wrong, ServiceError for a
    hub that fails.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise InputError(f"{source}: write hub:OWNER/NAME, with @REVISION or :SPLIT behind it.")
    repo, pinned, split = match.groups()
    try:
        from huggingface_hub import HfApi, constants
    except ImportError:
        raise InputError(f"{source} needs a package: pip install huggingface_hub") from None
    api, cache = HfApi(), Path(constants.HF_HUB_CACHE)
    with _hub_errors(source):
        commit, files = _listing(api, source, repo, pinned)
    for file in _of_split(source, repo, files, split):
        with _hub_errors(source), full_disk_named(cache):
            path = api.hf_hub_download(repo, file, repo_type="dataset", revision=commit)
        yield f"{PREFIX}{repo}/{file}", Path(path)


def _listing(
    api: HfApi, source: str, repo: str, pinned: str | None
) -> tuple[str | None, list[str]]:
    """The commit to read and its Parquet files."""
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in (pinned,) if pinned else (None, _CONVERTED):
        try:
            commit = api.dataset_info(repo, revision=revision).sha
        except RevisionNotFoundError:
            if pinned:
                raise InputError(f"{PREFIX}{repo} has no revision {pinned!r}") from None
            continue
        every = api.list_repo_files(repo, repo_type="dataset", revision=commit)
        files = sorted(file for file in every if file.endswith(".parquet"))
        if files:
            return commit, files
    raise InputError(
        f"{source} has no Parquet files, and the hub made none of it; "
        "download it and name one of its files as .jsonl or .csv."
    )


def _of_split(source: str, repo: str, files: Sequence[str], split: str | None) -> list[str]:
    """The files of one split; their names less shard numbers say which they belong to."""
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        splits[_SHARD.sub("", file.removesuffix(".parquet"))].append(file)
    if split is None and len(splits) == 1:
        return list(files)
    name = split or "train"
    found = [one for one in splits if one == name or one.endswith(f"/{name}")]
    if len(found) == 1:
        return splits[found[0]]
    problem = f"{name!r} is one of several" if found else f"no split {name!r}"
    shown = found or list(splits)
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    raise InputError(
        f"{source}: {problem} among {', '.join(shown[:8])}{more}; "
        f"write which, as in {PREFIX}{repo}:{shown[0]}"
    )


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn what the hub's client raises, which has no common class, into errors of ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except LimbeckError:
        raise
    except HFValidationError as error:
        raise InputError(f"{source}: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise InputError(
                f"{source}: the hub answers {status}. Either there is no such data set, or it is "
                "private or gated: check the name, or log in with: hf auth login"
            ) from None
        wrong = InputError if 400 <= status < 500 and status != 429 else ServiceError
        raise wrong(f"{source}: the hub answers {status}: {_first_line(error)}") from None
    except Exception as error:
        raise ServiceError(f"{source}: the hub cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
