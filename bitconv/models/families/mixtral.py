"""Mixtral: a Llama whose feed-forward network is a mixture of ternary experts, which the file holds stacked.

The tensors are those of transformers 4, whose BitLinear replaces w1, w2 and w3 of every expert; transformers 5 has the
experts of a layer in one parameter, and no ternary form of it. Source of the rest: llama.cpp's llama graph (2026),
which reads Mixtral as architecture llama and multiplies each expert by its value in an `_exps.scale` tensor.
"""

from dataclasses import replace

from bitconv.models.families import llama
from bitconv.models.families.family import Reference

FAMILY = replace(
    llama.FAMILY,
    name="Mixtral 1.58-bit",
    hf_architecture="MixtralForCausalLM",
    checkpoints="mixtures of Llama-class experts, with a router of floats",
    weights="packed, float master (online), or ternary floats (online)",
    codes="",  # not those of Llama's labs
    experts=True,
    # transformers 5 has the experts of a layer in one parameter of floats.
    reference=Reference.WRITTEN_OUT,
)
