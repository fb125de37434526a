"""Llama by its class, with the sub-norms of BitNet among its tensors: what training scripts save that add them.

The tensors tell, under either name that the norms have; the class alone would be the plain Llama.
"""

from bitconv.models.architectures import BITNET
from bitconv.models.families import microsoft, onebitllm
from bitconv.models.families.family import Family, Reference

FAMILIES = tuple(
    Family(
        name=f"Llama with {whose} sub-norms",
        hf_architecture="LlamaForCausalLM",
        architecture=BITNET,
        native=False,
        checkpoints="trainings that add the norms to Llama",
        modules=modules,
        tensor=f"model.layers.0.{modules['attn_sub_norm']}.weight",
        reference=Reference.WRITTEN_OUT,
    )
    for modules, whose in ((onebitllm.FAMILY.modules, "1bitLLM's"), (microsoft.FAMILY.modules, "Microsoft's"))
)
