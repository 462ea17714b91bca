"""Asks the system for large pages, which it fills in a fifth of the time, and of which a step looks up fewer."""

import contextlib
import ctypes
import mmap

from torch import Tensor

_LARGE_PAGE = 2 << 20
_WORTH_IT = _LARGE_PAGE // 2  # less would leave more of a page unused than used


def ask_for_large_pages(part: Tensor, whole: Tensor) -> None:
    """For a contiguous part of a tensor that is about to be written for the first time; what is small is left alone.

    Pages that the part begins or ends within are asked for as far as `whole` goes. Does nothing where the system has
    no such thing.
    """
    if part.nbytes < _WORTH_IT:
        return
    begin, end = part.data_ptr(), part.data_ptr() + part.nbytes
    first = max(begin // _LARGE_PAGE * _LARGE_PAGE, -(-whole.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE)
    last = min(-(-end // _LARGE_PAGE) * _LARGE_PAGE, (whole.data_ptr() + whole.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)
