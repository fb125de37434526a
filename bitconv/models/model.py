"""A checkpoint understood: every weight of the GGUF file with where its values come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitconv.checkpoint import refusals
from bitconv.checkpoint.directory import Checkpoint
from bitconv.models import families, hyperparameters
from bitconv.models.architectures import Role, Slot
from bitconv.models.binder import Binder
from bitconv.models.families import Family
from bitconv.models.heads import Heads, find_heads
from bitconv.models.hyperparameters import Hyperparameters
from bitconv.models.names import check_names
from bitconv.models.quantization import ScaleConvention, Storage, check_plausible
from bitconv.models.weights import ComputedWeight, Model, Weight
from bitconv.system.errors import BitconvError, Code
from bitconv.system.patterns import PatternError, compile_pattern

# Names in modules_to_not_convert: a model's own modules are not as many.
_MAX_PATTERNS = 10_000


def load_model(checkpoint: Checkpoint, convention: ScaleConvention | None = None) -> Model:
    """Understand an open checkpoint.

    convention: overrules the one that config.json implies for weight_scale, and the check of its plausibility.
    BitconvError where the checkpoint is not one that bitconv knows, or where its tensors are not exactly those that
    its config asks for.
    """
    config: Mapping[str, Any] = checkpoint.config
    file = checkpoint.path / "config.json"
    refusals.check_checkpoint(config, checkpoint.tensors, checkpoint.path)
    family = families.detect(config, file, checkpoint.tensors)
    config = family.config(config, file)
    _check_sub_norms(family, config, checkpoint.tensors, file)
    sizes = hyperparameters.from_config(config, file)
    # Before anything is made for each of them.
    if sizes.layers * max(sizes.experts, 1) > len(checkpoint.tensors):
        experts = f" of {sizes.experts} experts" if sizes.experts else ""
        raise BitconvError(
            f"num_hidden_layers is {sizes.layers}{experts}, more than there are tensors", code=Code.CONFIG, file=file
        )
    embedding, head_name = family.source_name("token_embd.weight"), family.source_name("output.weight")
    check_names(checkpoint.tensors, embedding, checkpoint.path)
    head = checkpoint.tensors.get("lm_head.weight")
    if head is not None and head.dtype == "u8":
        raise refusals.TERNARY_HEAD.error(head.file, tensor="lm_head.weight")
    ends = Heads(embedding, tied=True)
    if not family.embedding:
        said = hyperparameters.Config(config, file).boolean("tie_word_embeddings")
        untied_head = family.architecture.untied_head
        ends = find_heads(checkpoint, embedding, head_name, tied=said, untied_head=untied_head)
    tied = ends.tied
    _check_architecture(family, sizes, config, file, tied=tied)
    stored_as, implied = family.storage(config, file, checkpoint.tensors)
    factors = sizes.factor_tensors()

    slots = family.architecture.slots(sizes)
    modules: dict[str, list[Slot]] = {}
    for slot in slots:
        if slot.role is Role.TERNARY:
            modules.setdefault(family.source_name(slot.name), []).append(slot)
    for fused in modules.values():
        if family.fused and len(fused) > 1:
            fused.sort(key=lambda slot: family.fused.index(slot.name.split(".")[2]))
    if stored_as is Storage.MASTER:
        _check_converted(modules, config, file, head=not tied)
    binder = Binder(checkpoint, stored_as, convention or implied, modules, one_layer=bool(family.fused))
    weights: list[Weight] = []
    for slot in slots:
        if slot.role is Role.ROPE_FACTORS:
            if slot.name in factors:
                weights.append(ComputedWeight(slot.name, factors[slot.name]))
        elif slot.role is Role.TERNARY and len(slot.shape) == 3:
            weights.append(binder.experts(slot, family.source_name(slot.name)))
        elif slot.role is Role.TERNARY:
            interleave = family.architecture.interleaved_rope
            heads = _rope_heads(slot, sizes) if interleave is not family.interleaved_rows else 0
            weights.append(binder.ternary(slot, family.source_name(slot.name), heads, interleave))
        elif slot.role is Role.NORM and family.unit_norms:
            weights.append(ComputedWeight(slot.name, np.ones(slot.shape, np.float32)))
        elif slot.role is Role.BIAS:
            weights.append(binder.bias(slot, family.source_name(slot.name), weights[-1]))
        elif slot.role is not Role.SCALE and not (tied and slot.name == "output.weight"):
            source = ends.embedding if slot.name == "token_embd.weight" else family.source_name(slot.name)
            weights.append(binder.dense(slot, source))
    if ends.copy is not None:
        binder.used.add(ends.copy)
    binder.check_all_used()
    if stored_as is Storage.PACKED and convention is None:
        check_plausible(binder.scales, implied, file)
    return Model(family, sizes, config, tuple(weights))


def _check_architecture(
    family: Family, sizes: Hyperparameters, config: Mapping[str, Any], file: Path, *, tied: bool
) -> None:
    """Refuse what no runner's graph of this architecture computes."""
    architecture = family.architecture
    activation = config.get("hidden_act", architecture.activation)
    if activation != architecture.activation:
        raise BitconvError(
            f"hidden_act is {activation!r}, but runners apply {architecture.activation} in the graph of "
            f"{architecture.name}: the file would load and talk nonsense",
            code=Code.UNSUPPORTED,
            file=file,
        )
    _check_norms(family, sizes, config, file)
    _check_experts(family, sizes, config, file)
    windows = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    kinds = config.get("layer_types")
    if architecture.windows:
        known = {"sliding_attention", "full_attention"}
        if not isinstance(kinds, list) or len(kinds) != sizes.layers or {*map(str, kinds)} != known:
            raise BitconvError(
                "layer_types does not say of every layer whether it is sliding_attention or full_attention, of which "
                f"the graph of {architecture.name} has both",
                code=Code.CONFIG,
                file=file,
            )
    elif windows or kinds not in (None, ["full_attention"] * sizes.layers):
        raise BitconvError(
            "some layers attend to a sliding window, which no architecture here computes",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if not architecture.untied_head and not tied:
        raise BitconvError(
            f"tie_word_embeddings is not true, but the {architecture.name} graph always multiplies by "
            "the embedding: no runner can compute this model's own output head",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if architecture.own_head and tied:
        raise BitconvError(
            f"the embedding is the output head too, and the graph of {architecture.name} loads one of its own",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if sizes.rope_scaling not in (None, *architecture.rope_scaling):
        raise BitconvError(
            f"rope scaling {sizes.rope_scaling!r}, which no runner is known to apply in the graph of "
            f"{architecture.graph}",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if set(sizes.multipliers) != {1.0} and not architecture.multipliers:
        raise BitconvError(
            f"the embedding, what layers add, or the logits are multiplied, which the graph of {architecture.name} "
            "does not",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if not architecture.free_head_dim and sizes.head_dim * sizes.heads != sizes.hidden:
        raise BitconvError(
            f"head_dim {sizes.head_dim} is not hidden_size / num_attention_heads, which the "
            f"{architecture.name} graph assumes",
            code=Code.UNSUPPORTED,
            file=file,
        )


def _check_sub_norms(family: Family, config: Mapping[str, Any], names: Iterable[str], file: Path) -> None:
    """Refuse a model with sub-norms of which none is stored.

    transformers lacks the class of 1bitLLM's models, and loads and saves them as what their model_type says, llama;
    the keys of their own config stay.
    """
    keys = [key for key in ("weight_bits", "input_bits") if key in config and not _quantization(config)]
    if family.unit_norms or not (
        family.architecture.sub_norms or (keys and family.hf_architecture == "LlamaForCausalLM")
    ):
        return
    modules = {
        module.rpartition(".")[2]
        for other in families.FAMILIES
        for slot, module in other.modules.items()
        if slot.endswith("_sub_norm")
    }
    if not any(name.endswith(tuple(f".{module}.weight" for module in modules)) for name in names):
        sign = f"{keys[0] if keys else family.hf_architecture}, and no tensor *.{' or *.'.join(sorted(modules))}"
        raise refusals.LOST_SUB_NORMS.error(file, sign)


def _check_norms(family: Family, sizes: Hyperparameters, config: Mapping[str, Any], file: Path) -> None:
    """Refuse norms on the inputs of projections that the graph lacks, or has and the checkpoint lacks."""
    quantization = _quantization(config)
    use_rms_norm = bool(quantization.get("use_rms_norm"))
    if use_rms_norm and not family.architecture.input_norms:
        raise refusals.INPUT_NORMS.error(file, "quantization_config.use_rms_norm")
    if family.architecture.input_norms and not (use_rms_norm or family.native):
        raise BitconvError(
            f"quantization_config.use_rms_norm is not true, but there are tensors *{family.tensor}",
            code=Code.CONTRADICTION,
            file=file,
        )
    if use_rms_norm and quantization.get("rms_norm_eps", 1e-6) != sizes.rms_eps:
        raise BitconvError(
            "quantization_config.rms_norm_eps (1e-06 where it is missing) is not rms_norm_eps, and "
            "runners have one for all norms",
            code=Code.UNSUPPORTED,
            file=file,
        )
    if family.architecture.qk_norms and config.get("head_dim") is None:
        raise BitconvError(
            "head_dim is missing, and what stands for it depends on the class: write what it is",
            code=Code.CONFIG,
            file=file,
        )


def _check_experts(family: Family, sizes: Hyperparameters, config: Mapping[str, Any], file: Path) -> None:
    """Refuse experts in other classes than those of mixtures, and a router that is ternary too."""
    if bool(sizes.experts) != family.experts:
        raise BitconvError(
            f"num_local_experts is {config.get('num_local_experts')!r}; {family.hf_architecture} has "
            f"{('experts' if family.experts else 'none')}",
            code=Code.UNSUPPORTED,
            file=file,
        )
    kept = _quantization(config).get("modules_to_not_convert")
    listed = kept if isinstance(kept, list) else []
    if family.experts and _quantization(config) and not any(str(module).endswith("gate") for module in listed):
        raise BitconvError(
            "quantization_config.modules_to_not_convert does not list gate: the router of the "
            "experts is ternary too, with activations rounded to int8, and llama.cpp's is of floats",
            code=Code.UNSUPPORTED,
            file=file,
        )


def _check_converted(modules: Iterable[str], config: Mapping[str, Any], file: Path, *, head: bool) -> None:
    """Refuse projections that transformers leaves in floats, and a head that it ternarises, of master weights.

    modules: the projections' tensors; {} stands for the number of an expert. head: the model has one of its own.
    """
    listed = _quantization(config).get("modules_to_not_convert")
    if listed is None:  # then it is the head alone, where there is a quantization_config at all
        return
    if not isinstance(listed, list) or not all(isinstance(pattern, str) for pattern in listed):
        raise BitconvError(
            f"quantization_config.modules_to_not_convert is {listed!r}, expected a list of names",
            code=Code.CONFIG,
            file=file,
        )
    is_listed = _Listed(listed, file)
    for name in modules:
        module = name.removesuffix(".weight").replace("{}", "0")
        if is_listed(module):
            raise BitconvError(
                f"quantization_config.modules_to_not_convert lists {module}: it is a matrix of floats, "
                "whose activations are not rounded, and runners have it ternary like the others",
                code=Code.UNSUPPORTED,
                file=file,
            )
    if head and not is_listed("lm_head"):
        raise refusals.TERNARY_HEAD.error(file, "quantization_config.modules_to_not_convert lacks lm_head")


class _Listed:
    """Whether transformers 5 keeps a module as it is (should_convert_module in quantizers/quantizers_utils.py).

    It does where the module's name starts with what one of the patterns matches, up to a point between two parts of
    the name, or ends with the pattern as it stands.
    """

    def __init__(self, patterns: Sequence[str], file: Path) -> None:
        self._file = file
        if len(patterns) > _MAX_PATTERNS:
            raise self._error(f"lists {len(patterns)} names; {_MAX_PATTERNS} are the most", Code.TOO_LARGE)
        self._ends = tuple(patterns)
        for pattern in patterns:
            self._compile(pattern, f"{pattern!r:.120}")
        any_of = "|".join(f"(?:{pattern})" for pattern in patterns)
        self._before_a_part = self._compile(f"(?:{any_of})(?:\\.|$)", f"{len(patterns)} patterns")
        self._with_a_dot = self._compile(any_of, f"{len(patterns)} patterns")

    def _compile(self, pattern: str, name: str) -> Any:
        try:
            return compile_pattern(pattern)
        except PatternError as error:
            raise self._error(f"{name} cannot be matched: {error}", Code.CONFIG) from None

    def _error(self, cause: str, code: Code) -> BitconvError:
        return BitconvError(f"quantization_config.modules_to_not_convert: {cause}", code=code, file=self._file)

    def __call__(self, module: str) -> bool:
        if module.endswith(self._ends) or (self._ends and self._before_a_part.match(module)):
            return True
        ends = [at + 1 for at, character in enumerate(module) if character == "."]
        return bool(self._ends) and any(self._with_a_dot.fullmatch(module[:end]) for end in ends)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    value = config.get("quantization_config")
    return value if isinstance(value, Mapping) else {}


def _rope_heads(slot: Slot, sizes: Hyperparameters) -> int:
    if slot.name.endswith("attn_q.weight"):
        return sizes.heads
    return sizes.kv_heads if slot.name.endswith("attn_k.weight") else 0
