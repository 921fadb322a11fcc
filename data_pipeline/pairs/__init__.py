"""Raw images as the records of a task, before they become ids (docs/methods/delvm.md: pairs).

pairs.py         PairSet: the records
tasks.py         what each task makes of a photograph; corruption.py adds noise and rain
crops.py         one window from input and target
sheet.py         the first records as a picture (`pairs`); write_images.py stores them (`pair-images`)
"""
