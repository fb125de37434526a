"""Names of tensors as wrappers around a model leave them: told, so that the way out can be."""

from __future__ import annotations

from collections.abc import Collection

from bitconv.system.errors import BitconvError, Code

# What a wrapper puts before or into names, who does, and how to save the model inside.
_WRAPPERS = (
    ("_orig_mod.", "torch.compile", "save the model inside, model._orig_mod.save_pretrained(DIR)"),
    ("_fsdp_wrapped_module.", "FSDP", "save the full state dict of the model inside"),
    ("_checkpoint_wrapped_module.", "activation checkpointing", "save the state dict of the model inside"),
    ("base_model.model.", "peft", "save the merged model, model.merge_and_unload().save_pretrained(DIR)"),
    ("base_layer.", "peft", "save the merged model, model.merge_and_unload().save_pretrained(DIR)"),
    ("module.", "DataParallel or DeepSpeed", "save the model inside, model.module.save_pretrained(DIR)"),
)


def check_names(names: Collection[str], embedding: str, path: object) -> None:
    """BitconvError where the names are those of the model but for what a wrapper added or a part of it lacks.

    embedding: the name that the token embedding should have. path: of the model directory.
    """
    for added, wrapper, way_out in _WRAPPERS:
        name = next((name for name in names if f".{added}" in f".{name}"), None)
        if name is not None:
            count = sum(f".{added}" in f".{name}" for name in names)
            raise BitconvError(
                f"{count} of {len(names)} tensors' names have {added!r}, which {wrapper} adds and the model's lack",
                code=Code.TENSOR_FORM,
                file=path,
                tensor=name,
                way_out=f"{way_out}, or remove {added!r} from the names and save the file again",
            )
    if embedding in names:
        return
    for name in names:
        if name.endswith(f".{embedding}"):
            added = name.removesuffix(embedding)
            cause = f"expected {embedding}: the names have {added!r} before those of the model"
            way_out = f"remove {added!r} from the names and save the file again"
            raise BitconvError(cause, code=Code.TENSOR_FORM, file=path, tensor=name, way_out=way_out)
        if embedding.endswith(f".{name}") and name.endswith("embed_tokens.weight"):
            lacking = embedding.removesuffix(name)
            raise BitconvError(
                f"expected {embedding}: the names lack {lacking!r}, as those of a model without its head do",
                code=Code.TENSOR_FORM,
                file=path,
                tensor=name,
                way_out=f"save the whole model, or put {lacking!r} before all names but lm_head's and save the file "
                "again",
            )
