"""Saves a checkpoint again with the libraries of the Python that runs it: save_again.py SOURCE TARGET WAY...

Run by saved_by.py, also with old versions of the libraries, and without bitconv. Each way gets a directory in TARGET,
named by its number, and a line on stdout, when it is done: in JSON null, or why it failed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARD = "1MB"  # at most; the embedding alone is larger


def load(source: Path, **options: Any) -> Any:
    """The model, of the class that AutoModelForCausalLM takes."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(source, **options)


def save_tokenizer(source: Path, target: Path) -> None:
    import transformers

    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(target)


def by_transformers(source: Path, target: Path, *, options: dict[str, Any], saving: dict[str, Any]) -> None:
    load(source, **options).save_pretrained(target, **saving)
    save_tokenizer(source, target)


def tokenizer_alone(source: Path, target: Path, **options: Any) -> None:
    import transformers

    for file in source.iterdir():
        if "safetensors" in file.name or file.name in ("config.json", "generation_config.json"):
            shutil.copy(file, target / file.name)
    transformers.AutoTokenizer.from_pretrained(source, **options).save_pretrained(target)


def half(source: Path, target: Path) -> None:
    load(source, torch_dtype="auto").half().save_pretrained(target)
    save_tokenizer(source, target)


def state_dict(source: Path, target: Path) -> None:
    """As training scripts save a model themselves."""
    import torch

    model = load(source, torch_dtype="auto")
    model.config.save_pretrained(target)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    save_tokenizer(source, target)


# --- peft ---


def merged(source: Path, target: Path, *, modules: list[str], zeros: bool) -> None:
    """A LoRA over some modules, merged. zeros: as it is before any training."""
    import peft
    import torch

    torch.manual_seed(0)
    base = load(source, torch_dtype="auto")
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=0.01, target_modules=modules, init_lora_weights=zeros)
    )
    model.merge_and_unload().save_pretrained(target)
    save_tokenizer(source, target)


def trained_head(source: Path, target: Path) -> None:
    """The embedding and the head trained beside a LoRA, which unties them."""
    import peft

    base = load(source, torch_dtype="auto")
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    peft.get_peft_model(base, peft.LoraConfig(r=4, **options)).merge_and_unload().save_pretrained(target)
    save_tokenizer(source, target)


# --- without transformers ---


def module(source: Path) -> Any:
    """The tensors as parameters of modules named like the checkpoint's; a tied head is the embedding itself."""
    import torch
    from safetensors.torch import load_file

    tensors = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, torch.nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    if HEAD not in tensors:
        root.add_module("lm_head", torch.nn.Module())
        root.lm_head.weight = root.get_parameter(EMBEDDING)
    return root


def copy_the_rest(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, target / file.name)


def safetensors_save_model(source: Path, target: Path) -> None:
    from safetensors.torch import save_model

    save_model(module(source), str(target / "model.safetensors"))
    copy_the_rest(source, target)


def safetensors_save_file(source: Path, target: Path) -> None:
    """save_file refuses tensors that share memory; everyone's answer is to copy them."""
    from safetensors.torch import save_file

    save_file({name: t.clone() for name, t in module(source).state_dict().items()}, target / "model.safetensors")
    copy_the_rest(source, target)


def torch_save(source: Path, target: Path) -> None:
    import torch

    torch.save(module(source).state_dict(), target / "pytorch_model.bin")
    copy_the_rest(source, target)


def accelerate_save_model(source: Path, target: Path, *, safe: bool, size: str) -> None:
    from accelerate import Accelerator

    Accelerator(cpu=True).save_model(module(source), str(target), max_shard_size=size, safe_serialization=safe)
    copy_the_rest(source, target)


# --- mlx-lm ---


def mlx_lm(source: Path, target: Path, **options: Any) -> None:
    """mlx-lm 0.32 takes modules_to_not_convert for a list: an empty one is put in place of null."""
    from mlx_lm.convert import convert

    copy = target.with_name(f"{target.name} source")
    shutil.copytree(source, copy, copy_function=shutil.copyfile)
    config = json.loads((copy / "config.json").read_text())
    if config.get("quantization_config", {}).get("modules_to_not_convert", True) is None:
        config["quantization_config"]["modules_to_not_convert"] = []
        (copy / "config.json").write_text(json.dumps(config))
    target.rmdir()
    with contextlib.redirect_stdout(sys.stderr):
        convert(str(copy), str(target), **options)


AUTO = {"torch_dtype": "auto"}
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
WAYS: dict[str, Any] = {
    "save_pretrained": lambda s, t: by_transformers(s, t, options=AUTO, saving={}),
    "save_pretrained, loaded without a dtype": lambda s, t: by_transformers(s, t, options={}, saving={}),
    "save_pretrained, sharded": lambda s, t: by_transformers(s, t, options=AUTO, saving={"max_shard_size": SHARD}),
    "save_pretrained, .bin": lambda s, t: by_transformers(s, t, options=AUTO, saving={"safe_serialization": False}),
    "save_pretrained, save_original_format=False": lambda s, t: by_transformers(
        s, t, options=AUTO, saving={"save_original_format": False}
    ),
    "half(), save_pretrained": half,
    "torch.save of the state dict": state_dict,
    "tokenizer alone": tokenizer_alone,
    "tokenizer alone, slow": lambda s, t: tokenizer_alone(s, t, use_fast=False),
    "tokenizer alone, without a space in front": lambda s, t: tokenizer_alone(s, t, add_prefix_space=False),
    "peft: LoRA of zeros, merged": lambda s, t: merged(s, t, modules=PROJECTIONS, zeros=True),
    "peft: random LoRA, merged": lambda s, t: merged(s, t, modules=PROJECTIONS, zeros=False),
    "peft: random LoRA on the head, merged": lambda s, t: merged(s, t, modules=["lm_head"], zeros=False),
    "peft: random LoRA on the embedding, merged": lambda s, t: merged(s, t, modules=["embed_tokens"], zeros=False),
    "peft: head and embedding saved, merged": trained_head,
    "safetensors save_model": safetensors_save_model,
    "safetensors save_file": safetensors_save_file,
    "torch.save": torch_save,
    "accelerate save_model": lambda s, t: accelerate_save_model(s, t, safe=True, size="10GB"),
    "accelerate save_model, sharded": lambda s, t: accelerate_save_model(s, t, safe=True, size=SHARD),
    "accelerate save_model, .bin, sharded": lambda s, t: accelerate_save_model(s, t, safe=False, size=SHARD),
    "mlx_lm.convert": mlx_lm,
    "mlx_lm.convert, dtype float16": lambda s, t: mlx_lm(s, t, dtype="float16"),
    "mlx_lm.convert, 4 bits": lambda s, t: mlx_lm(s, t, quantize=True),
    "mlx_lm.convert, 2 bits": lambda s, t: mlx_lm(s, t, quantize=True, q_bits=2),
}


def main() -> None:
    source, target, *ways = sys.argv[1:]
    for number, way in enumerate(ways):
        directory = Path(target) / str(number)
        directory.mkdir(parents=True)
        try:
            WAYS[way](Path(source), directory)
            error = None
        except Exception as raised:
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main()
