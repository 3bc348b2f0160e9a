"""Which device and arithmetic a model runs on."""

from typing import Literal

import torch

from mmcd.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bf16", "fp32"]


def choose_device(device: Device = "auto") -> torch.device:
    """Return the asked device, or the fastest present one for ``auto``.

    Raises:
        ConfigError: The device is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if present[name]))
    if not present.get(device, False):
        raise ConfigError(f"The device {device!r} is not available here.", "Use --device auto or cpu.")
    return torch.device(device)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of the arithmetic: for ``auto``, bfloat16 where the processor has it natively, else float32."""
    if precision == "auto":
        return torch.bfloat16 if _native_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Emulated bfloat16 is slower than float32, so only processors with the instructions count.
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return False
