"""The checkpoint's own logits and tokens, by PyTorch: what a converted file is compared with.

transformers runs the Llama and Microsoft families. It has no class for 1bitLLM's, and loads such a checkpoint as a
plain Llama without its sub-norms and without ternary weights, so that family is written out here: Llama with a norm
on the input of o_proj and of down_proj, and every projection ternary and its input rounded to int8 a token. Needs
torch, transformers, sentencepiece and protobuf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece  # noqa: F401  (with protobuf, what transformers reads tokenizer.model by)
import torch
import transformers
from google import protobuf  # noqa: F401
from torch import Tensor
from torch.nn import functional

from bitconv.checkpoint.directory import Checkpoint
from bitconv.models import families
from bitconv.models.families import Reference
from bitconv.models.hyperparameters import Hyperparameters
from bitconv.models.model import load_model
from bitconv.models.quantization import ScaleConvention
from bitconv.models.ternary_floats import find_scale
from bitconv.models.trits import TritReader
from bitconv.models.weights import TernaryWeight
from bitconv.system.errors import BitconvError, Code, option
from bitconv.tokenizer.files import read_files
from bitconv.tokenizer.spm import SPACE

Logits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
Encode = Callable[[list[str]], list[list[int]]]


def load_logits(checkpoint: Checkpoint) -> Logits:
    """From int64 tokens (n,) to the float32 logits (n, vocabulary) of the token after each."""
    family = families.detect(checkpoint.config, checkpoint.path / "config.json", checkpoint.tensors)
    if family.reference is Reference.NONE:
        raise BitconvError(
            f"{family.name}: told by its tensors, and transformers would run what config.json says",
            code=Code.GGUF_UNSUPPORTED,
            file=checkpoint.path,
            way_out=f"verify {option('against', 'MODEL')} proves the file",
        )
    if family.reference is Reference.SUB_NORMS:
        return _run(OneBitLLM(checkpoint).logits)
    _refuse_other_weights(checkpoint)
    _hush()
    torch.compiler.set_stance("force_eager")  # its quantization functions would be compiled, which takes longer
    stored = [tensor for tensor in checkpoint.tensors.values() if tensor.name.endswith(".weight_scale")]
    if any(tensor.shape == () for tensor in stored):  # transformers' layers have room for (1,) alone
        raise BitconvError(
            "its weight_scale are scalars, which transformers does not load",
            code=Code.GGUF_UNSUPPORTED,
            file=checkpoint.path,
            way_out=f"verify {option('against', 'MODEL')} proves the file",
        )
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    model_class = getattr(transformers, family.reference_class or family.hf_architecture)
    if family.reference_class:
        foreign = ("model_type", "auto_map", "architectures")
        stated = {key: value for key, value in checkpoint.config.items() if key not in foreign}
        options["config"] = model_class.config_class.from_dict(stated)
    model = model_class.from_pretrained(checkpoint.path, **options)
    # With packed weights the rest is left in bfloat16, and transformers' own float() refuses quantized models.
    torch.nn.Module.float(model)
    _multiply(model, load_model(checkpoint, ScaleConvention.MULTIPLY).sizes)
    return _run(lambda tokens: model(tokens[None]).logits[0])


def _multiply(model: Any, sizes: Hyperparameters) -> None:
    """Have a model multiply by what its sizes state."""
    if set(sizes.multipliers) == {1.0}:
        return
    model.model.embed_tokens.register_forward_hook(lambda _module, _inputs, output: output * sizes.embedding_scale)
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.register_forward_hook(lambda _module, _inputs, output: output * sizes.residual_scale)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output / sizes.logit_divisor)


def _refuse_other_weights(checkpoint: Checkpoint) -> None:
    """Refuse float weights that transformers would run as they are, or by the rule, where convert does the other."""
    online = checkpoint.config.get("quantization_config") is not None
    for weight in load_model(checkpoint, ScaleConvention.MULTIPLY).matrices:
        if weight.has_scale:
            continue
        found = find_scale(checkpoint, weight, lambda: None)
        if found is None and not online:
            raise weight.stored.error(
                "nothing marks this as a BitNet checkpoint, and transformers would run its weights as they are",
                code=Code.GGUF_UNSUPPORTED,
                way_out=f"verify {option('against', 'MODEL')} {option('ternarize', 'absmean')} proves the file",
            )
        if found is not None and online and np.any(found != TritReader(checkpoint, weight, lambda: None).scale):
            raise weight.stored.error(
                "is ternary already, and transformers would make another scale of it",
                code=Code.GGUF_UNSUPPORTED,
                way_out=f"verify {option('against', 'MODEL')} proves the file",
            )


def _hush() -> None:
    """Without transformers' progress bars and its notes on missing GPUs and long texts."""
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _run(model: Callable[[Tensor], Tensor]) -> Logits:
    @torch.no_grad()
    def logits(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = model(torch.from_numpy(tokens)).numpy()
        return result

    return logits


def load_encode(checkpoint: Checkpoint) -> Encode:
    """From texts to the tokens of prompts, by transformers' tokenizer of the checkpoint.

    What its fifth release alone does is left out. SentencePiece and runners put a space in front of every text; it puts
    none in front of a text that starts with one. And it puts no bos in front where a tokenizer.model is alone and
    add_bos_token is not stated, though LlamaTokenizer's documentation says so, as all earlier releases do.
    """
    files = read_files(checkpoint.path, checkpoint.config)
    stated: dict[str, bool] = {}
    if files.json is None:
        for role, usual in (("bos", True), ("eos", False)):
            flag = files.tokenizer_config.get(f"add_{role}_token")
            stated[f"add_{role}_token"] = flag if isinstance(flag, bool) else usual
    _hush()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, **stated)
    except Exception as error:  # the library raises nothing narrower
        raise BitconvError(
            f"transformers {transformers.__version__} cannot load its tokenizer: {' '.join(str(error).split())}",
            code=Code.TOKENIZER,
            file=checkpoint.path,
            way_out=f"verify {option('against', 'MODEL')} proves the file",
        ) from None
    without, behind = (tokenizer(text, add_special_tokens=False).input_ids for text in ("a", " a"))
    if without != behind:
        return lambda texts: tokenizer(texts).input_ids
    return lambda texts: tokenizer([f" {text}" if text.startswith((" ", SPACE)) else text for text in texts]).input_ids


class OneBitLLM:
    """The forward pass of one sequence in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        model = load_model(checkpoint)
        self.sizes = model.sizes
        dense = [tensor for tensor in checkpoint.tensors.values() if tensor.dtype not in ("u8", "i8")]
        self.weights = {tensor.name: torch.from_numpy(checkpoint.values(tensor)) for tensor in dense}
        self.weights |= {w.stored.name: _ternary(checkpoint, w) for w in model.matrices}

    def logits(self, tokens: Tensor) -> Tensor:
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[tokens]
        for number in range(self.sizes.layers):
            layer = f"model.layers.{number}"
            x = x + self._attention(f"{layer}.self_attn", self._norm(f"{layer}.input_layernorm", x))
            x = x + self._feed_forward(f"{layer}.mlp", self._norm(f"{layer}.post_attention_layernorm", x))
        return functional.linear(self._norm("model.norm", x), embedding)

    def _attention(self, module: str, x: Tensor) -> Tensor:
        q, k, v = (
            self._project(f"{module}.{p}_proj", x).reshape(len(x), -1, self.sizes.head_dim).transpose(0, 1)
            for p in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(
            self._rotate(q)[None], self._rotate(k)[None], v[None], is_causal=True, enable_gqa=True
        )
        joined = mixed[0].transpose(0, 1).flatten(1)
        return self._project(f"{module}.o_proj", self._norm(f"{module}.inner_attn_ln", joined))

    def _feed_forward(self, module: str, x: Tensor) -> Tensor:
        gated = functional.silu(self._project(f"{module}.gate_proj", x)) * self._project(f"{module}.up_proj", x)
        return self._project(f"{module}.down_proj", self._norm(f"{module}.ffn_layernorm", gated))

    def _project(self, name: str, x: Tensor) -> Tensor:
        divisor = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        rounded = (x * divisor).round().clamp(-128, 127)
        return functional.linear(rounded / divisor, self.weights[f"{name}.weight"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"] * (x * torch.rsqrt(x.square().mean(-1, True) + self.sizes.rms_eps))

    def _rotate(self, x: Tensor) -> Tensor:
        """Row i of a head with row i + head_dim / 2. x: (heads, n, head_dim)."""
        half = self.sizes.head_dim // 2
        frequencies = 1.0 / self.sizes.rope_base ** (torch.arange(half).float() / half)
        angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def _ternary(checkpoint: Checkpoint, weight: TernaryWeight) -> Tensor:
    """In floats: packed trits times their scale, ternary floats as they are, others by the absmean rule."""
    if weight.has_scale:
        reader = TritReader(checkpoint, weight, lambda: None)
        return torch.from_numpy(reader.stored_trits(0, reader.rows) * reader.stored_scale)
    values = torch.from_numpy(checkpoint.values(weight.stored))
    if find_scale(checkpoint, weight, lambda: None) is not None:
        return values
    inverse = 1.0 / values.abs().double().mean().float().clamp(min=1e-5)
    return (values * inverse).round().clamp(-1, 1) / inverse
