"""The embedded networks: what they are, whether they are intact, and how they run on this CPU.

They run through OpenVINO's C library. The only module of the engine that imports its Python
package, and it does so to compile a network that is not in the cache. NumPy is imported when the
first picture comes: `engine.head_start` loads a network while others import it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from engine import head_start, openvino_c
from engine.errors import BackboneError, MismatchError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "JOIN",
    "Backbone",
    "JoinedBackbone",
    "Tap",
    "find_model",
    "list_backbones",
    "load_backbone",
    "own_models_dir",
]

MODELS_DIR = Path(__file__).with_name("models")
DEFAULT_BACKBONE = "efficientnet-lite0"
MAX_DEFAULT_STREAMS = 8
"""Each stream holds its own copy of the activations (a few MiB); beyond eight, memory and not
the network limits a PC."""

JOIN = "+"
"""Between the names of joined backbones; a tap of theirs is called ``backbone.tap``, because the
notes of a container allow no slash in it."""

CACHE_MAGIC = b"hilum-blob-1\n"
UNUSED_DAYS = 90
"""Compiled networks nobody took from the cache for so long are removed: each release of OpenVINO
and each choice of taps leaves its own, of 0.2 to 6 MB."""
_DAY_SECONDS = 86_400
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")


@dataclass(frozen=True)
class Tap:
    """One place in the network whose feature map comes out.

    Attributes
    ----------
    name : str
        ``"block4"``, ``"final"``, …
    channels, height, width : int
        Shape of the feature map of one picture.
    stride : int
        Input pixels for one step in the feature map.
    """

    name: str
    channels: int
    height: int
    width: int
    stride: int


def list_backbones() -> tuple[str, ...]:
    """Name the backbones of this installation and those the user imported.

    Returns
    -------
    tuple of str
        Sorted; the default is ``"efficientnet-lite0"``.
    """
    folders = [folder for folder in (MODELS_DIR, own_models_dir()) if folder is not None]
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("*.json")}))


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    streams: int | None = None,
    taps: Sequence[str] | Literal["all"] | None = None,
    cache_dir: str | Path | None = None,
) -> Backbone:
    """Load an embedded backbone, checked against its card, and compile it for this CPU.

    Parameters
    ----------
    name : str, default "efficientnet-lite0"
        One of :func:`list_backbones`, or several joined by plus signs, such as
        ``"efficientnet-lite0+efficientnet-lite2"``: their features stand side by side.
    streams : int, optional
        How many pictures may run at once, each on one thread. Default: the CPUs this process
        may use, at most 8.
    taps : sequence of str or "all", optional
        The feature maps wanted; the network stops after the last of them. Default: those of the
        backbone's measured recipe, which need a good half of the network. Those of joined
        backbones are called ``backbone.tap``.
    cache_dir : str or Path, optional
        Folder for the compiled network, which makes the next start faster. Default: ``hilum`` in
        the user's cache folder; the empty string keeps nothing. A folder that cannot be
        written is not an error.

    Returns
    -------
    Backbone
        A :class:`JoinedBackbone` where several are named.

    Raises
    ------
    BackboneError
        Unknown name, one named twice, missing or altered file, OpenVINO missing or refusing this
        CPU.
    MismatchError
        A tap the backbone does not have; the message lists those it has.
    """
    if JOIN in name:
        return _load_joined(name, streams=streams, taps=taps, cache_dir=cache_dir)
    if name not in list_backbones():
        raise BackboneError(
            f"unknown backbone {name!r}; this installation has: {', '.join(list_backbones())}"
        )
    n_streams = _usable_cpus() if streams is None else streams
    if n_streams < 1:
        raise BackboneError(f"streams is {streams}; expected a whole number from 1 on")
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir) if cache_dir else None
    loaded = head_start.take(name)
    if loaded is None or not loaded.serves(taps, folder):
        loaded = LoadedBackbone(name, taps, folder)
    return loaded.finish(n_streams)


def _load_joined(
    name: str,
    *,
    streams: int | None,
    taps: Sequence[str] | Literal["all"] | None,
    cache_dir: str | Path | None,
) -> JoinedBackbone:
    parts = [part.strip() for part in name.split(JOIN)]
    for part in parts:
        if part not in list_backbones():
            raise BackboneError(
                f"unknown backbone {part!r} in {name!r}; this installation has: "
                f"{', '.join(list_backbones())}"
            )
    if len(set(parts)) != len(parts):
        raise BackboneError(f"backbone {name!r} names one twice; name each once")
    cards = {part: _checked_card(part)[0] for part in parts}
    valid = [f"{part}.{tap['name']}" for part in parts for tap in cards[part]["taps"]]
    wanted: set[str] | None = None
    if taps is not None and taps != "all":
        asked = [taps] if isinstance(taps, str) else list(taps)
        unknown = [tap for tap in asked if tap not in valid]
        if unknown or not asked:
            found = f"unknown tap {unknown[0]!r}" if unknown else "no tap was asked for"
            raise MismatchError(f"backbone {name}: {found}; it has: {', '.join(valid)}")
        wanted = set(asked)
    loaded = []
    for part in parts:
        mine: Sequence[str] | Literal["all"] | None = "all" if taps == "all" else None
        if wanted is not None:
            names = [tap["name"] for tap in cards[part]["taps"]]
            # A part of which nothing is wanted still counts in the digest; its first tap is cheap.
            mine = [tap for tap in names if f"{part}.{tap}" in wanted] or names[:1]
        loaded.append(load_backbone(part, streams=streams, taps=mine, cache_dir=cache_dir))
    return JoinedBackbone(loaded, wanted)


class Backbone:
    """A network ready to run; made by :func:`load_backbone`.

    Safe to share between threads: as many calls of :meth:`infer` run at once as there are
    streams, further ones wait. Usable as a context manager.

    Attributes
    ----------
    name : str
    digest : str
        SHA-256, in hex, over the SHA-256 of the .xml and that of the .bin file; travels in
        containers and heads.
    input_size : tuple of int
        Height and width of the pictures in pixels.
    taps : mapping of str to Tap
        The feature maps :meth:`infer` returns, in the network's order.
    card : dict
        The model card.
    preprocessing : dict
        Arguments of :class:`engine.images.Preprocessing` the backbone's features were chosen with.
    default_taps : str
        Taps and poolings that were measured to serve best, as text for ``--taps``.
    n_streams : int
        Pictures that run at once.
    input_sizes : tuple of (int, int)
        Height and width of each input :meth:`infer_parts` takes; one, but for joined backbones.
    """

    def __init__(
        self,
        *,
        card: dict[str, Any],
        digest: str,
        taps: Sequence[str],
        networks: Sequence[openvino_c.Network],
    ) -> None:
        self.name: str = card["name"]
        self.digest = digest
        self.card = card
        self.input_size: tuple[int, int] = (card["input"]["height"], card["input"]["width"])
        self.input_sizes: tuple[tuple[int, int], ...] = (self.input_size,)
        self.preprocessing: dict[str, Any] = card["preprocessing"]
        self.default_taps: str = card["default_taps"]
        self.n_streams = len(networks)
        self.taps: Mapping[str, Tap] = MappingProxyType(
            {tap["name"]: Tap(**tap) for tap in card["taps"] if tap["name"] in taps}
        )
        self._closed = False
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        try:
            for network in networks:
                self._requests.put(network.request(tuple(self.taps)))
        except RuntimeError as error:
            raise self._failed(error) from error

    def __repr__(self) -> str:
        return (
            f"Backbone({self.name!r}, input_size={self.input_size}, taps={list(self.taps)}, "
            f"n_streams={self.n_streams}, digest={self.digest[:12]}…)"
        )

    def __enter__(self) -> Backbone:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Run the network and return the feature maps at the taps.

        Pictures go through one by one, so a picture's features do not depend on the company it
        comes in, on the number of streams or on the number of threads.

        Parameters
        ----------
        images : ndarray of uint8, shape (n, 1, height, width)
            Preprocessed pictures, larger is brighter.

        Returns
        -------
        dict of str to ndarray of float32, shape (n, channels, h, w)
            One array for each of :attr:`taps`, owned by the caller. In memory the channels of a
            pixel lie side by side (channels last).

        Raises
        ------
        BackboneError
            Wrong shape or dtype, or a closed backbone.
        """
        import numpy as np

        self._check_images(images)
        shapes = {
            name: (len(images), tap.height, tap.width, tap.channels)
            for name, tap in self.taps.items()
        }
        maps = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        with self._request() as request:
            try:
                for row, image in enumerate(images):
                    np.frombuffer(request.input, np.uint8)[:] = image.reshape(-1)
                    request.run()
                    for name, found in maps.items():
                        found[row].reshape(-1)[:] = np.frombuffer(request.output(name), np.float32)
            except RuntimeError as error:
                raise self._failed(error) from error
        return {name: found.transpose(0, 3, 1, 2) for name, found in maps.items()}

    def _failed(self, error: RuntimeError) -> BackboneError:
        return BackboneError(
            f"OpenVINO could not run backbone {self.name} ({error}); "
            "close other programs if memory is short, or load with fewer streams"
        )

    def infer_parts(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """Run the network, or each of joined networks on its own input.

        Parameters
        ----------
        images : sequence of uint8 arrays, each (n, 1, height, width)
            One for each of :attr:`input_sizes`.

        Returns
        -------
        dict of str to ndarray of float32, shape (n, channels, h, w)
            As :meth:`infer`.

        Raises
        ------
        BackboneError
            As :meth:`infer`, or another number of inputs.
        """
        self._check_parts(images)
        return self.infer(images[0])

    def _check_parts(self, images: Sequence[NDArray[np.uint8]]) -> None:
        if len(images) != len(self.input_sizes):
            raise BackboneError(
                f"backbone {self.name} was given {len(images)} inputs, expected "
                f"{len(self.input_sizes)}: one for each of its networks"
            )

    def close(self) -> None:
        """Give the network's memory back; calls already running finish first."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self.n_streams):
            self._requests.get()
        # Whoever still waits for a request finds None and reports the closed backbone.
        self._requests.put(None)

    @contextlib.contextmanager
    def _request(self) -> Iterator[Any]:
        request = self._requests.get()
        try:
            if request is None:
                raise BackboneError(f"backbone {self.name} is closed; load it again")
            yield request
        finally:
            self._requests.put(request)

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        import numpy as np

        height, width = self.input_size
        if not isinstance(images, np.ndarray):
            raise BackboneError(
                f"backbone {self.name} was given a {type(images).__name__}, expected a NumPy array "
                f"of uint8 with shape (n, 1, {height}, {width}); use engine.images.preprocess"
            )
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (1, height, width):
            raise BackboneError(
                f"backbone {self.name} was given {images.dtype} with shape {images.shape}, "
                f"expected uint8 with shape (n, 1, {height}, {width}); use engine.images.preprocess"
            )


class JoinedBackbone(Backbone):
    """Several networks that look at one picture, their feature maps side by side.

    Used as a :class:`Backbone`, with :meth:`infer_parts` in the place of :meth:`infer`. Its digest
    is the SHA-256 over the digests of its parts, in their order. Made by :func:`load_backbone`.

    Parameters
    ----------
    backbones : sequence of Backbone
        Two or more different ones.
    taps : set of str, optional
        The wanted taps, as ``backbone.tap``; default: all that the backbones were loaded with.
    """

    def __init__(self, backbones: Sequence[Backbone], taps: set[str] | None = None) -> None:
        self._backbones = tuple(backbones)
        self.name = JOIN.join(part.name for part in backbones)
        digests = b"".join(bytes.fromhex(part.digest) for part in backbones)
        self.digest = hashlib.sha256(digests).hexdigest()
        self.input_size = backbones[0].input_size
        self.input_sizes = tuple(part.input_size for part in backbones)
        self.n_streams = min(part.n_streams for part in backbones)
        rules = [part.preprocessing for part in backbones]
        self.preprocessing = {name: [rule[name] for rule in rules] for name in rules[0]}
        self.default_taps = ",".join(
            f"{part.name}.{tap.strip()}"
            for part in backbones
            for tap in part.default_taps.split(",")
        )
        self.card = {
            "name": self.name,
            "taps": [
                {**tap, "name": f"{part.name}.{tap['name']}"}
                for part in backbones
                for tap in part.card["taps"]
            ],
            "default_taps": self.default_taps,
            "preprocessing": self.preprocessing,
        }
        own = {
            f"{part.name}.{tap.name}": replace(tap, name=f"{part.name}.{tap.name}")
            for part in backbones
            for tap in part.taps.values()
        }
        self.taps = MappingProxyType(
            {name: tap for name, tap in own.items() if taps is None or name in taps}
        )

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Refuse: each network has its own input, see :meth:`infer_parts`.

        Raises
        ------
        BackboneError
            Always.
        """
        raise BackboneError(
            f"backbone {self.name} has {len(self.input_sizes)} inputs and was given one; use "
            "infer_parts with an input for each of its networks"
        )

    def infer_parts(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """Run each network on its input; see :meth:`Backbone.infer_parts`."""
        self._check_parts(images)
        maps: dict[str, NDArray[np.float32]] = {}
        for part, image in zip(self._backbones, images, strict=True):
            names = {tap: f"{part.name}.{tap}" for tap in part.taps}
            if any(name in self.taps for name in names.values()):
                for tap, feature_map in part.infer(image).items():
                    maps[names[tap]] = feature_map
        return maps

    def close(self) -> None:
        """Give the networks' memory back; calls already running finish first."""
        for part in self._backbones:
            part.close()


# --- cards and files ----------------------------------------------------------------------------


def _checked_card(name: str) -> tuple[dict[str, Any], str]:
    """Read a card and check the network's files against it; also return the combined digest."""
    path = find_model(name, "json")
    cure = _CURE if path.parent == MODELS_DIR else _OWN_CURE
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected = {kind: str(card["files"][kind]["sha256"]) for kind in ("xml", "bin")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BackboneError(f"{path}: the model card cannot be read ({error}); {cure}") from error
    combined = hashlib.sha256()
    for kind, sha256 in expected.items():
        file = find_model(name, kind)
        try:
            found = hashlib.sha256(file.read_bytes())
        except OSError as error:
            raise BackboneError(f"{file}: cannot be read ({error.strerror}); {cure}") from error
        if found.hexdigest() != sha256:
            raise BackboneError(
                f"{file}: SHA-256 is {found.hexdigest()}, the model card expects {sha256}: the "
                f"file was altered or damaged; {cure}"
            )
        combined.update(found.digest())
    return card, combined.hexdigest()


_CURE = "install hilum again (in a checkout: git checkout -- engine/models)"
_OWN_CURE = "import it again: python -m engine.models import"


def own_models_dir() -> Path | None:
    """Return the user's folder of imported backbones: HILUM_MODELS, or that of the user's data.

    Not that of the cache: a head is worth nothing without its backbone. An empty HILUM_MODELS
    means that there is none.
    """
    named = os.environ.get("HILUM_MODELS")
    if named is not None:
        return Path(named) if named else None
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = str(Path("~/Library/Application Support").expanduser())
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(base) / "hilum" / "models" if base and Path(base).is_absolute() else None


def find_model(name: str, kind: str) -> Path:
    """Return the path of a backbone's file: a shipped one first, then the user's own.

    Parameters
    ----------
    name : str
        Of the backbone.
    kind : {"json", "xml", "bin"}
        Which of its files.
    """
    own = own_models_dir()
    shipped = own is None or (MODELS_DIR / f"{name}.json").exists()
    return (MODELS_DIR if shipped or own is None else own) / f"{name}.{kind}"


def _checked_taps(
    name: str, card: dict[str, Any], taps: Sequence[str] | Literal["all"] | None
) -> tuple[str, ...]:
    valid = [tap["name"] for tap in card["taps"]]
    if taps == "all":
        return tuple(valid)
    if taps is None:
        taps = [part.partition(":")[0] for part in card["default_taps"].split(",")]
    wanted = [taps] if isinstance(taps, str) else list(taps)
    unknown = [tap for tap in wanted if tap not in valid]
    if unknown or not wanted:
        found = f"unknown tap {unknown[0]!r}" if unknown else "no tap was asked for"
        raise MismatchError(f"backbone {name}: {found}; it has: {', '.join(valid)}")
    return tuple(tap for tap in valid if tap in wanted)


# --- OpenVINO -----------------------------------------------------------------------------------


_IMPORT_LOCK = threading.Lock()


def _import_openvino() -> Any:
    """Import OpenVINO without its model converter, which the engine never uses.

    The converter and the telemetry behind it take half of the 0.14 s of the import. The package
    allows for their absence; whoever asks for ``openvino.convert_model`` later still gets it.
    """
    converter = "openvino.tools.ovc"
    with _IMPORT_LOCK:
        hide = "openvino" not in sys.modules
        if hide:
            # None is the documented way to say that a module is not there.
            sys.modules[converter] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise _missing(error) from error
        finally:
            if hide:
                del sys.modules[converter]
    if not hasattr(openvino, "convert_model"):

        def convert_model(*args: Any, **kwargs: Any) -> Any:
            from openvino.tools.ovc import convert_model as convert

            return convert(*args, **kwargs)

        openvino.convert_model = convert_model
    return openvino


# One compiled network for each stream, with one thread each: then a request runs in the thread
# that asks. One network with several streams hands every picture to a thread of its own and wakes
# the asking one afterwards, which cost 15 to 20 % of an extraction's time on two cores; the second
# copy costs a few MiB. One thread a picture also means that the order of additions in it does not
# depend on how many threads there are.
_CONFIGURATION = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "INFERENCE_NUM_THREADS": "1",
    # Several processes (a PACS hook for each study) pinned to one core would wait for each
    # other while the second core idles.
    "ENABLE_CPU_PINNING": "NO",
    # CPUs with bfloat16 would otherwise compute what is not INT8 with 8 bits of mantissa,
    # and have features of their own.
    "INFERENCE_PRECISION_HINT": "f32",
}


class LoadedBackbone:
    """A backbone on its way: files checked, taps chosen, its first network taken from the cache.

    For `load_backbone` and `engine.head_start`; errors as for `load_backbone`.

    Parameters
    ----------
    name : str
        A backbone's, not of joined ones.
    taps : sequence of str or "all", optional
        As for `load_backbone`.
    folder : Path, optional
        Of the cache; None keeps nothing.
    """

    def __init__(
        self,
        name: str,
        taps: Sequence[str] | Literal["all"] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._name = name
        self._place = (find_model(name, "json"), folder)
        self._card, self._digest = _checked_card(name)
        self._taps, self._outputs = self._choose(taps)
        try:
            self._version = openvino_c.version()
        except ImportError as error:
            raise _missing(error) from error
        self._cached: Path | None = None
        self._blob: bytes | memoryview | None = None
        self._networks: list[openvino_c.Network] = []
        with self._explained():
            self._core = openvino_c.Core(_CONFIGURATION)
            if folder is not None:
                key = _cache_key(self._version, self._core.cpu_name(), self._digest, self._outputs)
                self._cached = folder / f"{name}-{key}.blob"
                self._blob = _read_blob(self._cached)
        if self._blob is not None:
            # A blob another build left under our key must not stop a prediction.
            with contextlib.suppress(RuntimeError):
                self._networks.append(self._core.import_network(self._blob))

    def serves(self, taps: Sequence[str] | Literal["all"] | None, folder: Path | None) -> bool:
        """Take other taps if the network has them and came from the same folders."""
        chosen, outputs = self._choose(taps)
        if self._place != (find_model(self._name, "json"), folder) or outputs != self._outputs:
            return False
        self._taps = chosen
        return True

    def _choose(
        self, taps: Sequence[str] | Literal["all"] | None
    ) -> tuple[tuple[str, ...], list[str]]:
        """Return the taps wanted and the outputs of the network.

        Taps before the last one stay outputs even when nobody wants them: whether a feature map
        leaves the network changes what OpenVINO fuses there, and with it the last bits of all that
        follows. So the same picture has the same features whatever else was asked for.
        """
        chosen = _checked_taps(self._name, self._card, taps)
        names = [tap["name"] for tap in self._card["taps"]]
        return chosen, names[: 1 + max(names.index(tap) for tap in chosen)]

    def finish(self, n_streams: int) -> Backbone:
        """Compile what was not cached, and put the backbone together."""
        with self._explained():
            if not self._networks or self._blob is None:
                self._blob = _compile(self._name, self._outputs)
                if self._cached is not None:
                    _write_blob(self._cached, self._blob, f"{self._name}-*.blob")
            while len(self._networks) < n_streams:
                self._networks.append(self._core.import_network(self._blob))
        return Backbone(
            card=self._card, digest=self._digest, taps=self._taps, networks=self._networks
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, BackboneError):
                raise
            lines = str(error).strip().splitlines()
            raise BackboneError(
                f"OpenVINO {self._version} cannot run backbone {self._name} on this CPU "
                f"({_machine()}): {lines[-1] if lines else error}; "
                "on a CPU without AVX2 install the last release that supports it: "
                "pip install openvino==2025.4.1"
            ) from error


def _missing(error: ImportError) -> BackboneError:
    return BackboneError(
        f"OpenVINO cannot be imported ({error}); install it with: pip install 'openvino>=2025.4'"
    )


def _compile(name: str, outputs: Sequence[str]) -> bytes:
    """Compile the network up to the last of ``outputs``; return what can be imported and kept."""
    ov = _import_openvino()
    core = ov.Core()
    model = core.read_model(find_model(name, "xml"))
    _truncate(ov, model, outputs)
    exported = core.compile_model(model, "CPU", _CONFIGURATION).export_model()
    return exported if isinstance(exported, bytes) else bytes(exported.getvalue())


def _truncate(ov: Any, model: Any, outputs: Sequence[str]) -> None:
    """Cut the network off behind the last of ``outputs``, and turn them channels last.

    What rounds it for the next layer stays, as an output nobody reads: whether a feature map goes
    on into a layer decides how OpenVINO fuses the addition before it, and with it the last bit.
    Rounding is enough for that in an INT8 network (its convolution as well took 4 % of the time of
    the default taps at AVX2, 14 % with AVX-512 VNNI); in others it is the convolution.

    The feature maps leave it channels last, as INT8 convolutions write them and pooling reads them:
    OpenVINO would otherwise turn each around.
    """
    import numpy as np

    last = None
    maps = {}
    for result in model.get_results():
        source = result.input_value(0)
        names = result.output(0).get_names() | source.get_names()
        if outputs[-1] in names:
            last = source
        for name in names & set(outputs):
            maps[name] = source
        model.remove_result(result)
    pending = list(last.get_target_inputs()) if last is not None else []
    seen: set[str] = set()  # branches that meet again are followed once
    while pending:
        node = pending.pop().get_node()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() in ("FakeQuantize", "Convolution"):
            model.add_results([ov.opset13.result(node.output(0))])
        elif node.get_type_name() != "Result":
            pending.extend(node.output(0).get_target_inputs())
    order = ov.opset13.constant(np.array([0, 2, 3, 1]))
    for name, source in maps.items():
        last_axes = ov.opset13.transpose(source, order)
        source.set_names(source.get_names() - {name})
        last_axes.output(0).set_names({name})
        model.add_results([ov.opset13.result(last_axes.output(0))])


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:  # Windows, macOS
        count = os.cpu_count() or 1
    return max(1, min(count, MAX_DEFAULT_STREAMS))


# --- cache of compiled networks -----------------------------------------------------------------
#
# OpenVINO's own CACHE_DIR writes a blob in place, so a hook that starts while another writes
# reads half of it. Here a blob appears whole, and carries its SHA-256.


def default_cache_dir() -> Path | None:
    """Return the folder for compiled networks that `load_backbone` takes when none is named."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = str(Path("~/Library/Caches").expanduser())
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    # expanduser leaves "~" where there is no home: then nothing is kept.
    return Path(base) / "hilum" if base and Path(base).is_absolute() else None


def _cache_key(version: str, cpu: str, digest: str, outputs: Sequence[str]) -> str:
    """Name what a compiled network depends on: network, options, OpenVINO and CPU."""
    flags = ""
    # A virtual machine's model name says little ("AMD EPYC"); its flags say what it can do.
    with (
        contextlib.suppress(OSError),
        open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines,  # noqa: PTH123
    ):
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    facts = {
        "backbone": digest,
        "outputs": list(outputs),
        # Another text: networks that were cut otherwise are not used.
        "cut": "behind the rounding, channels last",
        "configuration": _CONFIGURATION,
        "openvino": version,
        "cpu": cpu,
        "machine": [_machine(), flags],
        "limits": {name: os.environ.get(name) for name in ISA_VARIABLES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _machine() -> str:
    # Not the module platform, which starts a program (uname) to learn no more than this.
    if sys.platform == "win32":
        return os.environ.get("PROCESSOR_IDENTIFIER", "")
    return os.uname().machine


def _read_blob(path: Path) -> memoryview | None:
    try:
        with path.open("rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            data = memoryview(file.read())
        n_head = len(CACHE_MAGIC) + 32
        blob = data[n_head:]
        if data[:n_head] != CACHE_MAGIC + hashlib.sha256(blob).digest():
            return None
        # Once a day is enough to know what is in use.
        if abs(time.time() - path.stat().st_mtime) > _DAY_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(path)
    except (OSError, RuntimeError):
        return None
    return blob


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user and root can have written a file.

    A compiled network is code for the processor; whoever can leave one here would run theirs.
    """
    if sys.platform == "win32":  # the folder lies in the user's profile, which others may not enter
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def _write_blob(path: Path, blob: bytes, others: str) -> None:
    """Keep a compiled network; a folder that cannot be written only costs time.

    Parameters
    ----------
    path : Path
        Where to.
    blob : bytes
        What to keep.
    others : str
        Pattern of the files it stands beside; those unused for `UNUSED_DAYS` are removed.
    """
    import tempfile

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(CACHE_MAGIC + hashlib.sha256(blob).digest() + blob)
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _remove_old(path.parent, others, UNUSED_DAYS)
        # Of writers that were killed.
        _remove_old(path.parent, ".part-*", 1)
    except (OSError, RuntimeError):
        return


def _remove_old(folder: Path, pattern: str, days: int) -> None:
    oldest = time.time() - days * _DAY_SECONDS
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
