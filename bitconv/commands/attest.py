"""Where a file comes from, in a form that travels: an in-toto Statement, which anybody who has the model can check.

A conversion is deterministic, so a statement of its sources and options says which bytes must come out. The statement
is in-toto's Statement v1 with SLSA's provenance v1 as its predicate; signing it is left to the tools made for that.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitconv import __version__
from bitconv.checkpoint.directory import Checkpoint
from bitconv.checkpoint.hub import cached_revision, model_name
from bitconv.commands.convert import convert
from bitconv.commands.verify import verify
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import open_input
from bitconv.system.json_files import read_json
from bitconv.system.output import check_output, replacing
from bitconv.system.rawio import read_at_most, write_at

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# What was done, in the predicate's words; the number changes when the same options come to mean other bytes.
BUILD_TYPE = "urn:bitconv:convert:v1"
# convert's parameters that decide the bytes; of kernel_config the text in place of the path.
OPTIONS = frozenset(
    {
        "type",
        "runner",
        "embed_type",
        "head_type",
        "fallback",
        "tensor_types",
        "kernel_config",
        "scale_in_blocks",
        "scale_convention",
        "ternarize",
        "group",
        "pre",
    }
)
_PIECE = 1 << 22


def statement_path(output: Path) -> Path:
    return output.with_name(output.name + ".intoto.json")


def manifest_path(output: Path) -> Path:
    return output.with_name(output.name + ".sha256")


def check_outputs(output: Path, *, force: bool) -> None:
    """Refuse before the work what attest() could not write after it."""
    for path in (statement_path(output), manifest_path(output)):
        check_output(path, force=force)


def attest(output: Path, checkpoint: Checkpoint, options: Mapping[str, Any], threads: int | None) -> None:
    """Write the statement of a converted file, and a manifest for `sha256sum -c`, beside it.

    Args:
        output: The file that was written.
        checkpoint: What it was made of.
        options: All of convert's that decide the bytes, by their names, with the values that were taken.
        threads: For the verification that the digest of trits and scales comes from.

    Raises:
        BitconvError: The file is not right.
    """
    verdict = verify(output, threads=threads)
    if not verdict.right or verdict.digests is None:
        raise BitconvError("is not right, and is not attested", code=Code.FAULTY, file=output)
    repository = cached_revision(checkpoint.path)
    found = sha256(output)
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": output.name, "digest": {"sha256": found}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(options),
                "internalParameters": {
                    "model_name": model_name(checkpoint.path),
                    "trits": verdict.digests.trits,
                    "trits_and_scales": verdict.digests.trits_and_scales,
                },
                "resolvedDependencies": [
                    {
                        "name": file.relative_to(checkpoint.path).as_posix(),
                        **({"uri": "pkg:huggingface/{}@{}".format(*repository)} if repository else {}),
                        "digest": {"sha256": sha256(file)},
                    }
                    for file in checkpoint.files
                ],
            },
            "runDetails": {"builder": {"id": "urn:bitconv", "version": {"bitconv": __version__}}},
        },
    }
    for path, text in (
        (statement_path(output), json.dumps(statement, indent=2) + "\n"),
        (manifest_path(output), f"{found}  {output.name}\n"),
    ):
        data = text.encode()
        with replacing(path, len(data), force=True) as descriptor:
            write_at(descriptor, data, 0)


def made_again(file: Path, attestation: Path, checkpoint: Checkpoint, threads: int | None) -> Iterator[str]:
    """What a statement says that is not so, a line each: of the file, of the model's files, of the bytes made again.

    Raises:
        BitconvError: It is no statement of a conversion, or the model cannot be converted with its options.
    """
    subject, options, sources, version, name = _read(attestation)
    found = sha256(file)
    if found != subject:
        yield f"its SHA-256 is {found}, the attestation's is {subject}: the attestation is of another file"
    differing = [name for name, digest in sources.items() if _sha256_of(checkpoint.path / name) != digest]
    if differing:
        yield f"{len(differing)} of the {len(sources)} files that it was made of are others here, {differing[0]} first"
        return
    with tempfile.TemporaryDirectory(prefix="bitconv-") as directory:
        again = Path(directory, "again.gguf")
        if options["kernel_config"] is not None:
            config = Path(directory, "kernel_config.ini")
            config.write_text(str(options["kernel_config"]), encoding="utf-8")
            options["kernel_config"] = config
        try:
            convert(checkpoint.path, again, threads=threads, **options)
        except (AttributeError, TypeError, ValueError):
            raise _no_statement(attestation) from None
        if sha256(again) != found:
            yield "made again with the options of the attestation, it has other bytes" + "".join(
                f"; {what} was {then} and is {now} here"
                for what, then, now in (
                    ("bitconv", version, __version__),
                    ("the model's name, which is its directory's,", name, model_name(checkpoint.path)),
                )
                if then != now
            )


def _read(attestation: Path) -> tuple[str, dict[str, Any], dict[str, str], str, str]:
    """SHA-256 of the file, options, SHA-256 of each source by name, bitconv's version, the model's name."""
    statement = read_json(attestation)
    try:
        if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
            raise ValueError
        definition = statement["predicate"]["buildDefinition"]
        if definition["buildType"] != BUILD_TYPE:
            raise ValueError
        (subject,) = statement["subject"]
        sources = {source["name"]: source["digest"]["sha256"] for source in definition["resolvedDependencies"]}
        options = dict(definition["externalParameters"])
        version = statement["predicate"]["runDetails"]["builder"]["version"]["bitconv"]
        # Names of files in the model directory, and nothing else: a statement may come from a stranger.
        if not sources or any(Path(name).is_absolute() or ".." in Path(name).parts for name in sources):
            raise ValueError
        if options.keys() != OPTIONS:
            raise ValueError
        name = str(definition["internalParameters"]["model_name"])
        return str(subject["digest"]["sha256"]), options, sources, str(version), name
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _no_statement(attestation) from None


def _no_statement(attestation: Path) -> BitconvError:
    return BitconvError(
        "is no statement of a conversion by bitconv",
        code=Code.MALFORMED,
        file=attestation,
        way_out=f"name the .intoto.json file that {option('attest')} makes convert write",
    )


def _sha256_of(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    descriptor = open_input(path)
    try:
        digest, at = hashlib.sha256(), 0
        while piece := read_at_most(descriptor, _PIECE, at):
            digest.update(piece)
            at += len(piece)
        return digest.hexdigest()
    finally:
        os.close(descriptor)
