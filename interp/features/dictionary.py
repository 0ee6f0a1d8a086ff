"""A dictionary of features: an SAE or a transcoder, what it reads and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.core.components import SITES, within
from interp.core.errors import InterpError, unknown
from interp.core.records import Record
from interp.core.statistics import Estimate
from interp.engine.architecture import Decoder, Norm, normed
from interp.engine.decode import CHANGEABLE
from interp.models.language_model import LanguageModel
from interp.runs.stored_runs import site_width

DictionaryKind = Literal["relu", "topk", "jumprelu", "batch_topk"]
"""Which features are active. batch_topk has a threshold from its training, and acts as jumprelu."""

MLP_READS = ("mlp_in", "mlp_normed")
"""What an MLP reads, after its norm: with the norm's weight and bias, and without them."""


@dataclass(frozen=True, kw_only=True)
class DictionaryCard:
    """How well a dictionary describes a site on some texts; `interp.features.dictionary_card`.

    Attributes:
        unexplained: fraction of the variance of the written site that it does not explain.
        l0: active features of a token.
        loss: mean loss of the texts in nats, nothing changed.
        loss_added: loss added when the reconstruction replaces the site.
        loss_added_by_mean: loss added when the site's mean over these tokens replaces it.
        dead: features that no token activates.
        size: features in all.
        tokens: number of tokens.
        texts: number of texts.
    """

    unexplained: Estimate
    l0: Estimate
    loss: Estimate
    loss_added: Estimate
    loss_added_by_mean: Estimate
    dead: int
    size: int
    tokens: int
    texts: int

    def __str__(self) -> str:
        return (
            f"variance unexplained {self.unexplained}; {self.l0.mean:z.1f} features a token; loss "
            f"{self.loss.mean:z.3f} nats, {self.loss_added.mean:+z.3f} with the reconstruction, "
            f"{self.loss_added_by_mean.mean:+z.3f} with the mean; {self.dead} of {self.size} "
            f"features silent on {self.tokens} tokens"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dictionary(Record):
    """Features f of a site, and what each writes.

        f = act(x W_enc + b_enc),   y = f W_dec + b_dec + x skip + e

    x is the site read and y the site written. An SAE reads and writes one site; a transcoder reads
    what an MLP reads and writes mlp_out. With `centred`, x - b_dec takes the place of x in f. The
    error e is what is left of y: it is never dropped. act, with `pre` its argument:

        relu        max(pre, 0)
        topk        max(pre, 0) of the k largest, 0 of the others
        jumprelu    max(pre, 0) where pre > threshold, else 0; batch_topk is the same

    With `signed`, top-k and thresholds keep pre itself, without the max.

    Attributes:
        W_enc: (d_read, features).
        b_enc: (features,).
        W_dec: (features, d_written); row i is what feature i writes.
        b_dec: (d_written,).
        layer: the layer of both sites.
        read: a site, or one of `MLP_READS`.
        written: a site that can be changed.
        kind: the activation.
        threshold: (features,), for jumprelu and batch_topk.
        k: for topk.
        centred: whether b_dec is subtracted from what is read.
        signed: whether active features may be negative.
        skip: (d_read, d_written), the linear part of a skip transcoder.
        name: a name, for tables.
        model: the model that it was trained on, as its file says.
        model_hash: the hash of that model's weights; "" if it is not known.
        card: its quality, if it was measured.

    Raises:
        InterpError: shapes that do not fit, numbers that are not finite, an unknown kind or site,
            or no threshold or k where one is needed.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    layer: int
    read: str
    written: str
    kind: DictionaryKind = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    centred: bool = False
    signed: bool = False
    skip: Tensor | None = None
    name: str = ""
    model: str = ""
    model_hash: str = ""
    card: DictionaryCard | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(DictionaryKind):
            raise unknown("kind of dictionary", self.kind, get_args(DictionaryKind))
        readable = [site for site in (*SITES, *MLP_READS) if site != "pattern"]
        for what, site, known in (
            ("site read by a dictionary", self.read, readable),
            ("site written by a dictionary", self.written, CHANGEABLE),
        ):
            if site not in known:
                raise unknown(what, site, known)
        d_read, size = self.W_enc.shape if self.W_enc.dim() == 2 else (0, 0)
        d_written = self.b_dec.shape[-1] if self.b_dec.dim() else 0
        wanted: dict[str, tuple[int, ...]] = {
            "W_enc": (d_read, size),
            "b_enc": (size,),
            "W_dec": (size, d_written),
            "b_dec": (d_written,),
            "skip": (d_read, d_written),
            "threshold": (size,),
        }
        wrong = [
            f"{name} {tuple(value.shape)}"
            for name, shape in wanted.items()
            if (value := getattr(self, name)) is not None
            and (tuple(value.shape) != shape or not bool(value.isfinite().all()))
        ]
        if wrong or not size or (self.centred and d_read != d_written):
            raise InterpError(
                f"a dictionary of L{self.layer}.{self.written}",
                f"W_enc {tuple(self.W_enc.shape)}, W_dec {tuple(self.W_dec.shape)}; shapes that do "
                f"not fit, or numbers that are not finite: {', '.join(wrong) or 'none'}",
                "give W_enc (d_read, features), W_dec (features, d_written) and biases as wide",
            )
        needs = "k" if self.kind == "topk" else "threshold" if self.kind != "relu" else ""
        if needs and getattr(self, needs) is None or not 1 <= (self.k or 1) <= size:
            found = f"k={self.k}, threshold {'missing' if self.threshold is None else 'given'}"
            raise InterpError(f"a {self.kind} dictionary", found, f"give {needs or 'a fitting k'}")

    def __repr__(self) -> str:
        path = self.written if self.read == self.written else f"{self.read} to {self.written}"
        trained = f", trained on {self.model}" if self.model else ""
        measured = f"; {self.card}" if self.card is not None else ""
        what = f"{self.size} features of L{self.layer} {path}, {self.kind}"
        return f"Dictionary({what}{trained}{measured})"

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.b_enc)

    def label(self, feature: int) -> str:
        """The name of a feature: L5F120 is feature 120 of layer 5."""
        return f"L{self.layer}F{feature}"

    def require_features(self, features: object) -> list[int]:
        """Sorted numbers of features, or an `InterpError` if one does not exist."""
        return within(features, self.size, "feature", self.name or "the dictionary")  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> Tensor:
        """(..., features) activations of values (..., d_read) of the site read."""
        x = x.to(self.W_enc)
        pre = (x - self.b_dec if self.centred else x) @ self.W_enc + self.b_enc
        if self.kind == "relu":
            return F.relu(pre)
        active = pre if self.signed else F.relu(pre)
        if self.kind == "topk":
            chosen = pre.topk(self.k or 1, dim=-1).indices
            return torch.zeros_like(pre).scatter(-1, chosen, active.gather(-1, chosen))
        assert self.threshold is not None
        return active * (pre > self.threshold)

    def decode(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """(..., d_written) the site written, without its error, from activations.

        `x` is what was read, which a skip transcoder needs.

        Raises:
            InterpError: the dictionary has a skip, and no x.
        """
        out = features.to(self.W_dec) @ self.W_dec + self.b_dec
        if self.skip is None:
            return out
        if x is None:
            raise InterpError("decoding", "the dictionary has a linear skip", "give x= as well")
        return out + x.to(self.skip) @ self.skip

    def require_model(self, model: LanguageModel) -> None:
        """Refuse a model that it was not made for, or that its shapes and sites do not fit.

        Raises:
            InterpError: the hash is known and is another, the layer or a site is absent, or a width
                differs.
        """
        asked = f"{self!r:.80} on {model.name}"
        if self.model_hash and self.model_hash != model.hash:
            raise InterpError(
                asked,
                f"made for {self.model or 'a model'} {self.model_hash[:12]}, the model is "
                f"{model.hash[:12]}",
                "use that model, or replace model_hash by '' to transfer it on purpose",
            )
        within([self.layer], model.n_layers, "layer", model.name)
        if self.read in MLP_READS:
            model.require_decoder(f"reading {self.read}")
        for what, site, width in (
            ("reads", self.source(model), self.W_enc.shape[0]),
            ("writes", self.written, self.W_dec.shape[1]),
        ):
            model.require_site(site)
            if (has := site_width(model, site, True)) != width:
                raise InterpError(
                    asked, f"it {what} {width} numbers, {site} has {has}", "use its own model"
                )

    def source(self, model: LanguageModel) -> str:
        """The site from which what is read is computed: itself, or the stream before the MLP."""
        if self.read in MLP_READS:
            return "resid_pre" if model.parallel else "resid_mid"
        return self.read

    def what_is_read(self, decoder: Decoder | None, value: Tensor) -> Tensor:
        """(tokens, d_read) what is read, from the value of `source` at the same tokens."""
        if self.read not in MLP_READS:
            return value.flatten(1)
        assert decoder is not None
        norm = decoder.blocks[self.layer].ln2
        if self.read == "mlp_normed" and isinstance(norm, Norm):
            norm = replace(norm, weight=torch.ones_like(norm.weight), bias=None)
        return normed(norm, value)

    def into_stream(self, model: LanguageModel, rows: Tensor) -> Tensor:
        """(n, d_model) what decoder rows (n, d_written) add to the residual stream.

        Raises:
            InterpError: the site is neither of the stream's width nor z.
        """
        if self.written == "z":
            attn = model.require_decoder("reading decoder rows of z").blocks[self.layer].attn
            return rows.to(attn.o.weight) @ attn.o.weight
        if SITES[self.written] is not None:
            found = f"{self.written} is not written to the residual stream"
            raise InterpError(
                "the tokens that features write", found, "use a dictionary of mlp_out"
            )
        return rows
