"""Word accuracy of text recognisers (spec ocr_scaling.md, section 6).

ocr.py           benchmark folders, word by word
recognisers.py   ours and ONNX ones behind one call
sheet.py         pictures of words with what was read in them
"""
