"""Before torch is imported: tiny tensors are fastest on one thread; the real model asks for more itself."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
