"""What generate writes: the tokens that the forward pass makes likeliest, as text, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import bitconv
import numpy as np
import pytest
from bitconv.cli import app
from bitconv.commands.generate import _choice, _in_template
from bitconv.commands.generate import pieces as pieces_of
from bitconv.gguf import read_gguf
from bitconv.inference.tokenizer import load_tokenizer
from typer.testing import CliRunner

from conftest import FIXTURES
from test_eval import logits_of
from test_verify import Rebuilt

MODELS = ["bitnet-b1.58-2B-4T-tiny", "bitnet_b1_58-tiny"]  # a byte-level tokenizer, a SentencePiece one
PROMPT = "The city of"


@pytest.fixture(scope="module", params=MODELS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generate") / "model.gguf"
    bitconv.convert(FIXTURES / request.param, path)
    return path


def text(file: Path, **options: object) -> str:
    return "".join(bitconv.generate(file, PROMPT, **options))


def test_without_a_temperature_each_token_is_the_likeliest_after_those_before_it(file: Path) -> None:
    tokenizer = load_tokenizer(read_gguf(file).metadata, file)
    ids = prompt = tokenizer.encode(PROMPT).ids
    for _ in range(12):
        ids = [*ids, int(logits_of(file, np.array(ids))[-1].argmax())]
    whole, before = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids, prompt))
    assert whole.startswith(before) and text(file, max_tokens=12) == whole.removeprefix(before) != ""


def test_a_seed_makes_the_same_text_with_any_number_of_threads_and_another_seed_another(file: Path) -> None:
    one, again, other = (
        text(file, max_tokens=24, temperature=1.0, seed=seed, threads=threads)
        for seed, threads in ((1, 1), (1, 3), (2, 1))
    )
    assert one == again != other


def test_tokens_are_chosen_as_often_as_they_are_likely() -> None:
    random = np.random.Generator(np.random.PCG64(0))
    logits = np.log(np.array([0.5, 0.0001, 0.2, 0.2999], np.float32))
    count = np.bincount([_choice(logits, 1.0, random) for _ in range(4000)], minlength=4)
    assert count / 4000 == pytest.approx([0.5, 0, 0.2, 0.3], abs=0.03)
    assert {_choice(logits, 1e-300, random) for _ in range(20)} == {0}
    assert _choice(np.array([1, 3, 3], np.float32), 0.0, random) == 1


def test_a_character_of_several_tokens_comes_whole(file: Path) -> None:
    tokenizer = load_tokenizer(read_gguf(file).metadata, file)
    ids = tokenizer.encode("a \u6f22\u5b57 \U0001f600!", add_special_tokens=False).ids
    before = len(tokenizer.encode("a", add_special_tokens=False).ids)
    pieces = list(pieces_of(tokenizer, ids[:before], iter(ids[before:])))
    assert "".join(pieces) == " \u6f22\u5b57 \U0001f600!"
    assert len(pieces) < len(ids) - before


def test_the_text_ends_with_the_end_token(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    bitconv.convert(FIXTURES / MODELS[0], file)
    tokenizer = load_tokenizer(read_gguf(file).metadata, file)
    ids = tokenizer.encode(PROMPT).ids
    first = int(logits_of(file, np.array(ids))[-1].argmax())
    rebuilt = Rebuilt(file)
    rebuilt.metadata["tokenizer.ggml.eos_token_id"] = np.uint32(first)
    rebuilt.write(file)
    assert text(file) == ""


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(file: Path, options: dict[str, float], cause: str) -> None:
    with pytest.raises(bitconv.BitconvError, match=cause):
        text(file, **options)


def test_a_prompt_that_fills_the_context_is_refused(file: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match=r"a prompt of .* tokens, and the model takes 1 to"):
        bitconv.generate(file, PROMPT * 20_000)


def test_a_prompt_that_is_no_text_is_refused(file: Path) -> None:
    with pytest.raises(bitconv.BitconvError, match="the prompt is not UTF-8"):
        bitconv.generate(file, "caf\udce9")


def test_the_command_prints_the_prompt_and_the_text(file: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(file), "-p", PROMPT + "\x1b[2J", "-n", "8"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(PROMPT + "\\x1b[2J") and result.stdout.endswith("\n")
    assert "\x1b" not in result.stdout


@pytest.mark.torch
@pytest.mark.parametrize("name", ["Llama3-1.58-tiny", "bitnet-b1.58-2B-4T-tiny"])
def test_a_chat_is_what_transformers_makes_of_the_template(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bitconv.convert(FIXTURES / name, tmp_path / "chat.gguf")
    metadata = read_gguf(tmp_path / "chat.gguf").metadata
    reference = transformers.AutoTokenizer.from_pretrained(FIXTURES / name)
    said = "Who art thou?\n {{ bos_token }}"
    messages = [{"role": "user", "content": said}]
    expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert _in_template(metadata, tmp_path, said) == expected
    ids = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    tokenizer = load_tokenizer(metadata, tmp_path)
    assert tokenizer.encode(expected, add_special_tokens=False).ids == list(ids)
    shown = CliRunner().invoke(app, ["generate", str(tmp_path / "chat.gguf"), "-p", said, "--chat", "-n", "8"])
    answer = "".join(bitconv.generate(tmp_path / "chat.gguf", said, chat=True, max_tokens=8))
    assert shown.stdout == f"{answer}\n" and answer


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (None, "has no chat template"),
        ("{% for", "its chat template fails: TemplateSyntaxError"),
        ("{{ raise_exception('no system') }}", "its chat template fails: TemplateError: no system"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "its chat template fails: SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "its chat template fails: SecurityError"),
        ("{{ messages.append(1) }}", "its chat template fails: SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "its chat template fails: OverflowError"),
        ("{% include '/etc/passwd' %}", "its chat template fails: TypeError: no loader"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template: str | None, cause: str, tmp_path: Path) -> None:
    bitconv.convert(FIXTURES / "Llama3-1.58-tiny", tmp_path / "good.gguf")
    rebuilt = Rebuilt(tmp_path / "good.gguf")
    if template is None:
        del rebuilt.metadata["tokenizer.chat_template"]
    else:
        rebuilt.metadata["tokenizer.chat_template"] = template
    with pytest.raises(bitconv.BitconvError, match=cause):
        bitconv.generate(rebuilt.write(tmp_path / "bad.gguf"), "hello", chat=True)
