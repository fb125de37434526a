"""HunYuan dense (Tencent Sherry, Hy-MT in 1.25 bits): q and k are normalised after the rotation.

Of four weights one is zero, and 256 share a scale, which the floats of its checkpoints have in them. Sources:
transformers' hunyuan_v1_dense, which takes a fixed alpha of "dynamic" rope scaling as another base; llama.cpp's
conversion/hunyuan.py and its hunyuan-dense graph (2026). No config.json of Sherry itself was at hand.
"""

from collections.abc import Mapping
from typing import Any

from bitconv.models.architectures import HUNYUAN_DENSE
from bitconv.models.families.family import Family
from bitconv.models.hyperparameters import Config
from bitconv.system.errors import BitconvError, Code


def _in_llama_keys(config: Config) -> Mapping[str, Any]:
    # Of Tencent's own configs.
    for name, needed in (("use_qk_norm", True), ("use_cla", False), ("num_experts", 1)):
        if config.values.get(name) not in (None, needed):
            raise BitconvError(
                f"{name} is {config.values[name]!r:.80}, and llama.cpp's hunyuan-dense graph is that of {needed!r}",
                code=Code.UNSUPPORTED,
                file=config.file,
            )
    key = next((key for key in ("rope_parameters", "rope_scaling") if config.values.get(key)), "rope_scaling")
    rope = config.group(key)
    if rope.values.get("rope_type", rope.values.get("type")) != "dynamic" or not rope.values.get("alpha"):
        return config.values
    head_dim = config.integer("head_dim")
    base = (config if rope.values.get("rope_theta") is None else rope).number("rope_theta")
    others = {name: value for name, value in config.values.items() if name != key}
    return others | {"rope_theta": base * rope.number("alpha") ** (head_dim / (head_dim - 2))}


FAMILY = Family(
    name="HunYuan dense 1.58-bit",
    hf_architecture="HunYuanDenseV1ForCausalLM",
    architecture=HUNYUAN_DENSE,
    native=False,
    checkpoints="Tencent Sherry and Hy-MT in 1.25 bits",
    modules={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    in_llama_keys=_in_llama_keys,
    exported=True,
)
