"""What all tests run under."""

import os

# Tensors are tiny here: a second thread of torch's only waits for its turn, which on a busy machine takes long. It is
# read when torch is imported. Tests of kernels and of the decoder have the machine's threads, by conftest.py there.
os.environ.setdefault("OMP_NUM_THREADS", "1")
