"""Models by their id on the Hugging Face Hub: of their files, those that bitconv reads, in huggingface_hub's cache."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitconv.checkpoint import mlx, refusals, weight_files
from bitconv.checkpoint.directory import needed_shards, read_shards
from bitconv.checkpoint.pooling import MODULES, pooling_config
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.json_files import read_json
from bitconv.tokenizer.files import FILES as TOKENIZER_FILES

# NAMESPACE/NAME, by the Hub's rules. What can only be a path, such as ./DIR, DIR/ and /DIR, does not keep them.
_ID = re.compile(r"(?!.*(--|\.\.))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b(?<!\.git)", re.ASCII)
# What can stand in a header.
_TOKEN = re.compile(r"[!-~]+")

_CONFIG = "config.json"
_FILES = (_CONFIG, "README.md", *TOKENIZER_FILES)


def local_model(
    model: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    *,
    accept: Callable[[Mapping[str, Any], Path], object] = lambda config, file: None,
) -> Path:
    """The directory of a model: `model` if there is such a path, else the files of the model with that id on the Hub.

    revision: a branch, tag or commit of the Hub's; None for its main branch. token: to read a private or gated model;
    None for huggingface_hub's own (HF_TOKEN, or what `hf auth login` stored). accept: called with config.json and its
    path before any weights are downloaded, to raise where they would be of no use. A path that is neither there nor an
    id is returned as it is.

    Where the Hub is, where the cache is, whether it may be asked and whether progress is shown on stderr is as for
    every user of huggingface_hub: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_HUB_DISABLE_PROGRESS_BARS. The cache is
    not taken in place of a Hub that cannot be reached, unless HF_HUB_OFFLINE says so. Files that are in it are not
    downloaded again, so that a download that was broken off goes on with the next file.

    BitconvError where there is no such model or revision, where it may not be read, or a file cannot be had or stored.
    """
    path = Path(model)
    model_id = os.fspath(model)
    if path.exists() or not _ID.fullmatch(model_id):
        if revision is not None:
            raise BitconvError(
                f"is no model on the Hub, and only such a model has a {option('revision')}",
                code=Code.OPTIONS,
                file=path,
            )
        return path
    if revision == "":
        raise BitconvError(f"{option('revision')}: is empty", code=Code.USAGE)
    if token is not None and not _TOKEN.fullmatch(token):
        raise BitconvError(f"{option('token')}: is empty, or has characters that no token has", code=Code.USAGE)
    return _download(model_id, revision, token, accept)


def cached_revision(directory: Path) -> tuple[str, str] | None:
    """(NAMESPACE/NAME, COMMIT) of a directory in the Hub's cache, models--NAMESPACE--NAME/snapshots/COMMIT."""
    directory = directory.resolve()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/"), directory.name
    return None


def model_name(directory: Path) -> str:
    """The name of a model by its directory's, or the Hub's name for it where the directory is one of its cache."""
    cached = cached_revision(directory)
    return cached[0].rpartition("/")[2] if cached else directory.resolve().name


def _download(
    model_id: str, revision: str | None, token: str | None, accept: Callable[[Mapping[str, Any], Path], object]
) -> Path:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars

    inside = ""
    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)  # it logs and warns of every retry, and of what ends in an error anyway
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Not enough free disk space")
            if not huggingface_hub.is_offline_mode():
                # Its errors are final. In those below, huggingface_hub would take what the cache holds instead.
                huggingface_hub.model_info(model_id, revision=revision, token=token, timeout=HF_HUB_ETAG_TIMEOUT)
            # This also caches the list of the model's files, by which an incomplete model is known offline too.
            with disable_progress_bars():  # this one would show on whatever stderr is
                snapshot = Path(
                    huggingface_hub.snapshot_download(model_id, revision=revision, token=token, allow_patterns=_CONFIG)
                )
            listed = {entry.path for entry in huggingface_hub.get_cached_repo_tree(model_id, revision=snapshot.name)}
            # One at a time, in this thread, which an interrupt stops at once; a large file is split by hf_xet.
            for file in _choose(model_id, listed, snapshot, accept):
                inside = f"{file}: "
                huggingface_hub.hf_hub_download(model_id, file, revision=snapshot.name, token=token)
    except BitconvError:
        raise
    except Exception as error:  # httpx's, httpx2's (since 2.0) and hf_xet's too
        cause, way_out = _explain(error, model_id, revision)
        raise BitconvError(f"{inside}{cause}", code=Code.HUB, file=model_id, way_out=way_out) from None
    finally:
        set_verbosity(verbosity)
    return snapshot


def _choose(
    model_id: str, listed: set[str], snapshot: Path, accept: Callable[[Mapping[str, Any], Path], object]
) -> Iterator[str]:
    """The files to download, of those that the model has. The shards are known when their index is there."""
    weights = weight_files.choose(listed, model_id)
    if weights is None or _CONFIG not in listed:
        refusals.check_names([name for name in listed if "/" not in name], Path(model_id))
        missing = f"no {_CONFIG}" if weights else f"none of {', '.join(weight_files.WEIGHT_FILES)}"
        hint = "; it holds GGUF files" if any(name.endswith(".gguf") for name in listed) else ""
        raise BitconvError(f"is no checkpoint: holds {missing}{hint}", code=Code.INCOMPLETE, file=model_id)
    config = read_json(snapshot / _CONFIG, snapshot)
    config = mlx.without_two_bits(config)
    refusals.check_checkpoint(config, (), snapshot)  # what config.json tells needs no weights
    accept(config, snapshot / _CONFIG)
    yield from sorted(name for name in listed if any(fnmatchcase(name, pattern) for pattern in _FILES))
    if MODULES in listed:  # of an embedding model
        yield MODULES
        pooling = pooling_config(snapshot)
        if pooling not in listed:
            raise BitconvError(f"{pooling}: missing, though {MODULES} names it", code=Code.INCOMPLETE, file=model_id)
        yield pooling
    yield from weights.files
    if weights.index is not None:
        yield weights.index
        shards = {shard.name for shard in needed_shards(read_shards(snapshot / weights.index), listed)}
        if not shards <= listed:
            cause = f"{min(shards - listed)}: missing, though {weights.index} names it"
            raise BitconvError(cause, code=Code.INCOMPLETE, file=model_id)
        yield from sorted(shards)


def _explain(error: Exception, model_id: str, revision: str | None) -> tuple[str, str | None]:
    """The cause and the way out."""
    from huggingface_hub import constants, errors

    offline = constants.is_offline_mode()
    if isinstance(error, errors.GatedRepoError):
        terms = f"{constants.ENDPOINT}/{model_id}"
        token = option("token")
        return "is gated", f"accept its terms at {terms}, then pass {token} (or set HF_TOKEN) of the account that did"
    if isinstance(error, errors.RepositoryNotFoundError):
        way_out = f"if it is private, pass {option('token')} or set HF_TOKEN"
        return "no such directory, and no such model on the Hub", way_out
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision}", None
    if isinstance(error, errors.CachedRepoTreeNotFoundError):
        way_out = "unset HF_HUB_OFFLINE once, or name the directory"
        return f"the cache in {constants.HF_HUB_CACHE} does not say which files it has", way_out
    if offline and isinstance(error, errors.LocalEntryNotFoundError):
        return f"not in the cache in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it", (
            "unset it, or name a directory"
        )
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            way_out = f"pass another with {option('token')} or HF_TOKEN"
            return "the Hub does not know this token", way_out
        reason = error.server_message or error.response.reason_phrase
        return f"the Hub refuses it with status {status}: {reason}", None
    if isinstance(error, UserWarning):  # before a download, of a disk too small for it
        return f"cannot be stored in {constants.HF_HUB_CACHE}: {error}", None
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        return f"cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}", None
    cause = re.sub(r"\?\S+|Bearer .*", "", str(error))  # a URL's signature, a header's token
    cause = f"cannot be downloaded from {constants.ENDPOINT}: {type(error).__name__}: {cause}"
    return cause, "run it again to go on, or with HF_HUB_OFFLINE=1 to take what is in the cache"
