"""Checkpoints saved again by other libraries, converted: which arrive right, which are refused, and with what words.

python tests/saved_by.py [ENVIRONMENTS [CHECKPOINT ...]] prints docs/saved-by.md; exit 1 where a file is wrong.
ENVIRONMENTS is a directory of virtual environments, named as below; those that are missing are made there, with
packages from PyPI. Without it, only what the running Python's own libraries can save. CHECKPOINT: more than the bundled
ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitconv
import torch
from bitconv.system.errors import BitconvError
from safetensors.torch import load_file, save_file

from gguf_file import File

FIXTURES = Path(__file__).parent.parent / "fixtures"
SCRIPT = Path(__file__).with_name("save_again.py")
COMMON = ("torch==2.13.0", "sentencepiece", "protobuf")
# By name the packages, and the ways of save_again.py.
TRANSFORMERS = (
    "save_pretrained",
    "save_pretrained, loaded without a dtype",
    "save_pretrained, sharded",
    "half(), save_pretrained",
    "torch.save of the state dict",
    "tokenizer alone",
    "tokenizer alone, slow",
    "tokenizer alone, without a space in front",
)
TRANSFORMERS_4 = (*TRANSFORMERS, "save_pretrained, .bin")
TRANSFORMERS_5 = (*TRANSFORMERS, "save_pretrained, save_original_format=False")
PEFT = (
    "peft: LoRA of zeros, merged",
    "peft: random LoRA, merged",
    "peft: random LoRA on the head, merged",
    "peft: random LoRA on the embedding, merged",
    "peft: head and embedding saved, merged",
)
OTHERS = (
    "safetensors save_model",
    "safetensors save_file",
    "torch.save",
    "accelerate save_model",
    "accelerate save_model, sharded",
    "accelerate save_model, .bin, sharded",
)
MLX = ("mlx_lm.convert", "mlx_lm.convert, dtype float16", "mlx_lm.convert, 4 bits", "mlx_lm.convert, 2 bits")
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "transformers-4.46": ((*COMMON, "accelerate", "transformers==4.46.*"), TRANSFORMERS_4),
    "transformers-4.51": ((*COMMON, "accelerate", "transformers==4.51.*"), TRANSFORMERS_4),
    "transformers-4.57": ((*COMMON, "accelerate", "transformers==4.57.*"), TRANSFORMERS_4),
    "transformers-5": ((*COMMON, "accelerate", "peft", "transformers==5.*"), (*TRANSFORMERS_5, *PEFT, *OTHERS)),
    "mlx-lm": ((*COMMON, "mlx[cpu]", "mlx-lm"), MLX),
}
# What the libraries of the Python that runs the tests can do, one of each kind.
INSTALLED = (
    "save_pretrained",
    "torch.save of the state dict",
    "tokenizer alone",
    "safetensors save_model",
    "accelerate save_model, sharded",
)


INTRODUCTION = """\
# Saved again by other libraries

The bundled checkpoints, and two of them unpacked to ternary floats, each saved again in every way below and then
converted. *The same file*: tensors and metadata are, byte for byte, those of the file of the checkpoint before.
*Another file*: those named differ; `verify --against` finds them as they were saved, and `compare` runs both. Any other
text is the line with which `convert` refuses. Printed by `python tests/saved_by.py ENVIRONMENTS`.
"""


@dataclass(frozen=True)
class Cell:
    """One checkpoint saved in one way.

    arrived: what the libraries wrote, in words; or why they wrote nothing, where `saved` is false.
    result: what bitconv makes of it: "the same file" (tensors and metadata equal the original's), "right" with what
    differs from the original's file, or the line with which it is refused. right: whether verify and compare agree.
    refused: with a way out.
    """

    checkpoint: str
    environment: str
    way: str
    saved: bool
    arrived: str
    result: str = ""
    right: bool = False
    refused: bool = False


def checkpoints(directory: Path) -> dict[str, Path]:
    """The bundled checkpoints, and two of them unpacked to floats that are ternary."""
    names = ("bitnet_b1_58-tiny", "bitnet-b1.58-2B-4T-tiny", "Llama3-1.58-tiny")
    found = {name: FIXTURES / name for name in names}
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    for name, quantization in (("bitnet-b1.58-2B-4T-tiny", online), ("Llama3-1.58-tiny", None)):
        target = directory / f"{name} unpacked"
        shutil.copytree(FIXTURES / name, target)
        config = json.loads((target / "config.json").read_text())
        divides = config["quantization_config"].get("linear_class") != "autobitlinear"
        unpack(target / "model.safetensors", divides=divides)
        config |= {"quantization_config": quantization, "torch_dtype": "float32"}
        (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        found[target.name] = target
    return found


def unpack(file: Path, *, divides: bool) -> None:
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        scale, weight = tensors.pop(name).float(), name.removesuffix("_scale")
        trits = torch.cat([(tensors[weight] >> 2 * i & 3).float() - 1 for i in range(4)])
        tensors[weight] = trits * (1 / scale if divides else scale)
    save_file(tensors, file, {"format": "pt"})


def environments(directory: Path) -> dict[str, Path]:
    """The Python of each environment, those made that are missing; without those whose packages do not install."""
    pythons = {}
    for name, (packages, _) in ENVIRONMENTS.items():
        python = directory / name / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", directory / name], check=True)
            made = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages])
            if made.returncode:
                shutil.rmtree(directory / name)
                continue
        pythons[name] = python
    return pythons


def save(python: Path, ways: Sequence[str], source: Path, target: Path) -> list[str | None]:
    """Save `source` again in each way, in target/0, target/1 and so on; of each why that failed, or None."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(SCRIPT), str(source), str(target), *ways]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    errors = [json.loads(line) for line in done.stdout.splitlines()]
    died = f"died: {(done.stderr.strip().splitlines() or [''])[-1]}"
    return errors + [died] * (len(ways) - len(errors))


def arrived(directory: Path) -> str:
    """What was written, in words: the class, the types of the projections, which of embedding and head there is."""
    tensors: dict[str, Any] = {}
    for file in directory.iterdir():
        if file.suffix in (".safetensors", ".bin"):
            tensors |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    kinds = sorted({str(t.dtype).removeprefix("torch.") for name, t in tensors.items() if name.endswith("proj.weight")})
    scales = any(name.endswith("weight_scale") for name in tensors)
    config = json.loads((directory / "config.json").read_text())
    ends = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}
    stored = " and ".join(name for name, tensor in ends.items() if tensor in tensors)
    classes = " ".join(config.get("architectures") or ["no class"])
    return f"{classes}, {' and '.join(kinds)}{' beside scales' if scales else ''}, {stored}"


def differences(file: Path, original: Path) -> list[str]:
    """What a runner computes by that is not the same in two files: keys, and tensors by name."""
    one, other = contents(file), contents(original)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def contents(path: Path) -> dict[str, Any]:
    file = File(path)
    found = {key: value for key, value in file.metadata.items() if not key.startswith("general.")}
    starts = sorted(tensor.start for tensor in file.tensors.values())
    ends = dict(zip(starts, [*starts[1:], len(file.data)], strict=True))
    return found | {name: (t.ne, t.type_id, file.data[t.start : ends[t.start]]) for name, t in file.tensors.items()}


def judge(directory: Path, original: Path, output: Path) -> tuple[str, bool, bool]:
    """What bitconv makes of a checkpoint: in words, whether that is right, and whether it is refused with a way out.

    original: the file of the checkpoint before it was saved again.
    """
    try:
        bitconv.convert(directory, output, force=True)
    except BitconvError as error:
        return line(error, directory), False, error.way_out is not None
    right = bitconv.verify(output, against=directory).right
    found = differences(output, original)
    if not right:
        return "WRONG", False, False
    if not found:
        return "the same file", True, False
    text = f"another file ({summary(found)})"
    try:
        disagreements = bitconv.compare(output, directory).disagreements
    except BitconvError as error:
        return f"{text}, which verify finds right; compare: {line(error, directory)}", True, False
    return f"{text}, {'; '.join(disagreements) or 'which compare agrees with'}", not disagreements, False


def line(error: BitconvError, directory: Path) -> str:
    return str(error).replace(f"{directory}/", "").replace(str(directory), "DIR")


def summary(names: Sequence[str]) -> str:
    """Names with the blocks' numbers left out."""
    return ", ".join(dict.fromkeys(re.sub(r"^blk\.\d+\.", "", name) for name in names))


def cells(pythons: dict[str, tuple[Path, Sequence[str]]], sources: dict[str, Path], directory: Path) -> Iterator[Cell]:
    """Every cell. pythons: of each environment, and the ways that it has."""
    for checkpoint, source in sources.items():
        original = directory / f"{checkpoint}.gguf"
        bitconv.convert(source, original)
        for environment, (python, ways) in pythons.items():
            target = directory / "saved"
            for number, (way, error) in enumerate(zip(ways, save(python, ways, source, target), strict=True)):
                if error is not None:
                    yield Cell(checkpoint, environment, way, False, error)
                    continue
                result, right, refused = judge(target / str(number), original, directory / "saved.gguf")
                yield Cell(checkpoint, environment, way, True, arrived(target / str(number)), result, right, refused)
            shutil.rmtree(target)


def installed() -> dict[str, tuple[Path, Sequence[str]]]:
    """What the running Python's own libraries can save."""
    return {"installed": (Path(sys.executable), INSTALLED)}


def in_environments(directory: Path) -> dict[str, tuple[Path, Sequence[str]]]:
    return {name: (python, ENVIRONMENTS[name][1]) for name, python in environments(directory).items()}


def page(found: Sequence[Cell]) -> str:
    """docs/saved-by.md: a table a checkpoint; lines for what arrives alike and gets the same answer are one."""
    parts = [INTRODUCTION]
    for checkpoint in dict.fromkeys(cell.checkpoint for cell in found):
        lines: dict[tuple[str, str], dict[str, list[str]]] = {}
        for cell in found:
            if cell.checkpoint == checkpoint:
                what = (cell.arrived, cell.result) if cell.saved else ("nothing", f"not saved: {cell.arrived:.80}")
                lines.setdefault(what, {}).setdefault(cell.environment, []).append(cell.way)
        parts += [f"## {checkpoint}\n", "| saved by | arrives as | bitconv |", "|---|---|---|"]
        for (form, result), savers in sorted(lines.items(), key=lambda item: item[0][1] != "the same file"):
            by: dict[str, list[str]] = {}
            for name, ways in savers.items():
                by.setdefault("; ".join(ways), []).append(name)
            names = "<br>".join(f"{', '.join(names)}: {ways}" for ways, names in by.items())
            parts.append(f"| {names} | {form} | {result.replace('|', '/')} |")
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    more = {Path(name).name: Path(name) for name in sys.argv[2:]}
    pythons = in_environments(Path(sys.argv[1])) if len(sys.argv) > 1 else installed()
    found = []
    with tempfile.TemporaryDirectory() as place:
        for cell in cells(pythons, checkpoints(Path(place)) | more, Path(place)):
            print(f"{cell.checkpoint}, {cell.environment}, {cell.way}: {cell.result or cell.arrived}", file=sys.stderr)
            found.append(cell)
    print(page(found))
    sys.exit(any(cell.saved and not (cell.right or cell.refused) for cell in found))


if __name__ == "__main__":
    main()
