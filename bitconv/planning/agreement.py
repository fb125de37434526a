"""Whether the metadata of a file is what bitconv would write for a checkpoint, or what runners take for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitconv.checkpoint.directory import Checkpoint
from bitconv.gguf import Metadata, Value
from bitconv.gguf.values import same_value
from bitconv.models.hyperparameters import metadata_keys
from bitconv.models.weights import Model
from bitconv.packed.inspection import Inspection
from bitconv.packed.keys import Finding, Level, find_key, is_idle, name_findings
from bitconv.planning.metadata import build_metadata
from bitconv.tokenizer.notes import tokenizer_notes
from bitconv.tokenizer.special import runner_default


@dataclass
class Agreement:
    """What is to be said of the metadata beside the checkpoint.

    architecture: the fault of another graph, beside which nothing else is compared. findings: in place of those that
    the file has alone. lost: what of the checkpoint's tokenizer no file can hold.
    """

    architecture: str | None = None
    findings: list[Finding] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        faults = [f"{f.key} {f.text}" for f in self.findings if f.level is not Level.WARNING]
        return faults if self.architecture is None else [self.architecture, *faults]

    def say(self, key: str, fault: str | None) -> None:
        """In place of what was said of the key before: a fault, or where it is None nothing."""
        self.findings = [finding for finding in self.findings if finding.key != key]
        if fault is not None:
            self.findings.append(Finding(key, fault))


def compare_metadata(
    metadata: Metadata, inspection: Inspection, checkpoint: Checkpoint, model: Model, pre: str | None
) -> Agreement:
    """All that a runner computes by must be what bitconv would write, or what runners take for it.

    pre: the name of the pre-tokenizer, in place of the one recognised from the checkpoint.
    """
    wanted_architecture = model.family.architecture
    if wanted_architecture is not inspection.architecture:
        said = f"is {inspection.architecture.graph}, the checkpoint's is {wanted_architecture.graph}"
        return Agreement(f"the architecture {said}", list(inspection.metadata))
    wanted = build_metadata(checkpoint, model, 0, pre)
    lost = tokenizer_notes(checkpoint.path, model.config, wanted)
    # Under the file's name for the architecture, of which there may be an older one.
    name = inspection.architecture_name
    prefix = f"{wanted_architecture.name}."
    wanted = {
        f"{name}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: value for key, value in wanted.items()
    }
    sizes = metadata_keys(name)
    found = {key: value for key, value in metadata.items() if key not in sizes}
    found |= inspection.sizes.metadata(name)
    agreement = Agreement(None, list(inspection.metadata), lost)
    faulty = {finding.key for finding in inspection.metadata if finding.level is not Level.WARNING}
    for key in sorted(found.keys() | wanted.keys()):
        if key not in faulty and not _is_uncompared(key, found, name):
            agreement.say(key, _difference(key, found, wanted, name))
    if "general.name" not in faulty and any(name_findings(metadata)) and not any(name_findings(wanted)):
        agreement.say("general.name", "has runners tokenize otherwise than by the checkpoint's name")
    return agreement


def _is_uncompared(key: str, found: Metadata, architecture: str) -> bool:
    """Keys by which no runner computes, with this vocabulary; and those that depend on the file's types."""
    unused = {"gpt2": "tokenizer.ggml.scores", "llama": "tokenizer.ggml.merges"}
    return (
        is_idle(key, architecture)
        or key in ("general.architecture", "general.file_type", "general.alignment")
        or key.startswith("split.")
        or key == unused.get(str(found.get("tokenizer.ggml.model")))
    )


def _difference(key: str, found: Metadata, wanted: Metadata, architecture: str) -> str | None:
    entry = find_key(key, architecture)
    usual = None if entry is None else entry.usual

    def computed(metadata: Metadata) -> Value | None:
        value = metadata.get(key, runner_default(metadata, key))
        return usual if value is None else value

    has, needs = computed(found), computed(wanted)
    if needs is None:
        return None if has is None else "is a key that the checkpoint does not ask for"
    if has is not None and same_value(has, needs):
        return None
    missing = "" if key in found else "is missing, and what runners take for it "
    return f"{missing}is not what the checkpoint says"
