import time
from typing import Any

import psutil
import pytest
import torch

from cddpm.training import watch
from cddpm.training.watch import Watch

CPU = torch.device("cpu")


def test_a_stage_is_sampled_and_timed() -> None:
    before = time.time()
    with Watch(CPU, every_seconds=0.01) as seen:
        time.sleep(0.2)
    record = seen.record("encoder", "e1", workers=2, gpus=3.0)
    assert before <= record.began <= time.time()
    assert 0.2 <= record.seconds < 60
    assert record.gpu_seconds == pytest.approx(3 * record.seconds)
    assert (record.stage, record.fingerprint, record.workers, record.gpu) == ("encoder", "e1", 2, None)
    assert record.host
    assert record.processor
    assert len(record.samples) >= 2
    times = [sample["time"] for sample in record.samples]
    assert times == sorted(times)
    for sample in record.samples:
        assert set(sample) == {"time", "cpu_percent", "memory_mb", "memory_percent", "process_mb"}
        assert 0 < sample["process_mb"] < sample["memory_mb"] < psutil.virtual_memory().total / 2**20


def test_a_long_stage_is_told_by_a_few_hundred_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_MOST_SAMPLES", 8)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 60

    seen = Watch(CPU, every_seconds=1.0)
    monkeypatch.setattr(seen._over, "wait", wait)
    monkeypatch.setattr(seen, "_sample", lambda: {"time": float(sum(waits))})
    seen._run()
    assert len(seen._samples) < 8
    gaps = {b["time"] - a["time"] for a, b in zip(seen._samples, seen._samples[1:], strict=False)}
    assert len(gaps) == 1  # evenly spaced over all of it
    assert max(waits) >= 8


def test_an_error_passes_and_ends_the_sampling() -> None:
    seen = Watch(CPU, every_seconds=0.01)
    with pytest.raises(KeyError), seen:
        raise KeyError("x")
    assert not seen._thread.is_alive()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_sampled() -> None:
    held: Any = torch.zeros(256 * 2**18, device="cuda")  # 256 MiB
    with Watch(torch.device("cuda"), every_seconds=0.05) as seen:
        time.sleep(0.2)
    record = seen.record("checkpoint", "c1", gpus=1.0)
    assert record.gpu == torch.cuda.get_device_name()
    assert all(sample["gpu_memory_mb"] >= 256 for sample in record.samples)
    assert all(0 <= sample.get("gpu_percent", 0) <= 100 for sample in record.samples)
    del held
