"""`make quickstart | ocr | vision`: from raw data to a report by the commands that a user would type.

walkthrough.py     what they share
commands_once.py   commands one after the other, each done once
text.py, words.py, images.py   the three
"""
