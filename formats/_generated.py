"""Where the modules lie that the build generates: cffi's declarations of C libraries."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__all__ = ["import_generated"]


def import_generated(name: str, missing: str) -> Any:
    """Import a generated module, wherever it was installed.

    ``python -m`` in a checkout takes the checkout's package, and after a plain ``pip install .``
    the generated module lies in the package of the same name in site-packages.

    Parameters
    ----------
    name : str
        Full name, such as ``"formats._hilum"``.
    missing : str
        What the error says: what is missing, and the cure.

    Returns
    -------
    module
        With an attribute ``ffi``.

    Raises
    ------
    ImportError
        It was never made.
    """
    try:
        # By name: type checkers must pass without the generated module.
        return import_module(name)
    except ImportError as exc:
        from importlib.util import module_from_spec, spec_from_file_location
        from pathlib import Path

        package, _, stem = name.rpartition(".")
        for folder in sys.path:
            path = Path(folder, package, f"{stem}.py")
            spec = spec_from_file_location(name, path) if path.is_file() else None
            if spec is not None and spec.loader is not None:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
        raise ImportError(missing, name=name) from exc
