"""Models by their id on the Hugging Face Hub: of their files, those that bitconv reads, in huggingface_hub's cache."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitconv.checkpoint import mlx, refusals, weight_files
from bitconv.checkpoint.directory import needed_shards, read_shards
from bitconv.checkpoint.hub_ranges import PartialFiles
from bitconv.checkpoint.pooling import MODULES, pooling_config
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import Fetch
from bitconv.system.json_files import read_json
from bitconv.tokenizer.files import FILES as TOKENIZER_FILES

# NAMESPACE/NAME, by the Hub's rules. What can only be a path, such as ./DIR, DIR/ and /DIR, does not keep them.
_ID = re.compile(r"(?!.*(--|\.\.))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b(?<!\.git)", re.ASCII)
URI = "hf://"
# What a GGUF file's or a checkpoint's header can be read of alone.
_SAMPLED = ".safetensors"
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
    if not on_the_hub(model):
        if revision is not None:
            raise BitconvError(
                f"is no model on the Hub, and only such a model has a {option('revision')}",
                code=Code.OPTIONS,
                file=model,
            )
        return Path(model)
    _check_asked(revision, token)
    return _download(os.fspath(model), revision, token, accept)[0]


@contextlib.contextmanager
def sampled_model(
    model: str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    *,
    accept: Callable[[Mapping[str, Any], Path], object] = lambda config, file: None,
) -> Iterator[tuple[Path, Fetch | None]]:
    """As `local_model`, but safetensors files that are not in the cache stay on the Hub.

    They then stand in a temporary directory, in full size and with holes. The function that comes with it has bytes
    there before they are read; it is None where all is there.
    """
    if not on_the_hub(model):
        yield local_model(model, revision, token), None
        return
    _check_asked(revision, token)
    model_id = os.fspath(model)
    snapshot, there, left = _download(model_id, revision, token, accept, sampled=True)
    if not left:
        yield snapshot, None
        return
    with tempfile.TemporaryDirectory(prefix="bitconv-") as temporary, _quiet():
        # By the names that the cache has, which tell the model and its commit.
        directory = Path(temporary, *snapshot.parts[-3:])
        files = PartialFiles(directory, _filesystem(token), f"{model_id}@{snapshot.name}/")
        for name in there:
            files.copy(snapshot / name, name)
        for name, size in left.items():
            files.add(name, size)
        with _named_as_on_the_hub(directory, f"{URI}{model_id}"):
            yield directory, _fetching(files, model_id, revision)


@contextlib.contextmanager
def sampled_file(uri: str, revision: str | None = None, token: str | None = None) -> Iterator[tuple[Path, Fetch]]:
    """The same for one file, by hf://OWNER/NAME/FILE or hf://OWNER/NAME@REVISION/FILE."""
    _check_asked(revision, token)
    owner, _, rest = uri.removeprefix(URI).partition("/")
    named, _, name = rest.partition("/")
    repository, _, stated = named.partition("@")
    model_id = f"{owner}/{repository}"
    if not _ID.fullmatch(model_id) or not {"", ".", ".."}.isdisjoint(name.split("/")) or (revision and stated):
        raise BitconvError(f"{uri}: expected {URI}OWNER/NAME/FILE", code=Code.USAGE)
    revision = revision or stated or None
    with tempfile.TemporaryDirectory(prefix="bitconv-") as temporary, _quiet():
        import huggingface_hub

        filesystem = _filesystem(token)
        try:
            commit = huggingface_hub.model_info(model_id, revision=revision, token=token).sha
            prefix = f"{model_id}@{commit}/"
            size = filesystem.info(prefix + name)["size"]
        except FileNotFoundError:
            raise BitconvError(f"has no file {name}", code=Code.NOT_FOUND, file=model_id) from None
        except Exception as error:
            raise _explained(error, model_id, revision, f"{name}: ") from None
        files = PartialFiles(Path(temporary), filesystem, prefix)
        with _named_as_on_the_hub(Path(temporary), f"{URI}{model_id}"):
            yield files.add(name, size), _fetching(files, model_id, revision)


@contextlib.contextmanager
def _named_as_on_the_hub(directory: Path, uri: str) -> Iterator[None]:
    """Errors name what the user has named, not where it stands for a while."""
    try:
        yield
    except BitconvError as error:
        if error.file is None:
            raise
        raise error.at(error.file.replace(str(directory), uri)) from None


def on_the_hub(model: str | os.PathLike[str]) -> bool:
    """Whether it is an id, and no path that is there."""
    return not Path(model).exists() and _ID.fullmatch(os.fspath(model)) is not None


def _check_asked(revision: str | None, token: str | None) -> None:
    if revision == "":
        raise BitconvError(f"{option('revision')}: is empty", code=Code.USAGE)
    if token is not None and not _TOKEN.fullmatch(token):
        raise BitconvError(f"{option('token')}: is empty, or has characters that no token has", code=Code.USAGE)


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
    model_id: str,
    revision: str | None,
    token: str | None,
    accept: Callable[[Mapping[str, Any], Path], object],
    *,
    sampled: bool = False,
) -> tuple[Path, list[str], dict[str, int]]:
    """The model's directory in the cache, its files there, and those that were left on the Hub with their bytes.

    sampled: safetensors files are, unless all of them are in the cache.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.utils.tqdm import disable_progress_bars

    inside = ""
    there, left = [_CONFIG], dict[str, int]()
    try:
        with _quiet():
            if not huggingface_hub.is_offline_mode():
                # Its errors are final. In those below, huggingface_hub would take what the cache holds instead.
                huggingface_hub.model_info(model_id, revision=revision, token=token, timeout=HF_HUB_ETAG_TIMEOUT)
            # This also caches the list of the model's files, by which an incomplete model is known offline too.
            with disable_progress_bars():  # this one would show on whatever stderr is
                snapshot = Path(
                    huggingface_hub.snapshot_download(model_id, revision=revision, token=token, allow_patterns=_CONFIG)
                )
            tree = huggingface_hub.get_cached_repo_tree(model_id, revision=snapshot.name)
            sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size")}
            # One at a time, in this thread, which an interrupt stops at once; a large file is split by hf_xet.
            for file in _choose(model_id, set(sizes), snapshot, accept):
                if sampled and file.endswith(_SAMPLED) and not huggingface_hub.is_offline_mode():
                    left[file] = sizes[file]
                    continue
                inside = f"{file}: "
                huggingface_hub.hf_hub_download(model_id, file, revision=snapshot.name, token=token)
                there.append(file)
    except BitconvError:
        raise
    except Exception as error:  # httpx's, httpx2's (since 2.0) and hf_xet's too
        raise _explained(error, model_id, revision, inside) from None
    return snapshot, there, {} if all((snapshot / file).exists() for file in left) else left


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub logs and warns of every retry, and of what ends in an error anyway."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Not enough free disk space")
            yield
    finally:
        set_verbosity(verbosity)


def _fetching(files: PartialFiles, model_id: str, revision: str | None) -> Fetch:
    """Its fetch, whose failures are told in one line."""

    def fetch(file: Path, start: int, end: int) -> None:
        try:
            files.fetch(file, start, end)
        except BitconvError:
            raise
        except Exception as error:
            raise _explained(error, model_id, revision, f"{file.name}: ") from None

    return fetch


def _filesystem(token: str | None) -> Any:
    from huggingface_hub import HfFileSystem, constants

    return HfFileSystem(endpoint=constants.ENDPOINT, token=token, skip_instance_cache=True)


def _explained(error: Exception, model_id: str, revision: str | None, inside: str) -> BitconvError:
    """inside: which of the model's files it is about."""
    cause, way_out = _explain(error, model_id, revision)
    return BitconvError(f"{inside}{cause}", code=Code.HUB, file=model_id, way_out=way_out)


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
