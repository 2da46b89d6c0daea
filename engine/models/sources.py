"""Foreign networks as graphs: PyTorch modules and files, ONNX files, TensorFlow SavedModels.

A file of weights, an ONNX file and a SavedModel are data: nothing in them is run as Python, and
weights are read as tensors and nothing else (``weights_only``). The factory that the user names is
Python, and is run. An exported program and a TorchScript archive are programs too: what is pickled
in them is read as tensors, and one that carries objects is refused, but PyTorch looks their
operations up by name, evaluates their expressions and runs them. They are for people who trust
their authors.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import BackboneError, MissingPart
from engine.models.graph import input_facts

__all__ = ["Source", "first_tensor", "load_source", "quietly"]

DEFAULT_SIZE = (224, 224)
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OBJECTS = ("custom_obj", "opaque_obj")

See = Callable[[NDArray[np.float32]], None]
Run = Callable[[NDArray[np.float32], See], NDArray[np.float32]]


@dataclass(frozen=True)
class Source:
    """A foreign network as a graph, and where it came from.

    Attributes
    ----------
    kind : str
        In words, for people.
    model : openvino.Model
        One picture, static shapes, float32.
    origin : dict
        For the card: names of files without their folders, SHA-256, the framework's version.
    run : callable, optional
        Computes the network's first output in its own framework, from float32
        ``(1, channels, height, width)``; shows every array of four axes that it computes on the
        way to its second argument, valid during the call.
    size : tuple of int, optional
        Height and width, where the framework allows no other although the graph would.
    """

    kind: str
    model: Any
    origin: dict[str, str]
    run: Run | None = None
    size: tuple[int, int] | None = None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the frameworks' notes to their own developers off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_source(
    source: str | Path | None,
    *,
    module: str | None = None,
    weights: Path | None = None,
    own_weights: bool = False,
    input_size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Source:
    """Read a network of any of the frameworks.

    Parameters
    ----------
    source : str or Path, optional
        ONNX file, folder of a SavedModel, exported program of PyTorch (``.pt2``) or TorchScript
        archive; None with ``module``.
    module : str, optional
        ``package.module:factory``, which returns a ``torch.nn.Module`` when called.
    weights : Path, optional
        Of that module: a file of ``torch.save(module.state_dict(), ...)``, or safetensors.
    own_weights : bool
        The factory returns the module with its weights.
    input_size : tuple of int, optional
        Height and width; default: what the file says, or 224 x 224.
    channels : int, optional
        Of the input, where the file does not say; default 3.

    Returns
    -------
    Source

    Raises
    ------
    BackboneError
        No such file, one of another kind, or a network that cannot be read.
    MissingPart
        A package is missing that this needs.
    """
    _keep_to_itself()
    if module is not None:
        if source is not None:
            raise BackboneError(
                f"a source ({source}) and --module were given; a network comes from one of them"
            )
        found = _load_module(
            module, None if own_weights else weights, own_weights,
            channels or 3, input_size or DEFAULT_SIZE,
        )  # fmt: skip
    else:
        if source is None:
            raise BackboneError("no network was given; name a file, or --module and --weights")
        if weights is not None or own_weights:
            raise BackboneError("--weights belong to --module; the file brings its own")
        found = _load_file(Path(source), channels or 3, input_size or DEFAULT_SIZE)
    layout, n_channels, *size = input_facts(found.model)
    numbers = found.model.input(0).get_element_type()
    if numbers.get_type_name() != "f32":
        raise BackboneError(
            f"the network takes its picture as {numbers.get_type_name()}, expected f32; export it "
            "in float32"
        )
    if channels not in (None, n_channels):
        raise BackboneError(f"--channels {channels}: the network takes {n_channels}")
    if found.size is not None and input_size not in (None, found.size):
        raise BackboneError(
            f"the network was exported for pictures of {found.size[0]}x{found.size[1]}; leave "
            "--input-size out, or export it anew"
        )
    height, width = (
        input_size or found.size or (size[0] or DEFAULT_SIZE[0], size[1] or DEFAULT_SIZE[1])
    )
    shape = [1, n_channels, height, width] if layout == "NCHW" else [1, height, width, n_channels]
    try:
        found.model.reshape(shape)
    except RuntimeError as error:
        raise BackboneError(
            f"the network does not take pictures of {height}x{width} ({_last_line(error)}); give "
            "the size it was exported with: --input-size HxW"
        ) from error
    return found


def _keep_to_itself() -> None:
    """Keep the converters from reporting to their makers over the network."""
    # None is the documented way to say that a module is not there; both programs allow for that.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _load_file(path: Path, channels: int, size: tuple[int, int]) -> Source:
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise BackboneError(
                f"{path}: a folder without saved_model.pb, expected a SavedModel of TensorFlow; "
                "in Keras write one with model.export(FOLDER)"
            )
        origin = {"file": path.name, "sha256": _digest(path / "saved_model.pb")}
        variables = path / "variables" / "variables.data-00000-of-00001"
        if variables.is_file():
            origin["variables_sha256"] = _digest(variables)
        return Source("TensorFlow SavedModel", _convert(path, str(path)), origin)
    if not path.is_file():
        raise BackboneError(f"{path}: no such file or folder; expected a network to import")
    origin = {"file": path.name, "sha256": _digest(path)}
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Source("ONNX", _convert(path, str(path)), origin)
    if suffix in (".keras", ".h5"):
        raise BackboneError(
            f"{path}: a file of Keras, expected a SavedModel; load it in Keras and write one with "
            "model.export(FOLDER)"
        )
    if suffix == ".safetensors":
        raise BackboneError(f"{path}: {_ONLY_WEIGHTS}")
    kind = _archive_kind(path)
    if kind == "weights":
        raise BackboneError(f"{path}: {_ONLY_WEIGHTS}")
    if kind is None:
        raise BackboneError(
            f"{path}: neither ONNX (.onnx), nor a SavedModel folder, nor a program that "
            "torch.export.save or torch.jit.save wrote; expected one of these"
        )
    torch = _torch()
    origin["software"] = f"torch {torch.__version__}"
    example = torch.zeros((1, channels, *size))
    if kind == "program":
        program = _load_program(torch, path)
        with quietly():
            runner = program.module()
        model = _convert(path, program)
        return Source(
            "PyTorch exported program",
            model,
            origin,
            _runner(torch, runner),
            _exported_size(program),
        )
    with quietly():
        try:
            script = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise BackboneError(
                f"{path}: not a TorchScript archive ({_last_line(error)})"
            ) from error
    model = _convert(path, script, example)
    return Source("PyTorch TorchScript", model, origin, _runner(torch, script))


_ONLY_WEIGHTS = (
    "holds weights and no network, or a pickled module, which could run any code when it is read; "
    "name what builds the network: --module package.module:factory --weights FILE, or export it "
    "with torch.export.save"
)


def _archive_kind(path: Path) -> str | None:
    """Tell PyTorch's archives apart by the names in them; nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        with path.open("rb") as file:
            # Files of torch.save before PyTorch 1.6 are bare pickles.
            return "weights" if file.read(1) == b"\x80" else None
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror})") from error
    if any(name.startswith("data/constants/" + kind) for name in names for kind in _OBJECTS):
        raise BackboneError(
            f"{path}: the exported program carries objects of its own, which could run any code "
            "when they are read; export a network of plain tensors"
        )
    if "archive_format" in names:
        return "program"
    if any(name.startswith("code/") for name in names):
        return "script"
    return "weights" if "data.pkl" in names else None


def _load_program(torch: Any, path: Path) -> Any:
    """Read an exported program; whatever in it needs unpickling holds tensors only.

    Left alone, `torch.export.load` reads what is no tensor with the full unpickler.
    """
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with quietly():
            return torch.export.load(str(path))
    except Exception as error:
        raise BackboneError(
            f"{path}: the exported program cannot be read as tensors only ({_last_line(error)}); "
            f"write it with torch.export.save of PyTorch {torch.__version__}"
        ) from error
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def _exported_size(program: Any) -> tuple[int, int] | None:
    """Return the height and width an exported program is fixed to, None where they are open."""
    wanted = program.graph_signature.user_inputs[:1]
    for node in program.graph.nodes:
        if node.name in wanted and "val" in node.meta:
            shape = tuple(node.meta["val"].shape)
            if len(shape) == 4 and all(isinstance(side, int) for side in shape[2:]):
                return int(shape[2]), int(shape[3])
    return None


def _load_module(
    factory: str, weights: Path | None, own_weights: bool, channels: int, size: tuple[int, int]
) -> Source:
    torch = _torch()
    name, colon, attribute = factory.partition(":")
    if not colon or not name or not attribute:
        raise BackboneError(f"--module {factory}: expected package.module:factory")
    try:
        make = importlib.import_module(name)
        for part in attribute.split("."):
            make = getattr(make, part)
        network = make() if callable(make) and not isinstance(make, torch.nn.Module) else make
    except (ImportError, AttributeError) as error:
        raise BackboneError(
            f"--module {factory}: cannot be imported ({error}); the folder of your module belongs "
            "into PYTHONPATH"
        ) from error
    except Exception as error:  # foreign code may raise anything
        raise BackboneError(
            f"--module {factory}: your code raised {type(error).__name__}: {_last_line(error)}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise BackboneError(
            f"--module {factory}: returned a {type(network).__name__}, expected a torch.nn.Module"
        )
    origin = {"module": factory, "software": f"torch {torch.__version__}"}
    if own_weights:
        origin |= {"weights": "as the factory returned them", "sha256": _state_digest(network)}
    elif weights is None:
        raise BackboneError(
            f"--module {factory}: no weights were given; name the file of its state dict: "
            "--weights; or say that the factory returns it with its weights: --own-weights"
        )
    else:
        _load_weights(torch, network, weights)
        origin |= {"weights": weights.name, "sha256": _digest(weights)}
    network.cpu().float().eval()
    model = _convert(factory, network, torch.zeros((1, channels, *size)))
    return Source("PyTorch module", model, origin, _runner(torch, network))


def _load_weights(torch: Any, network: Any, path: Path) -> None:
    if not path.is_file():
        raise BackboneError(f"{path}: no such file; expected the weights of the module")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(
            f"{path}: cannot be read as a file of tensors ({_last_line(error)}); write one with "
            "torch.save(module.state_dict(), FILE). Pickled objects are never read"
        ) from error
    for key in _WEIGHT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise BackboneError(
            f"{path}: holds a {type(state).__name__}, expected the state dict of the module"
        )
    if all(str(key).startswith("module.") for key in state):  # of nn.DataParallel
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise BackboneError(
            f"{path}: these are not the weights of this module: {' '.join(lines)[:400]}"
        ) from error


def _state_digest(network: Any) -> str:
    """SHA-256 over names and values of all that the module holds."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name}\0".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPart(
            f"PyTorch cannot be imported ({error}); install it with: pip install 'hilum[models]'"
        ) from error
    return torch


def first_tensor(found: Any) -> Any:
    """Return the first tensor of what a network gave: a tensor, a sequence or a mapping."""
    while not hasattr(found, "detach"):
        found = next(iter(found.values() if isinstance(found, dict) else found))
    return found


def _runner(torch: Any, network: Any) -> Run:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        """Sees the result of every operation, in modules and outside of them."""

        def __init__(self, see: See) -> None:
            super().__init__()
            self.see = see

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = operation(*args, **(kwargs or {}))
            for one in found if isinstance(found, tuple | list) else (found,):
                if isinstance(one, torch.Tensor) and one.dim() == 4:
                    self.see(one.detach().numpy())
            return found

    def run(picture: NDArray[np.float32], see: See) -> NDArray[np.float32]:
        with torch.no_grad(), quietly(), Watch(see):
            found: NDArray[np.float32] = first_tensor(network(torch.from_numpy(picture))).numpy()
        return found

    return run


def _convert(what: str | Path, network: Any, example: Any = None) -> Any:
    """Let OpenVINO read a network of another framework."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingPart(
            f"OpenVINO cannot be imported ({error}); install it with: pip install 'hilum[models]'"
        ) from error
    try:
        with quietly():
            if example is None:
                return ov.convert_model(network)
            import torch

            with torch.no_grad():
                model = ov.convert_model(network, example_input=example)
            shape = model.input(0).get_partial_shape()
            if shape.rank.is_dynamic or shape[1].is_dynamic:
                model.reshape([-1, int(example.shape[1]), -1, -1])
            return model
    except Exception as error:
        raise BackboneError(
            f"{what}: OpenVINO {ov.__version__} cannot read the network ({_last_line(error)})"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
