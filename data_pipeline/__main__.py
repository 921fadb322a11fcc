"""`python -m data_pipeline prepare | remap | replay | sample | sample-words | sample-images | pairs | pair-images |
synth-words`: text or images to shards, shards to a smaller tokenizer, the documents of a step, a first corpus, words
and photographs, image pairs to look at or to fit a tokenizer on, word images."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from common.caches import use_writable_caches
from common.command_line import Parser, add_config_arguments, end_interrupted, make_config


def prepare_command(config: Any) -> None:
    """Write token shards, and say what they hold and what was rejected."""
    from data_pipeline.shards.prepare import prepare, submit, summary

    meta = submit(config) if config.executor == "slurm" else prepare(config)
    if meta is None:
        print(f"submitted; {config.output}/meta.json appears when the jobs are complete")
    else:
        print(summary(meta, config.output))


def remap_command(config: Any) -> None:
    """Write the shards of a smaller tokenizer, and say what they hold."""
    from data_pipeline.shards.remap import remap

    print(remap(config).to_text())


def replay_command(config: Any) -> None:
    """Print the documents of one step."""
    from data_pipeline.replay import as_json, as_text, replay

    for line in (as_json if config.json else as_text)(replay(config), config.characters):
        print(line)


def sample_command(config: Any) -> None:
    """Write a small corpus, and say what it holds."""
    from data_pipeline.demo.text import sample

    print(sample(config).to_text())


def sample_words_command(config: Any) -> None:
    """Write two word lists, and say what they hold."""
    from data_pipeline.demo.words import sample_words

    print(sample_words(config))


def sample_images_command(config: Any) -> None:
    """Write crops of photographs, and say of which."""
    from data_pipeline.demo.photographs import sample_images

    print(sample_images(config))


def pairs_command(config: Any) -> None:
    """Draw records of images, and say what they are."""
    from data_pipeline.pairs.sheet import draw_sheet

    print(draw_sheet(config))


def pair_images_command(config: Any) -> None:
    """Write the images of records, and say how many."""
    from data_pipeline.pairs.write_images import write_pair_images

    print(f"{config.output}: {write_pair_images(config):,} images")


def synth_words_command(config: Any) -> None:
    """Draw word images, and say what they show."""
    from data_pipeline.words.synthetic import synthesise

    print(synthesise(config))


def commands() -> dict[str, tuple[type, Callable[[Any], None], str]]:
    """Config class, function and summary of each command. Worker processes import this module, so imports are here."""
    from data_pipeline.demo.photographs import SampleImagesConfig
    from data_pipeline.demo.text import SampleConfig
    from data_pipeline.demo.words import SampleWordsConfig
    from data_pipeline.pairs.sheet import PairsSheetConfig
    from data_pipeline.pairs.write_images import PairImagesConfig
    from data_pipeline.replay import ReplayConfig
    from data_pipeline.shards.prepare_config import PrepareConfig
    from data_pipeline.shards.remap import RemapConfig
    from data_pipeline.words.synthetic import SynthCommand

    return {
        "prepare": (
            PrepareConfig,
            prepare_command,
            "Turn raw text or images into token shards; continues if interrupted.",
        ),
        "remap": (RemapConfig, remap_command, "Turn shards into shards of a compressed tokenizer, without the text."),
        "replay": (ReplayConfig, replay_command, "Print the exact documents of one step of a run."),
        "sample": (SampleConfig, sample_command, "Write a small corpus, split into train and validation."),
        "sample-words": (
            SampleWordsConfig,
            sample_words_command,
            "Split the words of texts into seen and unseen ones.",
        ),
        "sample-images": (
            SampleImagesConfig,
            sample_images_command,
            "Write crops of photographs, split by photograph.",
        ),
        "pairs": (PairsSheetConfig, pairs_command, "Draw image pairs on a sheet, to look at before they are encoded."),
        "pair-images": (PairImagesConfig, pair_images_command, "Write the images of image pairs, for a tokenizer."),
        "synth-words": (SynthCommand, synth_words_command, "Draw word images into an LMDB, for text recognition."),
    }


def build_parser() -> ArgumentParser:
    """The parser of all commands; every option is a field of the command's config."""
    parser = Parser(prog="python -m data_pipeline", description="From raw data to deterministic batches.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, (config_class, _, summary) in commands().items():
        subparser = Parser(description=summary)
        add_config_arguments(subparser, config_class)
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0; 1 and one line on stderr for unusable input; 130 if interrupted (the parser exits with 2)."""
    use_writable_caches()
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    config_class, command, _ = commands()[parsed.command]
    config = make_config(parser, config_class, parsed[parsed.command].as_dict())
    try:
        command(config)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"data_pipeline {parsed.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return end_interrupted(f"data_pipeline {parsed.command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
