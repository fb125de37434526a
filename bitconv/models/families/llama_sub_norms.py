"""Llama by its class, with the sub-norms of BitNet among its tensors: what training scripts save that add them.

The tensors tell, under either name that the norms have; the class alone would be the plain Llama.
"""

from dataclasses import replace

from bitconv.models.families import microsoft, onebitllm

FAMILIES = tuple(
    replace(
        family,
        name=f"Llama with {whose} sub-norms",
        hf_architecture="LlamaForCausalLM",
        native=False,
        checkpoints="trainings that add the norms to Llama",
        tensor=f"model.layers.0.{family.modules['attn_sub_norm']}.weight",
    )
    for family, whose in ((onebitllm.FAMILY, "1bitLLM's"), (microsoft.SILU_FAMILY, "Microsoft's"))
)
