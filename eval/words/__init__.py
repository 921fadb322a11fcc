"""Word accuracy of text recognisers (docs/methods/ocr.md: evaluation).

ocr.py           benchmark folders, word by word
recognisers.py   ours and ONNX ones behind one call
sheet.py         pictures of words with what was read in them
"""
