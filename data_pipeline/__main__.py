"""`python -m data_pipeline prepare | remap | replay | sample | sample-words | sample-images | pairs | pair-images |
synth-words`: text or images to shards, shards to a smaller tokenizer, the documents of a step, a first corpus, words
and photographs, image pairs to look at or to fit a tokenizer on, word images."""

import sys

from common.door import Command, Door

DOOR = Door(
    "data_pipeline",
    "From raw data to deterministic batches.",
    {
        "prepare": Command(
            "data_pipeline.shards.prepare_config:PrepareConfig",
            "data_pipeline.shards.prepare:run",
            "Turn raw text or images into token shards; continues if interrupted.",
        ),
        "remap": Command(
            "data_pipeline.shards.remap:RemapConfig",
            "data_pipeline.shards.remap:remap",
            "Turn shards into shards of a compressed tokenizer, without the text.",
        ),
        "replay": Command(
            "data_pipeline.replay:ReplayConfig",
            "data_pipeline.replay:show",
            "Print the exact documents of one step of a run.",
        ),
        "sample": Command(
            "data_pipeline.demo.text:SampleConfig",
            "data_pipeline.demo.text:sample",
            "Write a small corpus, split into train and validation.",
        ),
        "sample-words": Command(
            "data_pipeline.demo.words:SampleWordsConfig",
            "data_pipeline.demo.words:sample_words",
            "Split the words of texts into seen and unseen ones.",
        ),
        "sample-images": Command(
            "data_pipeline.demo.photographs:SampleImagesConfig",
            "data_pipeline.demo.photographs:sample_images",
            "Write crops of photographs, split by photograph.",
        ),
        "pairs": Command(
            "data_pipeline.pairs.sheet:PairsSheetConfig",
            "data_pipeline.pairs.sheet:draw_sheet",
            "Draw image pairs on a sheet, to look at before they are encoded.",
        ),
        "pair-images": Command(
            "data_pipeline.pairs.write_images:PairImagesConfig",
            "data_pipeline.pairs.write_images:run",
            "Write the images of image pairs, for a tokenizer.",
        ),
        "synth-words": Command(
            "data_pipeline.words.synthetic:SynthCommand",
            "data_pipeline.words.synthetic:synthesise",
            "Draw word images into an LMDB, for text recognition.",
        ),
    },
)
main = DOOR.main

if __name__ == "__main__":
    sys.exit(main())
