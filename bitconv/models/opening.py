"""A checkpoint opened by what users call it: a directory, or an id on the Hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.hub import local_model, sampled_model
from bitconv.models.families import check_class


@contextlib.contextmanager
def open_checkpoint(
    model: str | os.PathLike[str], revision: str | None = None, token: str | None = None, *, sampled: bool = False
) -> Iterator[Checkpoint]:
    """The checkpoint of a model, whose weights are downloaded after its class is known to be one of a family.

    Args:
        model: A directory, or an id on the Hub.
        revision: As `local_model` has it.
        token: As `local_model` has it.
        sampled: Of weights on the Hub only what is read is fetched, and not kept; see `Checkpoint.sampled`.

    Raises:
        BitconvError: As `local_model` and `Checkpoint` have it.
    """
    with contextlib.ExitStack() as stack:
        if sampled:
            path, fetch = stack.enter_context(sampled_model(model, revision, token, accept=check_class))
        else:
            path, fetch = local_model(model, revision, token, accept=check_class), None
        yield stack.enter_context(Checkpoint(path, fetch))
