"""Text tokenizers: train, compress, convert, load, inspect. The door is `python -m tokenizer train|compress|inspect`.

documents.py        streams documents out of .jsonl, .json, .txt and .parquet files; names what is wrong, and where
folder_files.py     which files of a folder are data; text_streams.py opens them, json_text.py reads JSON,
                    broken_text.py is the policy for what is not UTF-8, corpus.py puts them together
sampling.py         a bounded random sample of a stream, the same for the same seed
symbols.py          which user-defined and control symbols can be kept
train.py            SentencePiece training
convert.py          SentencePiece model -> tokenizer.json with the same ids
model_proto.py      SentencePiece's model format
load.py             opens directories, .model files, tokenizer.json, hub ids
fingerprint.py      the hash that shards and checkpoints remember
inspection.py       what a vocabulary is made of and what it costs; inspection_plot.py draws its coverage curve
compress.py         a smaller tokenizer out of a larger one: counting.py, selection.py and derivation.py choose the
                    pieces, sliceable.py (sliceable_sentencepiece.py, sliceable_json.py) cuts them out
stretches.py        what counting.py may encode once although it occurs often
characters.py       words as characters, for text recognition
document_tokens.py  which tokens enclose a document
vocabulary_map.py   new ids -> the donor's
encoder.py          many texts to ids, fast, for worker processes
processes.py        worker processes that end with their parent
command_line.py     config dataclasses as command-line options
visual/             tokenizers of images, `python -m tokenizer visual`; its own front: tokenizer.visual
"""
