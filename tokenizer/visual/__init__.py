"""Visual tokenizers: an image to a grid of codes and back. The door is `python -m tokenizer visual`.

base.py            VisualTokenizer: what every kind offers; its two files, its hash
patches.py         a k-means codebook of pixel patches: no network, decode is a table look-up
network.py         the networks of arch.vq: vq, fsq and the VQGAN of the paper
load.py            load_visual_tokenizer: opens any of them, and run directories
reconstruction.py  PSNR, SSIM and how many codes are used
ids_file.py        files of the ids of many images
commands.py        what the commands take and do; comparison.py draws originals beside reconstructions
"""
