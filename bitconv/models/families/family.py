"""What a model family is: how its checkpoints name the tensors of a GGUF architecture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from bitconv.models.architectures import Architecture, Role
from bitconv.models.hyperparameters import Config, Hyperparameters
from bitconv.models.quantization import ScaleConvention, Storage, storage

# GGUF slot within a block -> module within a layer of transformers' Llama, which BitNet models extend.
_LLAMA_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    # Mixtral's names; {} stands for the number of an expert.
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_LEVEL = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


_ONE_LAYER = Hyperparameters(
    layers=1, hidden=2, ffn=2, heads=1, kv_heads=1, head_dim=2, vocab=1, context=1, rms_eps=1.0, rope_base=1.0
)


class Reference(Enum):
    """What computes a checkpoint in PyTorch, for a file to be compared with."""

    TRANSFORMERS = "its class in transformers"
    WRITTEN_OUT = "bitconv.inference.torch_reference, where transformers lacks the class or would run another model"


@dataclass(frozen=True)
class Family:
    """name: as publishers call it. hf_architecture: the entry of config.json's "architectures".

    native: the model class ternarises float weights itself, without a quantization_config.
    checkpoints: those that are published, in words.
    in_llama_keys: config.json in the keys of hyperparameters.from_config, where its own are others.
    modules: slots of a block whose modules are not named as in Llama.
    interleaved_rows: the rows of q and k are stored in the order of interleaved rotation.
    tensor, hidden_act: signs that tell the family from others of its class: the end of a tensor's name, and a value in
    config.json. Where several families show theirs, a tensor says more than a value, and either more than no sign.
    weights: how they may be stored, in words, where that is not as transformers does.
    codes: by which rule and arithmetic its lab makes trits of float latents, in words, where that is known.
    Projections of one name are fused: that matrix has the rows of each, in the order of the architecture's slots, or of
    `fused`; then they are one ternary layer, and float weights of all make one scale.
    unit_norms: norms have no weights.
    input_norm: the module within a projection that normalises its input.
    embedding: a text becomes a vector: the class has no output head, and no prefix "model." before its names.
    experts: the feed-forward network is a mixture of them.
    reference: what runs it in PyTorch. reference_class: the class of transformers that does, with the multipliers put
    to it, where transformers lacks its own. exported: its class in transformers computes the architecture's graph from
    packed weights, so that a file of the architecture is exported as one of this family.
    """

    name: str
    hf_architecture: str
    architecture: Architecture
    native: bool
    checkpoints: str = ""
    in_llama_keys: Callable[[Config], Mapping[str, Any]] | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    interleaved_rows: bool = False
    fused: tuple[str, ...] = ()
    unit_norms: bool = False
    tensor: str = ""
    hidden_act: str = ""
    weights: str = ""
    codes: str = ""
    input_norm: str = ""
    embedding: bool = False
    experts: bool = False
    reference: Reference = Reference.TRANSFORMERS
    reference_class: str = ""
    exported: bool = False

    @property
    def signs(self) -> tuple[str, str]:
        """What tells it from others of its class, the stronger sign first; empty ones are none."""
        return self.tensor, self.hidden_act

    def shows(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a checkpoint of the family's class has all of its signs. names: of the tensors."""
        tensor = not self.tensor or any(name.endswith(self.tensor) for name in names)
        return tensor and self.hidden_act in ("", config.get("hidden_act"))

    def config(self, stated: Mapping[str, Any], file: object) -> Mapping[str, Any]:
        """config.json in Llama's keys. BitconvError where it states what the graph does not compute."""
        return stated if self.in_llama_keys is None else self.in_llama_keys(Config(stated, file))

    def storage(
        self, config: Mapping[str, Any], file: object, names: Collection[str]
    ) -> tuple[Storage, ScaleConvention]:
        """How the projections are stored, and which way a weight_scale works. file: config.json."""
        return storage(config, file, native=self.native)

    def layer_names(self) -> Iterator[str]:
        """The names of a first layer's tensors but those of single experts and scales."""
        sizes = replace(_ONE_LAYER, experts=int(self.experts))
        for slot in self.architecture.slots(sizes):
            if slot.name.startswith("blk.") and slot.role is not Role.SCALE:
                name = self.source_name(slot.name) if not (self.unit_norms and slot.role is Role.NORM) else "{}"
                if "{}" not in name:
                    yield name

    def source_name(self, slot_name: str) -> str:
        """The checkpoint's name of a slot's tensor; of a stack of experts with {} for the number of one."""
        prefix = "" if self.embedding else "model."
        if slot_name == "output.weight":
            return "lm_head.weight"
        if not slot_name.startswith("blk."):
            return prefix + _TOP_LEVEL[slot_name]
        _, layer, slot, kind = slot_name.split(".")
        module = (_LLAMA_MODULES | dict(self.modules))[slot.removesuffix("_norm_in")]
        module += f".{self.input_norm}" if slot.endswith("_norm_in") else ""
        return f"{prefix}layers.{layer}.{module}.{kind}"
