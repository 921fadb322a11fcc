"""Text tokenizers: train, compress, convert, load, inspect; tokenizers of images. The door is `python -m tokenizer`.

train.py            SentencePiece training; convert.py makes tokenizer.json of it, with the same ids
load.py             opens directories, .model files, tokenizer.json, hub ids
fingerprint.py      the hash that shards and checkpoints remember
encoder.py          many texts to ids, fast, for worker processes
document_tokens.py  which tokens enclose a document
inspection.py       what a vocabulary is made of and what it costs; inspection_plot.py draws its coverage curve
symbols.py          which user-defined and control symbols can be kept; model_proto.py: SentencePiece's format
characters.py       words as characters, for text recognition; clip_captions.py: as CLIP reads them
compression/        a smaller tokenizer out of a larger one
inputs/             documents and images out of files
visual/             tokenizers of images: `python -m tokenizer visual`
"""
