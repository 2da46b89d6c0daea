"""What one answer holds, and what it looks like as JSON.

Apart from those who make answers, because a stored one is given again without a network, NumPy or
anything else that takes time to load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DEMONSTRATION_HEAD", "INTERNAL", "Prediction"]

#: How the reason of an error begins that is no fault of the file, as far as anybody knows.
INTERNAL = "internal_error"

#: The embedded head that answers when no other is given.
DEMONSTRATION_HEAD = Path(__file__).parent / "demonstration" / "pneumonia.safetensors"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image file.

    Attributes
    ----------
    input : str
        The path as it was given.
    status : str
        ``"ok"``, ``"refused"`` (readable, but not to be judged) or ``"error"`` (not readable).
        Refused is the picture itself, or it by every head that was asked; if only some refuse, the
        status is ok and their entries say so.
    reason : str or None
        Reason code and sentence of a refusal, or the error; None when all is well.
    heads : dict
        Head name to ``{"label", "probabilities", "threshold", "ood", "notice"}``. ``ood`` is
        ``{"score", "threshold"}``: how unlike the head's training images the picture is, and from
        where on it refuses; heads of earlier releases lack it. A head that refuses has
        ``{"refused", "ood", "notice"}`` instead, the first being reason code and sentence: no
        label and no probability. The notice says what the head learned from, because results
        outlive the terminal. Empty if the picture itself was refused or not readable; of a chain,
        heads that were not asked are missing.
    backbone : str
        Name of the network.
    milliseconds : float
        Wall time for this file, from opening it to the probabilities and the heatmap; of a stored
        answer that of the prediction it stores.
    allowed : tuple of str
        Reason codes that would have refused this picture, or a head's answer for it, and were set
        aside by the caller.
    n_views : int
        Augmented views whose logits were averaged with those of the picture.
    chain : dict or None
        What `Chain.follow` gives: name, steps with reasons, answer.
    wanted : tuple of str
        Which of ``"views"``, ``"chain"`` and ``"heatmap"`` were asked for.
    heatmap : ndarray of uint8, shape (h, w, 3), or None
        The X-ray with the evidence for each label that was decided, a panel each.
    heatmap_file : str or None
        Name of the file it was written to, by whoever wrote it.
    key : str or None
        SHA-256, 64 hexadecimal digits, of what the answer follows from
        (`engine.results.result_key`); None where nobody asked for it.
    stored : bool
        Whether this is an answer that was given before, read back.
    sr_file, sc_file : str or None
        Names of the DICOM structured report and secondary capture, if they were written.
    delivered : tuple of dict
        ``{"target", "status", "reason"}`` for each place they were sent to.
    """

    input: str
    status: str
    reason: str | None = None
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    backbone: str = ""
    milliseconds: float = 0.0
    allowed: tuple[str, ...] = ()
    n_views: int = 0
    chain: dict[str, Any] | None = None
    wanted: tuple[str, ...] = ()
    heatmap: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    heatmap_file: str | None = None
    key: str | None = None
    stored: bool = False
    sr_file: str | None = None
    sc_file: str | None = None
    delivered: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engine.predict`` prints, keys in the documented order.

        ``input`` to ``milliseconds`` are always there; behind them ``allowed`` if a reason was set
        aside, and those of ``views``, ``chain`` and ``heatmap`` that were asked for; the last two
        are None where nothing was answered. ``key``, ``stored``, ``sr``, ``sc`` and ``delivered``
        follow where they apply.
        """
        found: dict[str, Any] = {
            "input": self.input,
            "status": self.status,
            "reason": self.reason,
            "heads": self.heads,
            "backbone": self.backbone,
            "milliseconds": round(self.milliseconds, 1),
        }
        if self.allowed:
            found["allowed"] = list(self.allowed)
        extras = {"views": self.n_views, "chain": self.chain, "heatmap": self.heatmap_file}
        found |= {key: value for key, value in extras.items() if key in self.wanted}
        later = {
            "key": self.key,
            "stored": self.stored,
            "sr": self.sr_file,
            "sc": self.sc_file,
            "delivered": list(self.delivered),
        }
        return found | {key: value for key, value in later.items() if value}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Prediction:
        """Read what `to_json` gave.

        Parameters
        ----------
        found : mapping
            The object, from a file of results.

        Returns
        -------
        Prediction
            Equal to the one that was written, but for the heatmap itself.

        Raises
        ------
        KeyError, TypeError, ValueError
            It is no such object.
        """
        wanted = tuple(key for key in ("views", "chain", "heatmap") if key in found)
        heads = found["heads"]
        if found["status"] not in ("ok", "refused", "error") or not isinstance(heads, dict):
            raise ValueError("not an answer")
        return cls(
            input=str(found["input"]),
            status=found["status"],
            reason=found["reason"],
            heads=heads,
            backbone=str(found["backbone"]),
            milliseconds=float(found["milliseconds"]),
            allowed=tuple(found.get("allowed", ())),
            n_views=int(found.get("views", 0)),
            chain=found.get("chain"),
            wanted=wanted,
            heatmap_file=found.get("heatmap"),
            key=found.get("key"),
            stored=bool(found.get("stored", False)),
            sr_file=found.get("sr"),
            sc_file=found.get("sc"),
            delivered=tuple(found.get("delivered", ())),
        )
