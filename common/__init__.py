"""The ground floor: file formats and habits that several rooms share. It imports no room.

untrusted_files.py  JSON and YAML that may come from elsewhere: bounded, then typed; every room reads through it
atomic_files.py     files and folders that are either whole or absent: every room writes through it
token_shards.py     meta.json of a directory of token shards; vocabulary_map.py of a compressed tokenizer
tokenizer_files.py  when a folder holds a tokenizer, and the known list of its files that goes into an export
find_model.py       from what a person names to the files of a model
config_file.py      fields from YAML or JSON, names checked
door.py             a room's commands, from a table; command_line.py dataclasses as their options
errors.py           what a user can mend
folder_files.py     which files of a folder are data; text_streams.py opens them, json_text.py reads JSON
processes.py        worker processes that end with their parent
caches.py           where libraries keep their caches when HOME cannot be written
"""
