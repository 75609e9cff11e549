"""The fastest precision in which this machine computes."""

from pathlib import Path

from trainables.trial import Precision

CPU_INFO = Path("/proc/cpuinfo")


def fastest_precision() -> Precision:
    """Return 'bfloat16' if this machine's GPU or, without a GPU, its processor multiplies bfloat16 matrices in
    hardware; otherwise 'float32'.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return fastest_cpu_precision()


def fastest_cpu_precision() -> Precision:
    """Return 'bfloat16' if this machine's processor has instructions that multiply bfloat16 matrices, otherwise
    'float32'.

    On Linux the processor's capabilities are read from /proc/cpuinfo, which is faster than importing torch.
    """
    if CPU_INFO.exists():
        flags = set(CPU_INFO.read_text(encoding="utf-8").split())
        return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"
    import torch

    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
