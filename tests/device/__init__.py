"""A GPU in the test suite without a GPU, and what to run on the first machine that has one (docs/testing.md).

pretended.py          tensors that say they are on `cuda:0`, with real values; wrong devices raise as they do there
observations.py       what is written down meanwhile: host waits by line, operators, large tensors, attention kernels
attention_kernels.py  which kernel CUDA's scaled_dot_product_attention would take
stand_ins.py          kernels of attention that CUDA alone has, computed exactly on a pretended device
loss_kernels.py       the same for the loss
task_step.py          one micro-batch of any task of tests/pretrain/task_cases.py, as the engine would run it
graphs.py             how many graphs torch.compile makes of it, and where it breaks
measured_run.py       a training run in a process of its own, and what it took of the device
gpu_check.py          `make gpu-check`
"""
