"""Part 1: what the device can do at best, on random data: products, copies. All other rates are seen against these."""

import torch

from gpu_check import device as devices
from gpu_check.assignment import Assignment
from gpu_check.record import Record, read, record_path

PRODUCTS = {"bfloat16": "product, bf16", "float32": "product, float32"}


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """Products of square matrices and copies, each the median of several."""
    edge, copied, repeats = (128, 2**20, 3) if assignment.tiny else (8192, 2**30, 10)
    record.facts(edge=edge, copied_bytes=copied)
    for name, dtype, tf32 in (
        (PRODUCTS["bfloat16"], torch.bfloat16, False),
        ("product, tf32", torch.float32, True),
        (PRODUCTS["float32"], torch.float32, False),
    ):
        with record.step(name), devices.tf32(tf32):
            record.figure(name, product_rate(edge, dtype, device, repeats) / 1e12, "TFLOP/s")
    with record.step("copies"):
        for name, rate in copy_rates(copied, device, repeats).items():
            record.figure(name, rate / devices.GIGABYTE, "GB/s")


def product_rate(edge: int, dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    """Floating point operations per second, 2 n^3 a product of n x n matrices."""
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype, generator=random) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * edge**3 / devices.seconds(lambda: torch.mm(a, b, out=out), device, repeats, warm=3)


def copy_rates(size: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Bytes per second; a copy on the device counts what it reads and what it writes."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8)
    there, target = source.to(device), torch.empty(size, dtype=torch.uint8, device=device)
    rates = {"copy on the device": 2 * size / devices.seconds(lambda: target.copy_(there), device, repeats)}
    sources = {"copy to the device, pageable": source}
    if device.type == "cuda":
        sources["copy to the device, pinned"] = source.pin_memory()
    for name, memory in sources.items():
        taken = devices.wall_seconds(lambda m=memory: target.copy_(m, non_blocking=True), device, repeats)
        rates[name] = size / taken
    return rates


def product_ceiling(assignment: Assignment, precision: str) -> float | None:
    """Operations per second of the product in ``precision`` as this part measured it in the same folder; None if not."""
    content = read(record_path(assignment.out_folder, "ceilings"))
    rows = [row for row in (content or {"figures": []})["figures"] if row["name"] == PRODUCTS[precision]]
    return rows[0]["value"] * 1e12 if rows and rows[0]["value"] else None
