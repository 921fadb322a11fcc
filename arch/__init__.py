"""Models, what they cost, and how they leave: imports torch and transformers only, and knows nothing of training.

pangu_pi/     PanGu-pi and, with its additions off, LLaMA: shape, weights, costs, export
parseq/       text recognition; clip4str/ puts it on top of CLIP
vq/           images to codes and back
delvm/        what a language model over such codes has besides
surgery/      a smaller model out of a larger one: `python -m arch inherit | bypass`
__main__.py   `python -m arch inspect | export | inherit | bypass`, done in commands.py; device.py: where they run
"""
