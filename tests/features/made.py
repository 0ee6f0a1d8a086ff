"""Random dictionaries for tests."""

import torch

from interp.features.dictionary import Dictionary


def random_dictionary(model, read="resid_post", written=None, *, size=40, seed=0, **facts):
    """A random dictionary of layer 1 of a model, whose features fire on some tokens only."""
    written = written or read
    widths = [model.n_heads * model.d_head if s == "z" else model.d_model for s in (read, written)]
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    given = {
        "W_enc": drawn(widths[0], size) / widths[0] ** 0.5,
        "b_enc": 0.1 * drawn(size) - 0.2,
        "W_dec": drawn(size, widths[1]) / widths[1] ** 0.5,
        "b_dec": 0.1 * drawn(widths[1]),
        "layer": 1,
    }
    given = {n: v.to(model.dtype) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    return Dictionary(**{**given, "read": read, "written": written, **facts})


def linear_dictionary(model, rows, layer, *, written="resid_post"):
    """Features d_i . y + 100 of orthonormal rows d: always active; no error if d is square."""
    rows = rows.to(model.dtype)
    return Dictionary(
        W_enc=rows.T.contiguous(),
        b_enc=torch.full((len(rows),), 100.0, dtype=model.dtype),
        W_dec=rows,
        b_dec=-100.0 * rows.sum(0),
        layer=layer,
        read=written,
        written=written,
    )
