"""`python -m tokenizer train | compress | inspect`: make a tokenizer, make it smaller, see what it is made of.

`python -m tokenizer visual train | import-vqgan | encode | decode | inspect` does the like for images.
"""

import sys

from common.door import Command, Door, Group

VISUAL = "tokenizer.visual.commands"
DOOR = Door(
    "tokenizer",
    "Train, compress and inspect tokenizers.",
    {
        "train": Command(
            "tokenizer.train:TrainConfig",
            "tokenizer.train:train_tokenizer",
            "Train a SentencePiece tokenizer on a sample of a corpus.",
        ),
        "compress": Command(
            "tokenizer.compression.compress_config:CompressConfig",
            "tokenizer.compression.compress:compress",
            "Cut a smaller tokenizer out of a larger one, by what a corpus uses.",
        ),
        "inspect": Command(
            "tokenizer.inspection:InspectConfig",
            "tokenizer.inspection:inspect_tokenizer",
            "Vocabulary, fit to each language, coverage, and cost in a model.",
        ),
        "visual": Group(
            "Train, use and inspect tokenizers of images.",
            {
                "train": Command(
                    f"{VISUAL}:VisualTrainConfig",
                    f"{VISUAL}:train",
                    "Fit a k-means codebook of patches. A convolutional VQ or FSQ tokenizer is a run of the trainer "
                    "instead, and the other commands take its directory: deepspeed pretrain/train.py --config "
                    "configs/vq/runs/vq_cpu.yaml --task.train '[images.parquet]' --output runs/delvm/vq",
                ),
                "import-vqgan": Command(
                    f"{VISUAL}:VisualImportConfig",
                    f"{VISUAL}:import_vqgan",
                    "Published weights of the f16 VQGAN to a tokenizer.",
                ),
                "encode": Command(f"{VISUAL}:VisualEncodeConfig", f"{VISUAL}:encode", "Images to ids."),
                "decode": Command(f"{VISUAL}:VisualDecodeConfig", f"{VISUAL}:decode", "Ids to images."),
                "inspect": Command(
                    f"{VISUAL}:VisualInspectConfig",
                    f"{VISUAL}:inspect",
                    "PSNR, SSIM and code usage per set of images, with pictures.",
                ),
            },
        ),
    },
    spellings={"--out": ["--output"], "--no_closure": ["--closure", "false"]},
)
main = DOOR.main

if __name__ == "__main__":
    sys.exit(main())
