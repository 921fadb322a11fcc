"""Networks of the visual system: images to codes and back, and what a language model over codes has besides.

configuration.py   VisualTokenizerConfig: every size of the small network; its FLOPs by arithmetic
vq_model.py        VqModel: a convolutional autoencoder around a VQ or FSQ bottleneck
vqgan.py           the f16 VQGAN of the paper, from published weights; the only file that imports diffusers
perceptual.py      PerceptualDistance: how different two images look to a frozen classifier
factorised_embedding.py, initialisation.py, accounting.py   a language model's input through a frozen codebook, how
                   DeLVM starts, what it costs

`VqModel` and `Vqgan` share `encode` (images in [0, 1] to ids), `decode` (ids to images) and `codebook`.
"""
