"""The doctor: a healthy machine, and each thing that may be wrong with one."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine import doctor, doctor_steps, machine, scrubbing
from engine.doctor import FAIL, MISSING, OK, WARN, Check

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["hilum", "can_predict", "exit_code", "checks"],
    "properties": {
        "hilum": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
        "can_predict": {"type": "boolean"},
        "exit_code": {"enum": [0, 1, 3]},
        "checks": {
            "type": "array",
            "minItems": 10,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "status", "found", "cure", "facts"],
                "properties": {
                    "name": {"type": "string", "minLength": 1, "maxLength": 14},
                    "status": {"enum": [OK, WARN, MISSING, FAIL]},
                    "found": {"type": "string", "minLength": 1},
                    "cure": {"type": "string"},
                    "facts": {"type": "object"},
                },
            },
        },
    },
}
USER, HOST = "drhouseknecht", "pacsgateway07"


@dataclass
class Run:
    code: int
    out: str
    err: str
    json: dict[str, Any]

    def check(self, name: str, number: int = 0) -> dict[str, Any]:
        found = [check for check in self.json["checks"] if check["name"] == name]
        assert found, (name, self.out)
        each: dict[str, Any] = found[number]
        return each

    def statuses(self, name: str) -> set[str]:
        return {check["status"] for check in self.json["checks"] if check["name"] == name}


def run_doctor(
    folder: Path,
    *arguments: str,
    package: Path | None = None,
    environment: dict[str, str | None] | None = None,
) -> Run:
    """Run the command as somebody whose home lies in ``folder``; kernels are switched off.

    To compile all of them takes a minute; that they are is another test's.
    """
    home = folder / "home" / USER
    home.mkdir(parents=True, exist_ok=True)
    repository = Path(doctor.__file__).parents[1]
    changes: dict[str, str | None] = {
        "HOME": str(home),
        "LOCALAPPDATA": str(home),
        "XDG_CACHE_HOME": None,
        "XDG_RUNTIME_DIR": None,
        "USER": USER,
        "LOGNAME": USER,
        "HOSTNAME": HOST,
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": str(package or repository),
        "ONEDNN_MAX_CPU_ISA": None,
        "OV_CPU_MAX_ISA": None,
    }
    if environment is not None:
        changes |= environment
    variables = {key: value for key, value in os.environ.items() if key not in changes}
    variables |= {key: value for key, value in changes.items() if value is not None}
    figures = folder / "doctor.json"
    figures.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "engine.doctor", "--json", str(figures), *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    found = json.loads(figures.read_text()) if figures.is_file() else {}
    if found:
        assert found["exit_code"] == done.returncode
    return Run(done.returncode, done.stdout, done.stderr, found)


def assert_fits_a_page(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= 40, text
    assert max(map(len, lines)) <= 80, text


def assert_leads_to_nobody(text: str, folder: Path) -> None:
    names = {USER, HOST, str(folder), platform.node()} - {"", "localhost"}
    if getpass.getuser() != "root":
        names.add(getpass.getuser())
    for name in names:
        assert name not in text, (name, text)
    assert re.search(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", text) is None


# ---- a healthy machine -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Run]:
    folder = tmp_path_factory.mktemp("healthy")
    return folder, run_doctor(folder), run_doctor(folder, "--prepare-only", "--quiet")


def test_a_healthy_machine_can_predict(healthy: tuple[Path, Run, Run]) -> None:
    folder, first, _ = healthy
    assert first.code == 0, first.out + first.err
    for name in ("Python", "Packages", "Cache", "Network", "Known answers", "Head", "Prediction"):
        assert first.statuses(name) == {OK}, first.out
    assert "This machine can predict." in first.out
    assert first.err == ""
    assert_fits_a_page(first.out)
    assert first.check("Network")["facts"]["cache"] == "kept now"
    assert first.check("Network")["facts"]["cache_bytes"] > 1e6
    assert first.check("Cache")["found"].startswith("~")
    probes = first.check("Known answers")["facts"]["probes"]
    assert {probe["probe"] for probe in probes} == {"ramp", "chest", "noise"}
    facts = first.check("Prediction")["facts"]
    for kind in ("png", "dcm"):
        assert facts[kind]["seconds"] > 0
        if hasattr(os, "wait4"):
            assert 20e6 < facts[kind]["peak_bytes"] < 1e9
    if os.name == "posix":
        (cache,) = (folder / "home").rglob("hilum")
        assert cache.stat().st_mode & 0o077 == 0
        assert list(cache.glob("*.blob"))


def test_the_second_time_everything_is_kept(healthy: tuple[Path, Run, Run]) -> None:
    _, _, second = healthy
    assert second.code == 0
    assert second.check("Network")["facts"]["cache"] == "kept before"
    assert "Prediction" not in {check["name"] for check in second.json["checks"]}
    # Quiet: only what is not OK, and the sentence at the end.
    assert "OK " not in second.out
    assert second.out.splitlines()[-1].startswith("This machine can predict.")


def test_json_is_as_documented(healthy: tuple[Path, Run, Run]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for each in healthy[1:]:
        jsonschema.validate(each.json, SCHEMA)
        json.dumps(each.json, allow_nan=False)


def test_nothing_leads_to_a_person(healthy: tuple[Path, Run, Run]) -> None:
    folder, *runs = healthy
    for each in runs:
        assert_leads_to_nobody(each.out + json.dumps(each.json), folder)


# ---- caches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["home", "cache"])
def test_without_a_cache_predictions_work(where: str, tmp_path: Path) -> None:
    # Below a file nobody may make a folder, not even root.
    (tmp_path / "file").touch()
    changes: dict[str, str | None] = {"HOME": "/dev/null/none", "LOCALAPPDATA": None}
    if where == "cache":
        changes = {"XDG_CACHE_HOME": str(tmp_path / "file" / "below")}
        changes["LOCALAPPDATA"] = changes["XDG_CACHE_HOME"]
    found = run_doctor(tmp_path, environment=changes)
    assert found.code == 0, found.out
    assert found.check("Cache")["status"] == WARN
    assert "XDG_CACHE_HOME" in found.check("Cache")["cure"] or os.name == "nt"
    assert found.check("Network")["status"] == WARN
    assert found.check("Network")["facts"]["cache"] == "not kept"
    assert found.statuses("Prediction") == {OK}
    assert_leads_to_nobody(found.out + json.dumps(found.json), tmp_path)


def cache_check(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Check:
    result = {"folder": "~/.cache/hilum", "writable": True, "reason": None, "own": True,
              "private": True, "locks": True} | facts  # fmt: skip
    outcome = doctor._Outcome(({"result": result},), None, 0, 0.0, None)
    monkeypatch.setattr(doctor, "_step", lambda *_: outcome)
    (check,) = doctor._cache_checks(lambda _: None)
    return check


def test_a_cache_that_others_may_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_check(monkeypatch).status == OK
    open_to_all = cache_check(monkeypatch, private=False)
    assert (open_to_all.status, open_to_all.cure) == (WARN, "chmod 700 ~/.cache/hilum")
    assert "account" in cache_check(monkeypatch, own=False).cure
    assert cache_check(monkeypatch, locks=False).status == WARN
    assert cache_check(monkeypatch, folder=None, writable=False, reason="none").status == WARN


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_rights_of_the_cache_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "hilum"
    monkeypatch.setattr(doctor_steps, "_cache_dir", lambda: folder)
    made = doctor_steps._cache()
    assert (made["mode"], made["writable"], made["private"], made["own"]) == (
        "700", True, True, True
    )  # fmt: skip
    folder.chmod(0o777)
    assert doctor_steps._cache()["private"] is False


# ---- packages ----------------------------------------------------------------------------------


def shadow(folder: Path, **modules: str) -> dict[str, str | None]:
    """Put modules of our own before the installed ones."""
    folder.mkdir()
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    repository = Path(doctor.__file__).parents[1]
    return {"PYTHONPATH": os.pathsep.join((str(repository), str(folder)))}


def test_missing_and_broken_extras_are_named(tmp_path: Path) -> None:
    changes = shadow(
        tmp_path / "shadow",
        gdcm="raise ModuleNotFoundError('No module named gdcm')",
        highdicom="raise ImportError('libjpeg.so.62: cannot open')",
        pyarrow="import no_such_part_of_it",
        # As a wheel that was compiled for a newer CPU ends.
        pynetdicom="import os, signal; os.kill(os.getpid(), signal.SIGILL)",
    )
    found = run_doctor(tmp_path, "--prepare-only", environment=changes)
    assert found.code == 0, found.out
    dicom, pacs = found.check("[dicom]"), found.check("[pacs]")
    assert dicom["status"] == pacs["status"] == MISSING
    assert "python-gdcm not installed" in dicom["found"]
    assert "'python-gdcm>=3.0.24'" in dicom["cure"] or os.name == "nt"
    assert "libjpeg.so.62" in pacs["found"]
    if os.name == "posix":
        assert "SIGILL" in pacs["found"]
    assert "pip install" in pacs["cure"]
    # Those behind the one that killed the process were looked at all the same.
    assert "needs no_such_part_of_it" in found.check("[convert]")["found"]
    assert_fits_a_page(found.out)


def test_a_missing_core_package_stops_it(tmp_path: Path) -> None:
    changes = shadow(tmp_path / "shadow", pydicom="raise ModuleNotFoundError('pydicom')")
    found = run_doctor(tmp_path, environment=changes)
    assert found.code == 3
    assert found.check("Packages")["status"] == FAIL
    assert "pydicom>=3.0" in found.check("Packages")["cure"]
    assert "cannot predict" in found.out


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "2024.6.0" if name == "openvino" else "99")
    lines = tuple({"package": name, "error": None} for name in _all_packages())
    outcome = doctor._Outcome((*lines, {"result": {}}), None, 0, 0.0, None)
    monkeypatch.setattr(doctor, "_step", lambda *_: outcome)
    check = doctor._core_check(doctor._look_at_packages())
    assert check.status == FAIL
    assert "2025.4 or later" in check.found


def _all_packages() -> list[str]:
    return [*doctor.CORE, *(name for _, members in doctor.EXTRAS.values() for name in members)]


def test_the_table_of_packages_is_the_projects(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]

    def stated(packages: dict[str, tuple[str, str]]) -> set[str]:
        return {f"{name}>={least}" for name, (_, least) in packages.items()}

    assert stated(doctor.CORE) == set(project["dependencies"])
    for extra, (_, members) in doctor.EXTRAS.items():
        assert stated(members) == set(project["optional-dependencies"][extra])
    assert set(project["optional-dependencies"]) - set(doctor.EXTRAS) == {
        "models", "bench", "peers", "test", "lint"
    }  # fmt: skip


# ---- processor ---------------------------------------------------------------------------------


def test_an_old_processor_passes_and_is_named(tmp_path: Path) -> None:
    if not Path("/proc/cpuinfo").is_file():
        pytest.skip("the limits are those of x86-64 on Linux")
    limits: dict[str, str | None] = dict.fromkeys(machine.ISA_VARIABLES, "SSE41")
    found = run_doctor(tmp_path, "--prepare-only", environment=limits)
    assert found.code == 0, found.out
    assert found.statuses("Known answers") == {OK}
    processor = found.check("Processor")
    assert processor["status"] == WARN
    assert processor["facts"]["effective_level"] == "SSE4.1"
    assert "remove ONEDNN_MAX_CPU_ISA" in processor["cure"]


@pytest.mark.parametrize(
    ("flags", "runtime", "status", "said"),
    [
        ("sse4_1 sse4_2 avx avx2 fma", "2026.4.1", OK, "AVX2; supported"),
        ("sse4_1 sse4_2 avx", "2026.4.1", WARN, "outside"),
        ("sse4_1 sse4_2", "2025.4.1", OK, "SSE4.2; supported"),
        ("sse4_1", "2025.4.1", WARN, "outside"),
        ("", "2025.4.1", WARN, "older than SSE4.1"),
        ("sse4_1 sse4_2 avx avx2 fma avx_vnni", "2026.4.1", OK, "AVX2-VNNI"),
        (
            "sse4_1 sse4_2 avx avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni "
            "amx_tile amx_int8",
            "2026.0.0",
            OK,
            "AMX",
        ),
    ],
)
def test_processors_inside_and_outside_of_support(
    flags: str, runtime: str, status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in machine.ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    levels = machine.cpu_levels(frozenset(flags.split()))
    monkeypatch.setattr(doctor, "found_levels", lambda: (levels, "Model X"))
    check = doctor._processor_check(runtime)
    assert check.status == status
    assert said in check.found
    if status == WARN and "SSE4.2" in levels:
        assert "openvino==2025.4.1" in check.cure


def test_one_limit_alone_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ("SSE4.1", "SSE4.2", "AVX", "AVX2")
    monkeypatch.setattr(doctor, "found_levels", lambda: (levels, "Model X"))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX")
    monkeypatch.delenv("OV_CPU_MAX_ISA", raising=False)
    assert "set both" in doctor._processor_check("2026.4.1").cure
    monkeypatch.setattr(doctor, "found_levels", lambda: (None, ""))
    assert doctor._processor_check("2026.4.1").status == WARN


# ---- cores and memory --------------------------------------------------------------------------


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": ["150000 100000", "max 100000"], "memory.max": ["268435456", "max"],
              "memory.current": ["67108864"]}  # fmt: skip
    monkeypatch.setattr(machine, "_cgroup", lambda v2, _: limits.get(v2, []))
    assert machine.cpu_quota() == 1.5
    total, free = machine.memory_bytes()
    assert total == 256 * 2**20
    assert free is not None
    assert free <= 192 * 2**20
    memory = doctor._memory_check()
    assert memory.status == WARN
    assert "0.2 GiB, 0.2 GiB" in memory.found
    limits["cpu.max"] = ["10000 100000"]
    cores = doctor._cores_check()
    assert (cores.status, cores.cure) == (WARN, "predict many files with --threads 1")
    limits.clear()
    assert machine.cpu_quota() is None
    assert doctor._cores_check().status == OK


# ---- networks ----------------------------------------------------------------------------------


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """This Hilum once more, as a wheel would lay it into site-packages."""
    folder = tmp_path / "site"
    repository = Path(doctor.__file__).parents[1]
    for package in ("engine", "formats"):
        shutil.copytree(
            repository / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__", "golden"),
        )
    # An editable install would be found before it.
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__]\n"
    )
    return folder


def test_a_damaged_network_is_found(tmp_path: Path, copied_package: Path) -> None:
    blob = copied_package / "engine" / "models" / "efficientnet-lite0.bin"
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    found = run_doctor(tmp_path, package=copied_package)
    assert found.code == 3, found.out
    network = found.check("Network")
    assert network["status"] == FAIL
    assert "altered or damaged" in network["found"]
    assert "install" in network["found"] + network["cure"]
    assert "Prediction" not in {check["name"] for check in found.json["checks"]}
    assert "cannot predict" in found.out
    assert_fits_a_page(found.out)
    assert_leads_to_nobody(found.out + json.dumps(found.json), tmp_path)


def test_a_machine_that_computes_something_else_is_found(
    tmp_path: Path, copied_package: Path
) -> None:
    """A network that is whole, but not the one whose answers are known, stands for the CPU."""
    from engine.models.saturation import read_int8_layers

    blob = copied_package / "engine" / "models" / "efficientnet-lite0.bin"
    layer = read_int8_layers(blob.with_suffix(".xml"))[6]
    weights = layer.weights.copy()
    weights[3:9] = -weights[3:9]
    content = bytearray(blob.read_bytes())
    content[layer.weights_offset : layer.weights_offset + weights.nbytes] = weights.tobytes()
    blob.write_bytes(content)
    path = blob.with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    card["files"]["bin"]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(card), encoding="utf-8")
    found = run_doctor(tmp_path, "--prepare-only", package=copied_package)
    assert found.code == 3, found.out
    assert found.statuses("Network") == {OK}
    answers = found.check("Known answers")
    assert answers["status"] == FAIL
    assert "times the tolerance" in answers["found"]
    assert "--force-reinstall openvino hilum" in answers["cure"]


def test_joined_networks_are_checked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def step(*words: str) -> doctor._Outcome:
        asked.append(words)
        return doctor._Outcome((), "stop", 1, 0.0, None)

    monkeypatch.setattr(doctor, "_step", step)
    heads = [
        doctor._Head(1, "a", "a", "x", ("t1", "t2")),
        doctor._Head(2, "b", "b", "x+y", ("x.t1", "y.t3")),
        doctor._Head(3, "c", "c", "x", ("t1", "t2")),
    ]
    doctor._network_checks(heads, lambda _: None)
    assert asked == [("network", "x", "t1,t2"), ("network", "x", "t1"), ("network", "y", "t3")]


# ---- kernels -----------------------------------------------------------------------------------


def test_kernels_are_compiled_where_they_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine import jit

    def prepare(report: Any) -> int:
        report("pool_maps", 1, 2)
        return 2

    monkeypatch.setattr(jit, "prepare", prepare)
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    found = doctor_steps._kernels()
    assert (found["state"], found["n_compiled"]) == ("ready", 2)
    assert json.loads(capsys.readouterr().out) == {"progress": ["pool_maps", 1, 2]}
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert doctor_steps._kernels()["state"] == "not kept"
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert doctor_steps._kernels()["state"] == "off"


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        ({"state": "ready", "n_compiled": 3, "seconds": 31.0}, OK, "3 compiled and kept in 31 s"),
        ({"state": "ready", "n_compiled": 0, "seconds": 1.0}, OK, "all kept before"),
        ({"state": "not kept"}, WARN, "in each process"),
        ({"state": "off"}, WARN, "switched off"),
        ({"error": {"kind": "ImportError", "text": "no numba"}}, WARN, "no numba"),
    ],
)
def test_kernels_never_stop_a_machine(
    result: dict[str, Any], status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def step(_name: str, listen: Any) -> doctor._Outcome:
        listen({"progress": ["pool_maps", 1, 2]})
        return doctor._Outcome(({"result": result},), None, 0, 0.0, None)

    monkeypatch.setattr(doctor, "_step", step)
    (check,) = doctor._kernel_checks(seen.append)
    assert (check.status, said in check.found) == (status, True)
    assert "Compiling kernels 1/2 (pool_maps)" in seen


# ---- heads -------------------------------------------------------------------------------------


def test_an_unknown_head_is_a_slip_of_the_keyboard(tmp_path: Path) -> None:
    found = run_doctor(tmp_path, "--head", str(tmp_path / "nothing.safetensors"))
    assert found.code == 2
    assert "check the spelling" in found.err
    assert found.json == {}


def test_a_head_that_cannot_be_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, stops in (
        ("HeadFileError", False),
        ("PermissionError", False),
        ("ImportError", True),
    ):
        error = {"error": {"kind": kind, "text": "/x/anna.safetensors: bad"}}
        outcome = doctor._Outcome(({"result": error},), None, 0, 0.0, None)
        monkeypatch.setattr(doctor, "_step", lambda *_, outcome=outcome: outcome)
        ((check,), heads) = doctor._head_checks(["/x/anna.safetensors"], lambda _: None)
        assert (check.status, check.stops, heads) == (FAIL, stops, [])
        assert check.found == "head 1: bad"


def test_a_damaged_head_is_not_the_machines_fault(tmp_path: Path) -> None:
    head = tmp_path / "jones_mary.safetensors"
    head.write_bytes(doctor.DEMONSTRATION_HEAD.read_bytes()[:-100])
    good = tmp_path / "good.safetensors"
    shutil.copy(doctor.DEMONSTRATION_HEAD, good)
    found = run_doctor(tmp_path, "--head", str(head), "--head", str(good), "--prepare-only")
    assert found.code == 1, found.out
    assert found.check("Head", 0)["status"] == FAIL
    assert found.check("Head", 1)["status"] == OK
    assert found.check("Head", 1)["facts"]["number"] == 2
    assert "not with every head" in found.out
    assert_leads_to_nobody(found.out + json.dumps(found.json), tmp_path)
    assert "jones" not in found.out + json.dumps(found.json)


@pytest.mark.parametrize(
    ("code", "answer", "words", "stops"),
    [
        (1, None, "error: head 'x' was trained on features of another network", False),
        (3, None, "error: OpenVINO cannot run", True),
        (1, None, "ImportError: no such name", True),
        (1, {"status": "error", "reason": "cannot be read"}, None, True),
        (1, {"status": "refused", "reason": "blank: …"}, None, True),
        (-4, None, "killed by an instruction", True),
    ],
)
def test_whose_fault_a_failed_prediction_is(
    code: int,
    answer: dict[str, Any] | None,
    words: str | None,
    stops: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = () if answer is None else (answer,)
    outcome = doctor._Outcome(lines, words, code, 0.1, None)
    monkeypatch.setattr(doctor, "_start", lambda *_: outcome)
    check = doctor._prediction_check(doctor._Head(2, "/x/y", "x", "b", ()), tmp_path)
    assert (check.status, check.stops) == (FAIL, stops)
    assert check.found.startswith("head 2, png: ")
    assert "error: " not in check.found


# ---- the summary -------------------------------------------------------------------------------


def test_a_page_is_a_page() -> None:
    long = "word " * 60
    checks = [Check("Packages", OK, "fine"), Check("[pacs]", MISSING, long, long, stops=False)]
    checks += [Check("Head", OK, f"{number} name: {long}") for number in range(1, 31)]
    checks += [Check("Prediction", FAIL if number == 4 else OK, f"head {number}", stops=False)
               for number in range(1, 31)]  # fmt: skip
    text = doctor.summary(checks)
    assert_fits_a_page(text)
    assert "FAIL    Prediction     head 4" in text
    assert re.search(r"OK      and \d+ more of the same", text)
    assert text.endswith("1 line could be better.")
    quiet = doctor.summary(checks, quiet=True)
    assert quiet.count("\n") < 15
    assert "head 5" not in quiet


def test_exit_codes() -> None:
    fine, warned = Check("a", OK, "x"), Check("b", WARN, "x")
    missing = Check("c", MISSING, "x", stops=False)
    head, machine = Check("d", FAIL, "x", stops=False), Check("e", FAIL, "x")
    assert doctor.exit_code_of([fine, warned, missing]) == 0
    assert doctor.exit_code_of([fine, head]) == 1
    assert doctor.exit_code_of([head, machine]) == 3


def test_texts_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/anna")
    monkeypatch.setenv("USERPROFILE", "/srv/people/anna")
    monkeypatch.setenv("USER", "anna")
    monkeypatch.setattr(platform, "node", lambda: "ward3.example.org")
    clean = scrubbing.scrub
    assert clean("/srv/people/anna/.cache/x") == "~/.cache/x"
    assert clean("/home/otto/heads/a: bad") == "~/heads/a: bad"
    assert "otto" not in clean(r"C:\Users\otto\AppData\x.blob")
    assert clean("anna on ward3 and ward3.example.org") == "… on … and …"
    assert clean("annals of AVX2") == "annals of AVX2"
    assert "archive" not in clean("cannot read /mnt/archive/miller/x.png")
    assert clean("AVX/SSE and 3/4") == "AVX/SSE and 3/4"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_deaths_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "instruction" in doctor._death(signal.SIGILL)
    assert "memory" in doctor._death(signal.SIGKILL)
    assert "SIGSEGV" in doctor._death(signal.SIGSEGV)
    silent = doctor._Outcome((), None, 1, 0.0, None, "RuntimeError: gone")
    assert silent.error == "RuntimeError: gone"
    outcome = doctor._Outcome((), doctor._death(signal.SIGILL), -4, 0.0, None)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    (check,) = doctor._network_lines("x", outcome)
    assert "OPENBLAS_CORETYPE" in check.cure
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    (check,) = doctor._network_lines("x", outcome)
    assert "OPENBLAS_CORETYPE" not in check.cure
    assert check.status == FAIL
    assert check.stops
    assert "openvino==2025.4.1" in check.cure
