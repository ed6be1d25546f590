"""What has to be set before torch or a Triton kernel is imported."""

import os

# Tiny tensors are fastest on one thread; the real model asks for more itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
