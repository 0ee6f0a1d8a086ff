"""The benchmark of a device: it runs, and an inexact device is seen."""

import pytest

from benchmarks import device
from interp.core.errors import InterpError
from interp.engine import forward


def test_the_device_s_numbers_are_compared_with_the_cpu_s(monkeypatch):
    said = []
    found = device.bench_device("cpu", cases=(), sizes=(), families=["llama"], log=said.append)
    assert found["exactness"] == {"llama": 0.0}
    assert said == ["llama: 0.0e+00"]
    calls, plain = [], forward.Runner.mlp_out

    def rounded(self, block, resid):
        calls.append(1)
        return plain(self, block, resid) * (1 + 1e-3 * (len(calls) % 2))

    monkeypatch.setattr(forward.Runner, "mlp_out", rounded)
    found = device.bench_device("cpu", cases=(), sizes=(), families=["llama"])
    assert found["exactness"]["llama"] > 1e-5


def test_a_device_that_torch_lacks_is_refused():
    with pytest.raises(InterpError, match="device nowhere"):
        device.bench_device("nowhere")
