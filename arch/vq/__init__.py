"""Networks of the visual tokenizers: images to codes and back.

configuration.py   VisualTokenizerConfig: every size of the small network; its FLOPs by arithmetic
vq_model.py        VqModel: a convolutional autoencoder around a VQ or FSQ bottleneck
vqgan.py           the f16 VQGAN of the paper, from published weights; the only file that imports diffusers
perceptual.py      PerceptualDistance: how different two images look to a frozen classifier

`VqModel` and `Vqgan` share `encode` (images in [0, 1] to ids), `decode` (ids to images) and `codebook`.
"""
