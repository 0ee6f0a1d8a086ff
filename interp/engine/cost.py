"""The least arithmetic a patching sweep needs, and how fast this machine computes."""

from __future__ import annotations

import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from interp.core.errors import InterpError
from interp.core.files import cache_dir, content_key
from interp.core.records import read_sealed, write_sealed
from interp.engine.architecture import Decoder
from interp.engine.sites import EDITED
from interp.engine.sweep import Cells

PACE: dict[str, float] = {}
"""What `note_pace` last noted in this process, by the key of the file."""
FORM = 1


def note_pace(
    method: str,
    model_hash: str,
    device: torch.device,
    flops: float,
    seconds: float,
    *,
    keep: bool,
) -> None:
    """Note the time of a finished run, from which the next duration is estimated.

    With `keep` it is written into the cache too, where other processes of this machine find it.
    """
    if flops <= 0:
        return
    key = _pace_key(method, model_hash, device)
    PACE[key] = seconds / flops
    if keep:
        with suppress(InterpError):  # the cache is full or read-only
            write_sealed(_pace_path(key), "pace", FORM, {"seconds": seconds / flops}, key=key)


def pace_of(method: str, model_hash: str, device: torch.device) -> float | None:
    """Seconds per operation in the last run of a method, by any process; None before the first."""
    key = _pace_key(method, model_hash, device)
    with suppress(InterpError, KeyError, TypeError, ValueError):
        return float(read_sealed(_pace_path(key), "pace", FORM, key=key)[0]["seconds"])
    return PACE.get(key)


def _pace_key(method: str, model_hash: str, device: torch.device) -> str:
    """What a pace depends on; machines may share a cache."""
    machine = [platform.node(), torch.get_num_threads()]
    return content_key([method, model_hash, str(device), *machine])


def _pace_path(key: str) -> Path:
    return cache_dir() / "paces" / f"{key}.json"


LOSS = 1.4
"""How many times as long as its operations in one matrix product a run takes, before one of the
model was timed."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The estimated cost of a measurement.

    Attributes:
        runs: number of patched runs.
        flops: floating-point operations that cannot be avoided.
        seconds: the estimated time.
        timed: whether the estimate uses the measured speed of an earlier run of this method and
            model. If not, it uses the speed of a matrix product, which was wrong by up to a factor
            of ten.
    """

    runs: int
    flops: float
    seconds: float
    timed: bool

    @property
    def words(self) -> str:
        """The time in words; a range of a factor of 9 if no run was timed."""
        return f"about {duration(self.seconds)}" if self.timed else roughly(self.seconds)


def forecast(
    method: str,
    model_hash: str,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    flops: float,
) -> Cost:
    """The cost of some operations at the speed of the model's last run of the method.

    Before the first run: `LOSS` times what this machine's matrix products would take. Once it is
    running, its progress is a better guide.
    """
    pace = pace_of(method, model_hash, device)
    per = LOSS / _rate(dtype, device, time.monotonic() // 60) if pace is None else pace
    return Cost(runs=runs, flops=flops, seconds=per * flops, timed=pace is not None)


@lru_cache(maxsize=4)
def _rate(dtype: torch.dtype, device: torch.device, minute: float) -> float:
    """The machine's speed, measured once a minute at most."""
    return matmul_rate(dtype, device)


def duration(seconds: float) -> str:
    """A number of seconds as text."""
    if seconds < 1.5:
        return "a second"
    if seconds < 100:
        return f"{seconds:z.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 100:
        return f"{minutes:z.0f} min"
    return f"{hours:z.0f} hours" if hours < 48 else f"{hours / 24:z.0f} days"


def roughly(seconds: float) -> str:
    """An untimed duration: a range of a factor of 9 around it."""
    if seconds < 0.5:
        return "seconds"
    return f"between {duration(seconds / 3)} and {duration(3 * seconds)}"


def floor_flops(decoder: Decoder, cells: Cells, lengths: np.ndarray, site: str) -> float:
    """The least number of floating-point operations of a sweep.

    It counts matrix products only. The patched layer is computed at the patched positions (for
    resid_pre, k and v, from the first patched position on). Later layers are computed from the
    first patched position on. In the last layer these are the keys and values of the same
    positions, and the rest of the block at the last position.
    """
    if not len(cells):
        return 0.0
    attn, d = decoder.blocks[0].attn, decoder.d_model
    wide = attn.n_heads * attn.d_head
    kv, qo, mlp = (decoder.flops[part] for part in ("kv", "qo", "mlp"))
    length = lengths[cells.prompt].astype(float)
    start = np.minimum.reduceat(cells.positions, cells.first).astype(float)
    size = length - start
    mixing = 4.0 * wide * (size * (start + 1 + length) / 2)
    mixing_last = 4.0 * wide * length
    full = size * (kv + qo + mlp) + mixing
    last = size * kv + qo + mlp + mixing_last
    n_layers = len(decoder.blocks)
    after = n_layers - 1 - cells.layer
    total = np.where(after > 0, np.maximum(after - 1, 0) * full + last, 0.0)
    at_end = np.where(after == 0, np.minimum(cells.count, 1), cells.count)
    if site in EDITED:
        total += np.where(after == 0, last, full)
    elif site in ("z", "q", "pattern", "attn_out", "resid_mid"):
        head = 2.0 * d * (wide if cells.component[0] < 0 else attn.d_head)
        total += at_end * (mlp + (head if site not in ("attn_out", "resid_mid") else 0.0))
    return float(total.sum())


def matmul_rate(dtype: torch.dtype, device: torch.device, *, seconds: float = 0.15) -> float:
    """Floating-point operations per second of a typical matrix product, the best of many runs."""
    left = torch.randn(1024, 768, dtype=dtype, device=device)
    right = torch.randn(768, 3072, dtype=dtype, device=device)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds or best == float("inf"):
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * 1024 * 768 * 3072 / best
