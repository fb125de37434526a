"""The vocabulary of a Hugging Face model directory as GGUF tokenizer metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitconv.gguf import Metadata
from bitconv.system.errors import BitconvError, Code, option
from bitconv.system.files import is_there
from bitconv.tokenizer.byte_level import byte_level_vocabulary, refuse_rebuilt
from bitconv.tokenizer.chat import chat_metadata
from bitconv.tokenizer.files import TokenizerFiles, read_files
from bitconv.tokenizer.pretokenizers import is_byte_level
from bitconv.tokenizer.sentencepiece_model import sentencepiece_vocabulary
from bitconv.tokenizer.special import special_metadata
from bitconv.tokenizer.spm_json import spm_json_vocabulary
from bitconv.tokenizer.vocabulary import Vocabulary

__all__ = ["tokenizer_metadata"]


def tokenizer_metadata(
    model_dir: Path, config: Mapping[str, Any], *, pre: str | None = None, embedding: bool = False
) -> Metadata:
    """Every tokenizer.* key for the checkpoint in `model_dir`; exactly config["vocab_size"] tokens.

    config: the parsed config.json. pre: tokenizer.ggml.pre, overrules the name recognised from tokenizer.json.
    embedding: of a model that reads a text's vector at the token appended to it.

    A byte-level tokenizer.json becomes the model "gpt2". Otherwise tokenizer.model, if there, becomes the model
    "llama", and a SentencePiece-like tokenizer.json does if it is alone. (A tokenizer.model beside a byte-level
    tokenizer.json is not SentencePiece's: Llama 3 ships its original vocabulary under that name.)
    Raises BitconvError for missing, malformed and contradictory files and for what runners cannot express.
    """
    files = read_files(model_dir, config)
    vocabulary = _vocabulary(files, pre)
    metadata = {
        **vocabulary.metadata(),
        **special_metadata(files, vocabulary, embedding=embedding),
        **chat_metadata(files),
    }
    for key, value in metadata.items():
        if isinstance(value, (str, list)):
            try:
                "".join(value).encode("utf-8")
            except UnicodeEncodeError:
                raise BitconvError(
                    f"{key} has a surrogate without its pair, which is no text", code=Code.TOKENIZER, file=model_dir
                ) from None
    return metadata


def _vocabulary(files: TokenizerFiles, pre: str | None) -> Vocabulary:
    if files.json is not None and is_byte_level(files.json):
        return byte_level_vocabulary(files, files.json, pre)
    if files.json is not None:
        refuse_rebuilt(files.json_path, files.json)
    if pre is not None:
        raise BitconvError(
            f"{option('pre', pre)} is for byte-level vocabularies, and this is none",
            code=Code.OPTIONS,
            file=files.directory,
        )
    if is_there(files.directory / "tokenizer.model"):
        return sentencepiece_vocabulary(files)
    if files.json is not None:
        return spm_json_vocabulary(files, files.json)
    if is_there(files.directory / "vocab.json") and is_there(files.directory / "merges.txt"):
        raise BitconvError(
            "holds the vocabulary as vocab.json and merges.txt, which say nothing of how text is split before merging",
            code=Code.INCOMPLETE,
            file=files.directory,
            way_out="write tokenizer.json: load it with transformers' AutoTokenizer and save it with save_pretrained",
        )
    raise BitconvError(
        "holds neither tokenizer.json nor tokenizer.model",
        code=Code.INCOMPLETE,
        file=files.directory,
        way_out="copy it from where the model comes from, or save it there with transformers' save_pretrained",
    )
