"""Figures taken for granted where nothing was measured: each a value, its unit, and where it comes from.

Three of them follow from published measurements of one machine (RTX 2080, 448 GB/s; i9-10900X, DDR4-3200 on four
channels, 102 GB/s): Qwen3-8B and Qwen3-4B in Q4_K_M wholly on the card at 69.3 and 110.6 tok/s give the share of the
card's bandwidth that is attained and the cost of an operation; Qwen3-30B-A3B with 36 of 48 layers' experts in RAM at
36.7 tok/s then gives the share of RAM's bandwidth that products with experts attain.
"""

from dataclasses import dataclass

_LLMFIT = "github.com/AlexsJones/llmfit, pull request"


@dataclass(frozen=True)
class Assumption:
    """One figure. unit: "" for a share."""

    name: str
    value: float
    unit: str
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value:g}{' ' + self.unit if self.unit else ''} ({self.source})"


DEVICE_ATTAINED = Assumption("share of a device's bandwidth that weights are read at", 0.85, "", f"{_LLMFIT} 773")
NODE_US = Assumption("an operation on a device", 2.5, "us", f"{_LLMFIT} 773")
EXPERTS_ATTAINED = Assumption("share of RAM bandwidth that experts are read at", 0.45, "", f"{_LLMFIT} 755")
HOST_ATTAINED = Assumption(
    "share of RAM bandwidth that dense weights are read at",
    0.75,
    "",
    "llama.cpp issue 19480: 19 GB at 3.54 tok/s on DDR5-5600",
)
JOIN_US = Assumption("handing a layer to the CPU and back", 40.0, "us", "two copies of 8 us, two waits of about 10 us")
CACHED_LAYER_US = Assumption(
    "what a layer with slots costs besides",
    410.0,
    "us",
    "an RTX 2060 fork whose cache breaks even at 45.9 % hits; moetune's own is not measured on a GPU",
)
DEVICE_OPS_A_BYTE = Assumption(
    "a device's operations for each byte that it attains",
    85.0,
    "",
    "RTX 4090: 4,668 tok/s of prompt, Llama 3 8B, dmatora/LLM-inference-speed-benchmarks issue 10",
)
CORE_GFLOPS = Assumption("products with a batch on a CPU core", 30.0, "Gop/s", "probed on an AVX-512 EPYC core, Q4_0")
CORE_GBPS = Assumption("RAM bandwidth that one core can draw", 20.0, "GB/s", "probed on an EPYC core: 24-31 GB/s read")
HOST_NODE_US = Assumption("an operation on the CPU", 1.0, "us", "threads meet after each; probed without them: 0.1 us")
RAM_GBPS = Assumption("RAM bandwidth", 50.0, "GB/s", "two channels of DDR4-3200")
DEVICE_GBPS = Assumption("device bandwidth", 400.0, "GB/s", "a card of the middle class")
LINK_GBPS = Assumption("link bandwidth", 12.0, "GB/s", "PCIe 3.0 with 16 lanes, or 4.0 with 8")
