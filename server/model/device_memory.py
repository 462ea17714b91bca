"""How much of a device's memory nobody uses."""

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """What could still be taken there, of a GPU or of the machine; None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later would count as taken
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines)
    return next((int(words[1]) << 10 for words in fields if words[0] == "MemAvailable:"), None)
