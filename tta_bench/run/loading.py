"""From pixels to the tensors that a method receives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(pixels: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Convert uint8 (B, H, W, 3) to a new tensor (B, 3, H, W) in [0, 1] on ``device``; asynchronous from pinned memory."""
    planes = torch.from_numpy(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2)
    if device.type == "cuda":  # one kernel in place of three: it takes the device from the steps of earlier batches
        return torch.div(
            planes, torch.tensor(255, dtype=dtype), out=torch.empty(planes.shape, dtype=dtype, device=device)
        )
    return planes.contiguous().to(dtype).div_(255)
