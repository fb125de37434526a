"""Checkpoints that are no ternary models, or not those that a runner computes: how they are told, and why they go no
further. One table, from which the refusals and `bitconv families` come.

Sources: transformers' quantization_config.quant_method; hqq's name of a saved model; qat/learnable_binarizer.py of
FBI-LLM; input_bits of 1bitLLM's configuration_bitnet.py; model_type of the public models with H-BitLinear layers;
vision_config of transformers' models with images and mm_vision_tower of LLaVA's own; configuration_hgrn_bit.py of
matmulfreellm; the tensors and layer_types of transformers' Qwen3-Next; the model card of BitMamba-2; SubLN in the paper
of BitDistill, under the names that Microsoft's own models have; weight_clip_val of facebookresearch's ParetoQ; model.py
of OLMo-Bitnet-1B, whose BitLinear158 starts with an RMSNorm without weights, and llama.cpp's graphs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitconv.checkpoint import weight_files
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import read_start


@dataclass(frozen=True)
class Refusal:
    """A kind of checkpoint, told by any of its signs.

    quant_method: of quantization_config. model_type: of config.json. keys: that config.json has, any of them.
    layer_type: one of config.json's layer_types. tensor: the end of a tensor's name, in a checkpoint of one of
    `classes`, or of any where there are none. file: the name of a file in the model directory. in_place: the names of
    files, patterns, in a directory without weights.
    sign: in place of these, in words, where code elsewhere finds it.
    reason and way_out: halves of a sentence.
    """

    name: str
    reason: str
    way_out: str
    quant_method: str | None = None
    model_type: str | None = None
    keys: tuple[str, ...] = ()
    layer_type: str | None = None
    tensor: str | None = None
    classes: tuple[str, ...] = ()
    file: str | None = None
    in_place: tuple[str, ...] = ()
    sign: str = ""

    @property
    def recognised(self) -> str:
        """The signs in words."""
        signs = (
            self.sign,
            self.quant_method and f"quant_method {self.quant_method}",
            self.model_type and f"model_type {self.model_type}",
            f"{' or '.join(self.keys)} in config.json" if self.keys else "",
            self.layer_type and f"{self.layer_type} among layer_types",
            self.tensor and f"tensors *{self.tensor}{' in ' if self.classes else ''}{' or '.join(self.classes)}",
            self.file and f"a file {self.file}",
            f"{' or '.join(self.in_place)}, and no weights beside" if self.in_place else "",
        )
        return " or ".join(filter(None, signs))

    def error(self, file: object, sign: str | None = None, tensor: str | None = None) -> BitconvError:
        """sign: the key in the file that shows this; tensor: or the tensor."""
        cause = ": ".join(filter(None, (sign, self.name, self.reason)))
        return BitconvError(cause, code=Code.REFUSED, file=file, tensor=tensor, way_out=self.way_out)


_GROUPS = "its codes have a scale and an offset a group of weights, and are not ternary"
_FROM_SOURCE = "convert the float model that it was made from, with llama.cpp's convert_hf_to_gguf.py"
_NOT_B158 = "a checkpoint of BitNet b1.58 itself converts"

GGUF_FILE = Refusal(
    "already a GGUF file",
    "there is no checkpoint to convert",
    "see bitconv verify, bitconv repack to change its layout, and bitconv export to go back",
    sign="MODEL is a GGUF file, or a directory with GGUF files and no weights beside them",
)
HQQ = Refusal("HQQ", _GROUPS, _FROM_SOURCE, quant_method="hqq", file="qmodel.pt")
OTHER_QUANTIZATION = Refusal(
    "another quantization", "only bitnet is ternary", _FROM_SOURCE, sign="any other quant_method than bitnet"
)
LOW_BIT_ACTIVATIONS = Refusal(
    "BitNet a4.8",
    "runners round activations to 8 bits, and this model needs others",
    _NOT_B158,
    sign="input_bits other than 8",
)
UNMARKED_MASTER = Refusal(
    "unmarked master weights",
    "nothing marks this as a BitNet checkpoint (no quantization_config with quant_method bitnet), and its weights are "
    "not ternary already",
    f"if it was trained with ternary weights, pass the rule that it was trained with: {option('ternarize', 'absmean')} "
    f"(BitNet b1.58) or {option('ternarize', 'absmedian')} (b1.58 Reloaded)",
    sign="a class that is not BitNet's own, no quantization_config, floats other than -scale, 0 and +scale",
)
LORA = Refusal(
    "LoRA adapter",
    "it holds what is added to the weights of another model, not a model",
    "add it to that model's float weights (peft: model.merge_and_unload().save_pretrained(DIR)) and convert the result",
    in_place=("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
    tensor=".lora_A.weight",
)
LOST_SUB_NORMS = Refusal(
    "lost sub-norms",
    "a class that lacks them, as transformers' Llama, loaded the model and saved it without",
    "convert the checkpoint as it was before; if the model was trained without sub-norms, remove weight_bits and "
    "input_bits, with LlamaForCausalLM as its class",
    sign="a class with sub-norms, or LlamaForCausalLM with 1bitLLM's weight_bits or input_bits, and none stored",
)
INPUT_NORMS = Refusal(
    "use_rms_norm",
    "the graph has no norm on the input of each projection, and without it the model talks nonsense",
    "a runner computes it for Qwen3ForCausalLM only, with its tensors *_proj.rms_norm.weight",
    sign="use_rms_norm true in another class than Qwen3ForCausalLM, or without tensors *_proj.rms_norm.weight",
)
TERNARY_HEAD = Refusal(
    "ternary output head",
    "the head is ternary as well, with a norm and rounded activations before it, and runners' heads are of floats",
    "keep lm_head in modules_to_not_convert when the model is quantized",
    sign="lm_head.weight in uint8 (codys12 Qwen3-8B-BitNet), or master weights and no lm_head in "
    "modules_to_not_convert",
)
FEW_LEVELS = Refusal(
    "weights of other levels",
    "its floats are quantized already, to other levels than -scale, 0 and +scale, and ternary ones would be others",
    "llama.cpp's convert_hf_to_gguf.py and llama-quantize keep such weights, in q4_k or larger",
    sign="floats of up to eight levels a group of columns, as of Tencent's 2-bit models",
)
OLMO_NORMS = Refusal(
    "OLMo-Bitnet with LayerNorm",
    "the norms of its blocks subtract the mean, or have weights, as those of the bitnet graph do not; llama.cpp's olmo "
    "graph lacks the norms inside its projections",
    'a model trained with RMSNorms without weights converts, which states "layer_norm_type": "rms"',
    sign="OLMoModelForCausalLM whose layer_norm_type is not rms, or with layer_norm_with_affine",
)
REFUSALS = (
    GGUF_FILE,
    Refusal("AWQ", _GROUPS, _FROM_SOURCE, quant_method="awq"),
    Refusal("GPTQ", _GROUPS, _FROM_SOURCE, quant_method="gptq", tensor=".qweight"),
    HQQ,
    Refusal(
        "bitsandbytes",
        "its codes are of 4 or 8 bits, and are not ternary",
        _FROM_SOURCE,
        quant_method="bitsandbytes",
    ),
    Refusal(
        "quantized by MLX",
        f"{_GROUPS} (of two bits they may be, and are read)",
        "convert the checkpoint that it was made from, or what mlx_lm.convert makes of that without -q",
        keys=("quantization",),
    ),
    OTHER_QUANTIZATION,
    Refusal(
        "FBI-LLM",
        "its weights are binary, with a scale and a shift a column, which no ternary layout holds",
        "its float form (binarylinear_to_regularlinear in its own code) converts with llama.cpp's "
        "convert_hf_to_gguf.py",
        tensor=".wbias",
    ),
    Refusal(
        "BitNet v2",
        "its layers apply a Hadamard transform to the activations at run time, and no runner's graph does",
        _NOT_B158,
        model_type="bitnet2",
    ),
    LOW_BIT_ACTIVATIONS,
    LOST_SUB_NORMS,
    INPUT_NORMS,
    TERNARY_HEAD,
    Refusal(
        "Gemma 3 (BitNet-embedding-270M)",
        "some of its layers attend to a window, with a rotary base of their own, and bitnet.cpp's gemma3 graph is not "
        "known to: Microsoft's own figures for its GGUF file (0.66) and for the checkpoint (0.80) disagree",
        "BitNet-embedding-0.6B converts",
        model_type="gemma3_text",
    ),
    OLMO_NORMS,
    Refusal(
        "vision-language model (BitVLA, LLaVA)",
        "it looks at images, and bitconv's graphs are those of text",
        "save its language model alone, under that model's own class and tensor names, and convert that",
        keys=("vision_config", "mm_vision_tower"),
    ),
    Refusal(
        "MMfreeLM",
        "it has gated recurrences (HGRN) in place of attention, and no runner's graph does",
        _NOT_B158,
        model_type="hgrn_bit",
    ),
    Refusal(
        "hybrid attention",
        "some of its layers are linear attention, whose state and gates no graph of a ternary family has",
        "a model with attention in every layer converts, such as Qwen3",
        layer_type="linear_attention",
        tensor=".linear_attn.A_log",
    ),
    Refusal(
        "BitDistill",
        "its sub-norms, before the output and down projections, are in no runner's graph of its class",
        "the same training without sub-norms converts, as does BitNet's own class with them",
        tensor="_sub_norm.weight",
        classes=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    ),
    Refusal(
        "ParetoQ",
        "its weights are latents, of which a learned clip value a row and the number of bits make levels at run time",
        "a checkpoint that stores the ternary weights themselves (level times scale, in floats) converts",
        tensor=".weight_clip_val",
    ),
    FEW_LEVELS,
    Refusal(
        "BitMamba-2",
        "it is a state space model in JAX's format, and no runner's graph computes its layers from ternary weights",
        "run its own .bin file in the program of its authors",
        in_place=("bitmamba*.msgpack", "bitmamba*.bin"),
    ),
    LORA,
    Refusal(
        "original Llama layout",
        "its tensors have other names and its sizes stand in params.json",
        "take the model in transformers' layout (config.json and model.safetensors, mostly beside it on the Hub), or "
        "make it with transformers' convert_llama_weights_to_hf.py",
        in_place=("consolidated*.safetensors", "consolidated*.pth"),
    ),
    UNMARKED_MASTER,
)


def check_path(path: Path) -> None:
    """Refuse what can be told before a config.json is read. path: MODEL."""
    if path.is_file() and read_start(path, None, 4) == b"GGUF":
        raise GGUF_FILE.error(path)
    if not path.is_dir():
        return
    names = sorted(entry.name for entry in path.iterdir())
    check_names(names, path)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs and not any(name.endswith((".safetensors", ".bin", ".pt")) for name in names):
        raise GGUF_FILE.error(path / ggufs[0])


def check_names(names: Collection[str], path: Path) -> None:
    """Refuse by the names of a model's files."""
    for refusal in REFUSALS:
        if refusal.file in names:
            raise refusal.error(path / str(refusal.file))
    if weight_files.choose(names, path) is None:
        for refusal in REFUSALS:
            for pattern in refusal.in_place:
                for name in sorted(names):
                    if fnmatchcase(name, pattern):
                        raise refusal.error(path / name)


def check_checkpoint(config: Mapping[str, Any], tensors: Collection[str], path: Path) -> None:
    """Refuse by config.json and the names of the tensors. path: of the model directory."""
    file = path / "config.json"
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else "bitnet"
    for refusal in REFUSALS:
        if refusal.quant_method is not None and method == refusal.quant_method:
            raise refusal.error(file, f"quantization_config.quant_method {method!r}")
        if refusal.model_type is not None and config.get("model_type") == refusal.model_type:
            raise refusal.error(file, f"model_type {refusal.model_type!r}")
        for key in refusal.keys:
            if config.get(key):
                raise refusal.error(file, key)
        kinds = config.get("layer_types")
        if refusal.layer_type is not None and isinstance(kinds, list) and refusal.layer_type in kinds:
            raise refusal.error(file, f"layer_types {refusal.layer_type!r}")
        if refusal.classes and config.get("architectures") not in [[name] for name in refusal.classes]:
            continue
        for name in tensors if refusal.tensor is not None else ():
            if name.endswith(str(refusal.tensor)):
                raise refusal.error(path, tensor=name)
    if method != "bitnet":
        raise OTHER_QUANTIZATION.error(file, f"quantization_config.quant_method {method!r}")
    if config.get("input_bits") not in (None, 8):
        raise LOW_BIT_ACTIVATIONS.error(file, f"input_bits {config['input_bits']!r}")
