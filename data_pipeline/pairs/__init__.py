"""Raw images as the records of a task, before they become ids (spec delvm.md, sections 2.2, 3, 4 and 9.3).

pairs.py         PairSet: the records
tasks.py         what each task makes of a photograph; corruption.py adds noise and rain
crops.py         one window from input and target
sheet.py         the first records as a picture (`pairs`); write_images.py stores them (`pair-images`)
"""
