"""Models, what they cost, and how they leave: imports torch and transformers only, and knows nothing of training.

pangu_pi/         PanGu-pi and, with its additions off, LLaMA: configuration, modeling files, the two additions
config_file.py    fields from YAML or JSON, names checked
outside_files.py  JSON and YAML that may come from elsewhere: bounded, then typed; every room reads through it
model_config.py   load_model_config: YAML of configs/models/, a transformers directory or a mapping -> PanguPiConfig
loading.py        load_causal_lm: an export, a checkpoint, a plain LLaMA directory or a GGUF file -> the model
tokenizer_files.py  when a folder holds a tokenizer, and the known list of its files that goes into an export
caches.py         where libraries keep their caches when HOME cannot be written
packed_attention.py  documents of packed rows kept apart without a mask of S x S numbers
accounting.py     count_parameters, count_flops: exact, by arithmetic, for any size; inspection.py prints them
export.py         export_model: transformers format, verified by reload_check.py in a fresh process
parseq/           text recognition; its own front: arch.parseq
visual/           images to codes and back; its own front: arch.vq
clip4str/         text recognition on top of CLIP, with PARSeq's decoder twice; its own front: arch.clip4str
surgery/          a smaller model out of a larger one: python -m arch inherit | bypass
__main__.py       python -m arch inspect | export | inherit | bypass
"""
