"""OpenVINO's C library: found in the installed wheel, loaded without its Python package.

``import openvino`` costs 0.1 to 0.2 s and NumPy; a network that was compiled before needs neither.
Importing this module loads nothing; the first :class:`Core` does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import BackboneError
from formats._generated import import_generated

__all__ = ["Core", "Network", "OpenVinoError", "Request", "use_one_heap", "version"]

_M_ARENA_MAX = -8  # glibc's malloc.h

_MISSING = (
    "the declarations of OpenVINO's C library are missing; in a checkout run: pip install -e ."
)
_DEVICE = b"CPU"


class OpenVinoError(RuntimeError):
    """OpenVINO refused; the text is its own."""


def version() -> str:
    """Tell which OpenVINO is loaded.

    Returns
    -------
    str
        Its build, the same as ``openvino.__version__``.

    Raises
    ------
    ImportError
        OpenVINO or our declarations of it are not installed.
    """
    ffi, lib = _library()
    found = ffi.new("ov_version_t *")
    _check(lib.ov_get_openvino_version(found))
    text = _text(ffi, found.buildNumber)
    lib.ov_version_free(found)
    return text


def use_one_heap() -> None:
    """Let all threads of this process share one heap; without effect but for glibc.

    Each thread else has a heap of its own, which glibc enlarges by 4 KiB at a time: 1,900 system
    calls while a network is loaded, and each makes the page faults of other threads wait. For
    processes that load a network and end: 5 of 95 ms.
    """
    ffi = import_generated("engine._openvino_c", _MISSING).ffi
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ffi.dlopen(None).mallopt(_M_ARENA_MAX, 1)


class Core:
    """OpenVINO's way to devices, with properties of the CPU.

    All of them are one: OpenVINO's CPU plug-in gives the thread that loads it a stack for signals,
    and takes it away when it is unloaded. Of several plug-ins that go in another order than they
    came, one leaves the thread the stack of another that is gone, and the next signal is a
    segmentation fault. So the plug-in is loaded once, and stays as long as the process.

    Parameters
    ----------
    properties : mapping of str to str
        Of the CPU; networks are imported with them.

    Raises
    ------
    ImportError
        OpenVINO or our declarations of it are not installed.
    OpenVinoError
        It does not run here.
    """

    def __init__(self, properties: Mapping[str, str]) -> None:
        global _core  # noqa: PLW0603
        ffi, lib = _library()
        with _core_lock:
            if _core is None:
                out = ffi.new("ov_core_t **")
                _check(lib.ov_core_create(out))
                _core = out[0]
        self._core = _core
        self._properties = dict(properties)

    def cpu_name(self) -> str:
        """Return the name of the CPU as OpenVINO sees it."""
        ffi, lib = _library()
        value = ffi.new("char **")
        _check(lib.ov_core_get_property(self._core, _DEVICE, b"FULL_DEVICE_NAME", value))
        return _taken(ffi, lib, value[0])

    def _set_properties(self) -> None:
        ffi, lib = _library()
        for name, value in self._properties.items():
            # Arguments behind the dots have no declared type: they must be C data already.
            texts = (ffi.new("char[]", name.encode()), ffi.new("char[]", value.encode()))
            _check(lib.ov_core_set_property(self._core, _DEVICE, *texts))

    def import_network(self, blob: bytes | memoryview) -> Network:
        """Import a compiled network.

        Parameters
        ----------
        blob : bytes or memoryview
            What ``CompiledModel.export_model`` of the same OpenVINO gave. Not to be changed
            afterwards: the network takes its weights from there as long as it lives, and keeps it.

        Returns
        -------
        Network

        Raises
        ------
        OpenVinoError
            It is none, or one of another OpenVINO or CPU, or a property is not known.
        BackboneError
            A file ``.bin`` in the working folder, which OpenVINO would take for the weights.
        """
        ffi, lib = _library()
        _check_working_folder()
        # Let go of the view at once and keep the bytes: were both found in one cycle of garbage,
        # Python would crash in freeing a memoryview that is still exported.
        with ffi.from_buffer("char[]", blob) as view, _core_lock:
            self._set_properties()
            content = ffi.cast("char *", view)
            found = _made(
                ffi,
                lib,
                "ov_compiled_model",
                lambda out: lib.ov_core_import_model(self._core, content, len(blob), _DEVICE, out),
            )
        return Network(found, blob)


def _check_working_folder() -> None:
    """Keep OpenVINO from taking weights out of the working folder.

    OpenVINO 2026.4 looks for a file ``.bin`` there while it imports. What it finds it takes for the
    weights of the network, whatever it is: features were others, and the answer was NaN. No
    property turns that off. Where it may not look it ends the process; a service account started
    from root's home is in such a folder. No path that is relative to it can be opened anyhow, and
    there is no way back into it, so it is left for the root.
    """
    # pathlib is not imported on the way to the first answer
    try:
        os.stat(".bin")  # noqa: PTH116
    except PermissionError:
        os.chdir(os.sep)
    except OSError:
        return
    if os.path.exists(".bin") and not os.path.isdir(".bin"):  # noqa: PTH110, PTH112
        raise BackboneError(
            f"the working folder {os.getcwd()} holds a file named .bin, which OpenVINO would take "  # noqa: PTH109
            "for the weights of the network; rename it, or start in another folder"
        )


class Network:
    """A compiled network; made by :meth:`Core.import_network`."""

    def __init__(self, compiled: Any, content: Any) -> None:
        self._compiled = compiled
        # Freed, it was written over, and the features were those of other weights.
        self._content = content

    def property(self, name: str) -> str:
        """Return a property it was compiled with, such as ``"INFERENCE_NUM_THREADS"``."""
        ffi, lib = _library()
        value = ffi.new("char **")
        _check(lib.ov_compiled_model_get_property(self._compiled, name.encode(), value))
        return _taken(ffi, lib, value[0])

    def request(self, outputs: Sequence[str]) -> Request:
        """Make a request: what one run of the network needs.

        Parameters
        ----------
        outputs : sequence of str
            Names of the tensors wanted.

        Returns
        -------
        Request

        Raises
        ------
        OpenVinoError
            No such output, or memory is short.
        """
        return Request(self, self._compiled, outputs)


class Request:
    """One run of a network at a time; made by :meth:`Network.request`.

    It keeps its network alive. Its buffers belong to OpenVINO and are dead when it is.

    Attributes
    ----------
    input : writable buffer
        Bytes of the input tensor.
    """

    def __init__(self, network: Network, compiled: Any, outputs: Sequence[str]) -> None:
        ffi, lib = _library()
        self._ffi, self._lib = ffi, lib
        self._request = _made(
            ffi,
            lib,
            "ov_infer_request",
            lambda out: lib.ov_compiled_model_create_infer_request(compiled, out),
        )
        tensor = _made(
            ffi,
            lib,
            "ov_tensor",
            lambda out: lib.ov_infer_request_get_input_tensor(self._request, out),
        )
        self._input = tensor
        self._outputs = {
            name: _made(
                ffi,
                lib,
                "ov_tensor",
                lambda out, name=name: lib.ov_infer_request_get_tensor(
                    self._request, name.encode(), out
                ),
            )
            for name in outputs
        }
        self.input = self._data(tensor)
        self._network = network

    def run(self) -> None:
        """Run the network on what lies in :attr:`input`; other Python threads go on meanwhile."""
        _check(self._lib.ov_infer_request_infer(self._request))

    def output(self, name: str) -> Any:
        """Return the bytes of an output tensor: a buffer, valid until the next run.

        Parameters
        ----------
        name : str
            One of those the request was made for.
        """
        # Asked anew each time: a plug-in may give a run another place in memory.
        return self._data(self._outputs[name])

    def _data(self, tensor: Any) -> Any:
        size = self._ffi.new("size_t *")
        _check(self._lib.ov_tensor_get_byte_size(tensor, size))
        data = self._ffi.new("void **")
        _check(self._lib.ov_tensor_data(tensor, data))
        return self._ffi.buffer(data[0], size[0])


# --- the library --------------------------------------------------------------------------------

_lock = threading.Lock()
_loaded: tuple[Any, Any] | None = None
# One for all, made once; the lock is held while its properties are those of one import.
_core_lock = threading.Lock()
_core: Any = None


def _library() -> tuple[Any, Any]:
    """Load declarations and library, once."""
    global _loaded  # noqa: PLW0603
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _load()
    return _loaded


def _load() -> tuple[Any, Any]:
    ffi = import_generated("engine._openvino_c", _MISSING).ffi
    path = _find()
    if sys.platform == "win32":
        # The libraries it needs lie beside it; the folder stays known for its plug-ins.
        os.add_dll_directory(os.path.dirname(path))  # noqa: PTH120
    else:
        # Through the C library first: cffi's own dlopen holds the interpreter while it works.
        # What is wrong with the library is said by the second one.
        ffi.dlopen(None).dlopen(os.fsencode(path), ffi.RTLD_NOW)
    try:
        lib = ffi.dlopen(path, ffi.RTLD_NOW)
        # Looked up here, where a missing one can be explained: cffi else does so at the first call.
        for name in dir(lib):
            if name.startswith("ov_"):
                getattr(lib, name)
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path}: cannot be loaded ({error})", path=path) from error
    return ffi, lib


def _find() -> str:
    """Find the library in the wheel, without importing its package."""
    from importlib.util import find_spec

    spec = find_spec("openvino")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("no module named 'openvino'", name="openvino")
    folders = [os.path.join(place, "libs") for place in spec.submodule_search_locations]  # noqa: PTH118
    # libopenvino_c.so.2641, libopenvino_c.2641.dylib, openvino_c.dll
    stem = "openvino_c." if sys.platform == "win32" else "libopenvino_c."
    for folder in folders:
        try:
            names = [name for name in os.listdir(folder) if name.startswith(stem)]  # noqa: PTH208
        except OSError:
            continue
        if names:
            # Should there be several, the plain name is a link to the newest.
            return os.path.join(folder, min(names, key=len))  # noqa: PTH118
    raise ImportError(
        f"openvino is installed without its C library ({stem}* in {' or '.join(folders)})",
        name="openvino",
    )


def _made(ffi: Any, lib: Any, kind: str, make: Any) -> Any:
    """Let OpenVINO make an object, which is freed when nobody holds it any more."""
    out = ffi.new(f"{kind}_t **")
    _check(make(out))
    return ffi.gc(out[0], getattr(lib, f"{kind}_free"))


def _check(status: int) -> None:
    if status:
        ffi, lib = _library()
        text = _text(ffi, lib.ov_get_last_err_msg()).strip()
        raise OpenVinoError(text or _text(ffi, lib.ov_get_error_info(status)))


def _text(ffi: Any, pointer: Any) -> str:
    found: bytes = ffi.string(pointer) if pointer else b""
    return found.decode("utf-8", "replace")


def _taken(ffi: Any, lib: Any, pointer: Any) -> str:
    """Copy a text that OpenVINO made for us, and give it back."""
    text = _text(ffi, pointer)
    lib.ov_free(pointer)
    return text
