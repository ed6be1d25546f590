"""Where kernel tests run: on the GPU when there is one, else on the CPU under Triton's interpreter."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
