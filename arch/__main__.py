"""`python -m arch inspect | export | inherit | bypass`: what a shape costs, a model in transformers format, surgery."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, set_parsing_settings

from common.caches import use_writable_caches


def inspect(config: Path, sequence_length: int = 2048) -> None:
    """Print a shape's parameters and FLOPs by part, without allocating its weights.

    Args:
        config: a YAML of model fields (configs/*/models/*.yaml) or a transformers directory.
        sequence_length: tokens per sequence, which the cost of attention scores depends on.
    """
    from arch.pangu_pi.inspection import describe
    from arch.pangu_pi.load_config import load_model_config

    print(describe(load_model_config(config), sequence_length))


def export(
    model: str,
    out: Path,
    tokenizer: Path | None = None,
    dtype: str = "auto",
    tolerance: float = 1e-5,
    overwrite: bool = False,
) -> None:
    """Write a model in transformers format; refuses if it does not reload to the same logits.

    Args:
        model: a run, a checkpoint, an export, a plain LLaMA directory, a GGUF file, or the id of a hub model.
        out: the directory to write.
        tokenizer: a tokenizer directory to put beside the weights; by default the one found in the model's directory.
        dtype: the type of the written weights: auto (as stored), float32, bfloat16 or float16.
        tolerance: the largest difference of a reloaded logit, relative to the largest logit.
        overwrite: replace the directory if it exists.
    """
    from arch.pangu_pi.export import check_writable, export_model
    from arch.pangu_pi.load_weights import load_causal_lm
    from common.find_model import find_tokenizer, resolve_model

    source = resolve_model(model)
    found = find_tokenizer(source if tokenizer is None else tokenizer)
    if found is None and tokenizer is not None:
        raise FileNotFoundError(f"{tokenizer}: there is no tokenizer (tokenizer.json, a SentencePiece .model)")
    check_writable(out, overwrite)
    loaded = load_causal_lm(source, dtype=dtype)
    path = export_model(loaded, out, found, tolerance=tolerance, overwrite=overwrite)
    print(f"exported to {path}; the reloaded logits agree")


def inherit(options: Any) -> None:
    """Cut a small model out of a larger one: layers, heads, neurons, channels, vocabulary."""
    from arch.surgery.inherit import inherit as cut_out

    report = cut_out(options)
    print(f"{report.text()}\nwritten to {report.config.out}; the reloaded logits agree")


def bypass(options: Any) -> None:
    """Measure the loss without runs of consecutive layers, at every position."""
    from arch.surgery.bypass_command import bypass as measure

    print(measure(options))


COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "export": export,
    "inherit": inherit,
    "bypass": bypass,
}
# Commands whose options are the fields of a dataclass.
OPTIONS = {
    "inherit": "InheritConfig",
    "bypass": "BypassConfig",
}


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m arch", description="What a model costs, how it leaves, how it shrinks.", allow_abbrev=False
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").split("\n", 1)[0]
        subparser = ArgumentParser(description=summary, allow_abbrev=False)
        if name in OPTIONS:
            _add_options(subparser, _options_class(name))
        else:
            subparser.add_function_arguments(command, as_positional=False)
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def _add_options(parser: ArgumentParser, config_class: type) -> None:
    """An option for every field; `--calibration A B` takes several directories."""
    helps = {entry.arg_name: entry.description for entry in parse_from_object(config_class).params}
    parser.add_argument("--calibration", nargs="+", type=str, required=True, help=helps["calibration"])
    parser.add_class_arguments(config_class, as_positional=False, skip={"calibration"})


def _checked(parser: ArgumentParser, command: str, options: dict[str, Any]) -> dict[str, Any]:
    """The command's arguments; a value that its dataclass of options refuses ends the program like a wrong argument."""
    if command not in OPTIONS:
        return options
    config_class = _options_class(command)
    nested: dict[str, Any] = {field.name: field.default_factory for field in fields(config_class)}
    nested = {name: kind for name, kind in nested.items() if is_dataclass(kind)}
    try:
        return {"options": config_class(**options | {name: kind(**options[name]) for name, kind in nested.items()})}
    except ValueError as error:
        return parser.error(str(error))


def _options_class(command: str) -> type:
    """The dataclass of a command's options."""
    return getattr(importlib.import_module(".surgery.options", __package__), OPTIONS[command])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0, or 1 with one line on stderr for input that cannot be used (the parser exits with 2)."""
    use_writable_caches()
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    options = parsed[parsed.command].as_dict()
    try:
        COMMANDS[parsed.command](**_checked(parser, parsed.command, options))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"arch {parsed.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
