"""The number format that a network computes in."""

from __future__ import annotations

import torch


def compute_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What forward and backward compute in besides float32: bfloat16, float16, or None.

    `auto` takes bfloat16 on GPUs that have it and on CPUs with matrix units for it (AMX); elsewhere
    it is emulated, measured six times slower than float32. Older GPUs with half-precision units
    (compute capability 7) take float16.
    """
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None
