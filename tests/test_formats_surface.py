from __future__ import annotations

import inspect
import pickle

import pytest
from formats_helpers import GOLDEN, run_python

import formats
from formats import errors


def test_public_names_are_sorted_and_exist() -> None:
    # ruff's order (RUF022): constants, classes, functions
    def rank(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert formats.__all__ == sorted(formats.__all__, key=rank)
    for name in formats.__all__:
        assert inspect.getdoc(getattr(formats, name)), name


def test_import_needs_only_numpy_and_the_compiled_reader() -> None:
    code = (
        "import sys\n"
        "import formats\n"
        "for name in formats.__all__: getattr(formats, name)\n"  # names are loaded when first used
        "heavy = ['engine', 'openvino', 'numba', 'pydicom', 'PIL', 'safetensors', 'tqdm',\n"
        "    'torch', 'tensorflow', 'pyarrow', 'cryptography', 'scipy', 'sklearn', 'cffi']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = run_python(code)
    assert result.stdout == "[]\n", result.stderr


def test_formats_imports_nothing_from_the_floors_above() -> None:
    code = (
        "import sys\n"
        "import formats, formats.__main__\n"
        "for name in formats.__all__: getattr(formats, name)\n"
        "print(any(name == 'engine' or name.startswith('engine.') for name in sys.modules))\n"
    )
    result = run_python(code)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("name", errors.__all__)
def test_every_exception_is_a_builtin_too_and_survives_pickling(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.EngineError)
    if kind is errors.EngineError:
        return
    builtin = OSError if kind is errors.WriteError else ValueError
    assert issubclass(kind, builtin)
    error = kind("somewhere", "is wrong. Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert "somewhere" in str(error) and "Mend it." in str(error)
    assert again.message == "is wrong. Mend it."


def test_container_errors_form_one_family() -> None:
    for name in ("NotAContainer", "UnsupportedVersion", "Truncated", "Corrupt"):
        assert issubclass(getattr(formats, name), formats.ContainerError)


def test_reading_never_compiles_the_writers_tripwires() -> None:
    """They take 20 ms, which a prediction from a cold start would pay."""
    code = (
        "import sys\n"
        "import formats\n"
        "formats.open_container(sys.argv[1]).close()\n"
        "print([name for name in ('formats._identity', 'formats.writer') if name in sys.modules])\n"
    )
    result = run_python(code, str(GOLDEN / "valid" / "i8_every_column.hilum"))
    assert result.stdout == "[]\n", result.stderr


def test_a_head_is_read_without_what_containers_need() -> None:
    """Every prediction from a cold start reads a head, and pays for what that imports."""
    code = (
        "import sys\n"
        "import numpy\n"
        "had = set(sys.modules)\n"
        "from formats import canonical_json, preprocessing_digest, read_head, write_head\n"
        "try: read_head('no such file')\n"
        "except ValueError: pass\n"
        "ours = {'formats', *('formats.' + name for name in ('_atomic', '_first_bytes', '_json',\n"
        "    'errors', 'head_file'))}\n"
        "new = set(sys.modules) - had\n"
        "print(sorted(name for name in new if name.startswith('formats')) == sorted(ours))\n"
        "heavy = ['_cffi_backend', 'bz2', 'dataclasses', 'lzma', 'random', 'secrets', 'shutil',\n"
        "    'tempfile']\n"
        "print([name for name in heavy if name in new])\n"
    )
    result = run_python(code)
    assert result.stdout == "True\n[]\n", result.stderr
