"""The checkpoint's own logits and tokens, by PyTorch: what a converted file is compared with.

transformers runs the families whose classes it has. The others are written out here: it loads 1bitLLM's checkpoints as
a plain Llama without sub-norms and without ternary weights, for one. Needs torch, transformers, sentencepiece and
protobuf.
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
from bitconv.models.weights import DenseWeight, ExpertsWeight, TernaryWeight
from bitconv.system.errors import BitconvError, Code, option
from bitconv.tokenizer.files import read_files
from bitconv.tokenizer.spm import SPACE

Logits = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
Encode = Callable[[list[str]], list[list[int]]]


def load_logits(checkpoint: Checkpoint) -> Logits:
    """From int64 tokens (n,) to the float32 logits (n, vocabulary) of the token after each."""
    family = families.detect(checkpoint.config, checkpoint.path / "config.json", checkpoint.tensors)
    if family.reference is Reference.WRITTEN_OUT:
        _refuse_unmarked(checkpoint)
        return _run(WrittenOut(checkpoint).logits)
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


def _refuse_unmarked(checkpoint: Checkpoint) -> None:
    """Refuse float weights of which nothing says by which rule they become ternary."""
    for weight in load_model(checkpoint, ScaleConvention.MULTIPLY).matrices:
        if weight.scale is None and find_scale(checkpoint, weight, lambda: None) is None:
            raise weight.stored.error(
                "nothing marks this as a BitNet checkpoint, and its weights are not ternary",
                code=Code.GGUF_UNSUPPORTED,
                way_out=f"verify {option('against', 'MODEL')} {option('ternarize', 'absmean')} proves the file",
            )


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


class WrittenOut:
    """The forward pass of one sequence in float32, of a checkpoint whose class transformers lacks or would run wrong.

    Weights go by the names that they have in a GGUF file, with rows in the order of the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        model = load_model(checkpoint)
        self.family, self.sizes, self.architecture = model.family, model.sizes, model.family.architecture
        if self.sizes.rope_long is not None:
            raise BitconvError(
                "longrope with two lists, which compare does not run for this family",
                code=Code.GGUF_UNSUPPORTED,
                file=checkpoint.path,
                way_out=f"verify {option('against', 'MODEL')} proves the file",
            )
        # Ternary floats of a class that is not BitNet's own run as they are.
        self.rounds = model.family.native or bool(checkpoint.config.get("quantization_config"))
        self.weights: dict[str, Tensor] = {}
        for weight in model.weights:
            if isinstance(weight, TernaryWeight):
                self.weights[weight.name] = _ternary(checkpoint, weight)
            elif isinstance(weight, ExpertsWeight):
                self.weights[weight.name] = torch.stack([_ternary(checkpoint, matrix) for matrix in weight.matrices])
            elif isinstance(weight, DenseWeight):
                self.weights[weight.name] = torch.from_numpy(checkpoint.values(weight.stored))
            else:
                self.weights[weight.name] = torch.from_numpy(weight.values)

    def logits(self, tokens: Tensor) -> Tensor:
        sizes, embedding = self.sizes, self.weights["token_embd.weight"]
        x = embedding[tokens] * sizes.embedding_scale
        for layer in range(sizes.layers):
            x = x + self._attention(layer, self._norm(f"blk.{layer}.attn_norm", x)) * sizes.residual_scale
            x = x + self._feed_forward(layer, self._norm(f"blk.{layer}.ffn_norm", x)) * sizes.residual_scale
        head = self.weights.get("output.weight", embedding)
        return functional.linear(self._norm("output_norm", x) / sizes.logit_divisor, head)

    def _attention(self, layer: int, x: Tensor) -> Tensor:
        block, sizes = f"blk.{layer}", self.sizes
        windowed = bool(sizes.windowed) and sizes.windowed[layer]
        q, k, v = (
            self._project(f"{block}.attn_{p}", x).reshape(len(x), -1, sizes.head_dim).transpose(0, 1) for p in "qkv"
        )
        late = self.architecture.late_qk_norms
        if self.architecture.qk_norms and not late:
            q, k = self._norm(f"{block}.attn_q_norm", q), self._norm(f"{block}.attn_k_norm", k)
        if windowed or not sizes.windowed:
            q, k = self._rotate(q), self._rotate(k)
        if late:
            q, k = self._norm(f"{block}.attn_q_norm", q), self._norm(f"{block}.attn_k_norm", k)
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
        seen = (distance >= 0) & (distance < sizes.window) if windowed else distance >= 0
        mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)
        joined = mixed[0].transpose(0, 1).flatten(1)
        if self.architecture.sub_norms:
            joined = self._norm(f"{block}.attn_sub_norm", joined)
        return self._project(f"{block}.attn_output", joined)

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        block = f"blk.{layer}"
        if not self.sizes.experts:
            gated = self._gated(self._project(f"{block}.ffn_gate", x), self._project(f"{block}.ffn_up", x))
            if self.architecture.sub_norms:
                gated = self._norm(f"{block}.ffn_sub_norm", gated)
            return self._project(f"{block}.ffn_down", gated)
        chances = torch.softmax(functional.linear(x, self.weights[f"{block}.ffn_gate_inp.weight"]), -1)
        largest, chosen = chances.topk(self.sizes.experts_used)
        largest = largest / largest.sum(-1, keepdim=True)
        mixed = torch.zeros_like(x)
        for expert in range(self.sizes.experts):
            tokens, place = torch.where(chosen == expert)
            gate, up = (self._project(f"{block}.ffn_{p}_exps", x[tokens], expert) for p in ("gate", "up"))
            if self.sizes.expert_clamp is not None:
                limit = self.sizes.expert_clamp
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            out = self._project(f"{block}.ffn_down_exps", self._gated(gate, up), expert)
            mixed[tokens] += out * largest[tokens, place][:, None]
        return mixed

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        activation = functional.silu if self.architecture.activation == "silu" else _relu2
        return activation(gate) * up

    def _project(self, name: str, x: Tensor, expert: int | None = None) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        if self.rounds and len(x):
            divisor = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            x = (x * divisor).round().clamp(-128, 127) / divisor
        product = functional.linear(x, weight if expert is None else weight[expert])
        bias = self.weights.get(f"{name}.bias")
        return product if bias is None else product + bias

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"] * (x * torch.rsqrt(x.square().mean(-1, True) + self.sizes.rms_eps))

    def _rotate(self, x: Tensor) -> Tensor:
        """Row i of a head with row i + head_dim / 2, or rows 2i and 2i + 1. x: (heads, n, head_dim)."""
        sizes, half = self.sizes, self.sizes.head_dim // 2
        frequencies = 1.0 / sizes.rope_base ** (torch.arange(half).double() / half) / (sizes.rope_linear_factor or 1.0)
        magnitude = sizes.rope_magnitude
        if sizes.rope_yarn is not None:
            frequencies = frequencies / torch.from_numpy(sizes.rope_yarn.factors(sizes.rope_base, sizes.head_dim))
            magnitude *= sizes.rope_yarn.magnitude
        for factors in sizes.factor_tensors().values():
            frequencies = frequencies / torch.from_numpy(factors)
        angles = torch.outer(torch.arange(x.shape[1]).double(), frequencies)
        cos, sin = (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()
        if self.family.interleaved_rows:
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _relu2(x: Tensor) -> Tensor:
    return functional.relu(x).square()


def _ternary(checkpoint: Checkpoint, weight: TernaryWeight) -> Tensor:
    """In floats: packed trits times their scale, ternary floats as they are, others by the absmean rule."""
    if weight.has_scale:
        reader = TritReader(checkpoint, weight, lambda: None)
        return torch.from_numpy(reader.stored_trits(0, reader.rows) * reader.stored_scale)
    values = torch.from_numpy(checkpoint.values(weight.stored))
    if find_scale(checkpoint, weight, lambda: None) is not None:
        return values
    ruled = torch.from_numpy(checkpoint.values(weight.ruled_with or weight.stored))
    inverse = 1.0 / ruled.abs().double().mean().float().clamp(min=1e-5)
    return (values * inverse).round().clamp(-1, 1) / inverse
