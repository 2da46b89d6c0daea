"""The house keeps its floors: who may import whom, and what a light import must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import engine

# Each floor may import itself's earlier names and every floor before it.
FLOORS = [
    {"formats"},
    {"engine.errors", "engine.kernels", "engine.machine", "engine.scrubbing"},
    # What a process does before, or without, loading NumPy: locks, queue, network runtime.
    {"engine.slots", "engine.spool", "engine.openvino_c", "engine._openvino_c", "engine.jit",
     "engine.answers"},
    {"engine.plain", "engine.reduction"},
    {"engine.picture", "engine.codestream"},
    {"engine.preprocessing"},
    {"engine.dicom_file"},
    {"engine.dicom_kind"},
    {"engine.dicom"},
    {"engine.images", "engine.backbone", "engine.head_start", "engine.splits", "engine.metrics",
     "engine.resampling", "engine.recalibration", "engine.comparison", "engine.curves",
     "engine.calibration", "engine.manifest", "engine.models", "engine.ood"},
    {"engine.optimisation", "engine.pooling", "engine.heads", "engine.rows", "engine.work"},
    {"engine.dataset"},
    {"engine.fitting"},
    {"engine.selection"},
    {"engine.plan"},
    {"engine.calibrated", "engine.judging"},
    {"engine.validation"},
    {"engine.cascade", "engine.inference", "engine.duplicates", "engine.floors", "engine.heatmap",
     "engine.views"},
    {"engine.protocols"},
    {"engine.features", "engine.training", "engine.prediction", "engine.phantoms"},
    {"engine.dicom_results", "engine.delivery", "engine.probes"},
    {"engine.results"},
    {"engine.study"},
    {"engine.report"},
    {"engine"},
    {"engine.cli"},
    {"engine.worker"},
    {"engine.extract", "engine.train", "engine.evaluate", "engine.serve", "engine.deliver",
     "engine.models.__main__", "engine.doctor_steps", "engine.doctor", "engine.hooks",
     "engine.demo"},
    {"engine.handover"},
    {"engine.predict"},
]  # fmt: skip
ONLY_IMPORTERS = {
    "openvino": {"engine/backbone.py", "engine/models/"},
    "numba": {"engine/kernels"},
    "pydicom": {"engine/dicom", "engine/phantoms.py"},
    "highdicom": {"engine/dicom_results.py"},
    "pynetdicom": {"engine/delivery.py"},
    "safetensors": {"formats/head_file.py", "formats/convert.py", "formats/_tables.py",
                    "engine/models/sources.py"},
    "cryptography": {"formats/signing.py"},
    "pyarrow": {"formats/convert.py", "formats/_tables.py"},
    "torch": {"engine/models/build.py", "engine/models/folding.py", "engine/models/sources.py",
              "formats/datasets.py"},
}  # fmt: skip


def modules(repository: Path) -> dict[str, Path]:
    found = {}
    for package in ("engine", "formats"):
        for path in sorted((repository / package).rglob("*.py")):
            name = ".".join(path.relative_to(repository).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            given = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= given
            # A module taken out of a package is an import of that module alone.
            root = Path(__file__).resolve().parents[1]
            if not all((root / f"{name.replace('.', '/')}.py").is_file() for name in given):
                names.add(node.module)
    return names


def floor_of(module: str) -> int | None:
    # The longest name counts: the command in a package may stand above the package.
    found = [
        (len(room), number)
        for number, floor in enumerate(FLOORS)
        for room in floor
        if module == room or (room != "engine" and module.startswith(f"{room}."))
    ]
    return max(found)[1] if found else None


def test_every_module_has_a_floor(repository: Path) -> None:
    homeless = [name for name in modules(repository) if floor_of(name) is None]
    assert homeless == []


def test_imports_go_down_only(repository: Path) -> None:
    known = modules(repository)
    wrong = []
    for name, path in known.items():
        mine = floor_of(name)
        if name == "engine":
            continue  # its lazy table names the floors under it; test_lazy_names holds that
        for imported in imports(path) & known.keys():
            theirs = floor_of(imported)
            assert mine is not None
            assert theirs is not None
            if imported == "engine" and mine >= floor_of("engine.cli"):  # type: ignore[operator]
                continue
            if theirs > mine:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("package", sorted(ONLY_IMPORTERS))
def test_heavy_packages_have_one_door(repository: Path, package: str) -> None:
    users = {
        path.relative_to(repository).as_posix()
        for path in modules(repository).values()
        if any(name.split(".")[0] == package for name in imports(path))
    }
    allowed = ONLY_IMPORTERS[package]
    assert users, f"nothing imports {package} any more: drop the rule"
    assert all(any(user.startswith(door) for door in allowed) for user in users), users


@pytest.mark.parametrize("statement", ["import engine", "import engine; engine.open_container"])
def test_light_imports_stay_light(statement: str) -> None:
    heavy = ("numba", "openvino", "pydicom", "PIL", "torch", "matplotlib", "tqdm", "safetensors")
    code = f"{statement}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted() -> None:
    assert list(engine.__all__) == sorted(engine.__all__)
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    assert set(engine._HOMES) | {"__version__"} == set(engine.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = engine.no_such_name


def test_version_is_the_distributions(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["version"] == engine.__version__


def test_texts_never_promise_what_they_must_not(repository: Path) -> None:
    """Research use: the words that would promise a finding or anonymity appear nowhere."""
    banned = ("diagnos", "anonymous", "anonymis", "anonymiz")
    # What is burned into every picture that goes back to a PACS, and says the opposite.
    banner = "research use – not for diagnosis"
    hits = []
    for package in ("engine", "formats", "native"):
        for path in (repository / package).rglob("*"):
            if path.suffix not in {".py", ".md", ".json", ".h", ".c"}:
                continue
            text = path.read_text(encoding="utf-8").lower().replace(banner, "")
            hits += [f"{path.name}: {word}" for word in banned if word in text]
    assert hits == []
