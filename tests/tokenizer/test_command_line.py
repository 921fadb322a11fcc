"""`python -m tokenizer`: what it prints, and its exit codes."""

from pathlib import Path

import pytest

from tests.trained import write_jsonl
from tokenizer.__main__ import main


def test_train_then_inspect(corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "tok")
    options = ["--vocab_size", "1500", "--user_defined_symbols", "<a>", "<b>"]
    assert main(["train", "--input", str(corpus_file), str(corpus_file), "--output", output, *options]) == 0
    assert "1,500 pieces" in capsys.readouterr().out
    sample = [f"one={corpus_file}", f"two={corpus_file}"]
    assert main(["inspect", "--tokenizer", output, "--sample", *sample, "--width", "128"]) == 0
    printed = capsys.readouterr().out
    assert "unreachable pieces 0" in printed and "width 128" in printed and printed.count("coverage:") == 2


def test_options_from_a_file(corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(f"input: [{corpus_file}]\nvocab_size: 1300\noutput: {tmp_path / 'a'}\n", encoding="utf-8")
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "b")]) == 0
    assert "1,300 pieces" in capsys.readouterr().out
    assert (tmp_path / "b" / "tokenizer.json").is_file() and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["tran"], "tran"),
        (["train", "--input", "x", "--output", "y", "--vocab_sise", "8"], "vocab_sise"),
        (["train", "--input", "x", "--output", "y", "--vocab_size", "many"], "vocab_size"),
        (["train", "--input", "x", "--output", "y", "--vocab_size", "-1"], "vocab_size: must be at least 1"),
        (["train", "--input", "x", "--output", "y", "--model_type", "wordpiece"], "model_type"),
        (["train", "--input", "x"], "output"),
        (["inspect", "--tokenizer", "x", "--sample", "nolabel"], "must be label=PATH"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_unusable_input_exits_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--input", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err == f"tokenizer train: {tmp_path / 'no.jsonl'}: no such file or directory\n"
    small = write_jsonl(tmp_path / "small.jsonl", ["few words"])
    assert main(["train", "--input", str(small), "--output", str(tmp_path / "o")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tokenizer train: vocab_size: this text supports at most")
    assert main(["inspect", "--tokenizer", str(tmp_path / "gone" / "tokenizer.json")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["train", "--help"])
    assert exited.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for phrase in ("Share of the sample's characters", "Strings that are one token", "One token per digit."):
        assert phrase in text
