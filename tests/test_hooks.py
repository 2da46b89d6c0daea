"""Recipes of engine/hooks: each file is right in itself, and does what the others need."""

from __future__ import annotations

import base64
import configparser
import contextlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import engine.hooks.__main__ as hooks
from engine.dicom_kind import ACCEPTED_MODALITIES, OWN_MANUFACTURER, OWN_SERIES
from engine.hooks import orthanc_poll

HOOKS = hooks.SOURCE
FILES = {path.name: path for path in hooks.recipes()}
README = (HOOKS / "README.md").read_text(encoding="utf-8")
SHELL = sorted(name for name in FILES if name.endswith(".sh"))
UNITS = sorted(name for name in FILES if name.endswith((".service", ".path")))


def need(*programs: str) -> str:
    """Return the first of them that is installed."""
    for program in programs:
        found = shutil.which(program)
        if found:
            return found
    pytest.skip(f"{programs[0]} is not installed")


# ---- The files ---------------------------------------------------------------------------------


def test_readme_and_folder_name_the_same_files() -> None:
    named = set(
        re.findall(r"[a-z_-]+\.(?:sh|ps1|lua|py|json|ini|bat|xml|service|path|conf)\b", README)
    )
    known = set(FILES) | {"orthanc.json", "dicom.ini", "python.json", "sample.py"}
    known |= {"try.dcm.json", "serve.json", "json"}
    assert {name for name in named if name not in known and not name.endswith("dcm.json")} == set()
    # Run by others of them, and not by hand.
    inner = {"storescp_file.sh", "storescp_study.sh", "orthanc_poll.py", "README.md"}
    inner |= {"offline_install.sh", "offline_install.ps1", "storescp_start.sh"}
    assert set(FILES) - named - inner == set()


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_are_sound(name: str) -> None:
    assert FILES[name].read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", FILES[name]], check=True)
    command = [need("shellcheck"), "--external-sources", "--source-path", str(HOOKS), FILES[name]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == ""


def test_every_file_but_the_readme_is_ascii_and_windows_has_its_line_ends() -> None:
    for name, path in FILES.items():
        data = path.read_bytes()
        if name != "README.md":
            assert data.isascii(), name
        ends = {b"\r\n"} if name.endswith(".bat") else {b"\n"}
        assert {end for end in re.findall(rb"\r?\n", data)} == ends, name


def test_lua_is_sound() -> None:
    subprocess.run(
        [need("luac", "luac5.4", "luac5.3", "luac5.1"), "-p", FILES["orthanc.lua"]], check=True
    )


def read_orthanc_json(name: str) -> dict[str, Any]:
    lines = FILES[name].read_text().splitlines()
    found = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    assert isinstance(found, dict)
    return found


def test_configuration_files_name_recipes() -> None:
    assert read_orthanc_json("orthanc_lua.json") == {"LuaScripts": ["/etc/orthanc/orthanc.lua"]}
    plugin = {"PythonScript": "/etc/orthanc/orthanc_plugin.py"}
    assert read_orthanc_json("orthanc_python.json") == plugin
    task = ET.fromstring(FILES["windows_task.xml"].read_text())
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    command = task.find(f".//{space}Command")
    assert command is not None
    assert command.text == r"C:\hilum\hooks\windows_worker.bat"
    conquest = configparser.ConfigParser(interpolation=None)
    conquest.read_string("[sscscp]\n" + FILES["conquest_dicom.ini"].read_text())
    converter = conquest["sscscp"]["ImportConverter0"]
    # A UID is what a sender chooses: no command line gets it.
    assert converter.partition("system ")[2] == r"C:\hilum\hooks\conquest.bat"


@pytest.mark.parametrize("name", UNITS)
def test_units_are_sound(name: str, tmp_path: Path) -> None:
    text = FILES[name].read_text()
    units = configparser.ConfigParser(interpolation=None, strict=False)
    units.optionxform = str  # type: ignore[assignment,method-assign]
    units.read_string(text)
    if name.endswith(".service"):
        run = Path(units["Service"]["ExecStart"].split()[0])
        assert run.parent == Path("/opt/hilum/hooks")
        assert run.name in FILES
        for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp"):
            assert units["Service"][key] == "yes"
        assert units["Service"]["IPAddressDeny"] == "any"
    else:
        assert units["Path"]["Unit"] in FILES
    need("systemd-analyze")
    for other in UNITS:
        here = FILES[other].read_text().replace("/opt/hilum/hooks", str(tmp_path))
        (tmp_path / other).write_text(here)
    hooks.copy_recipes(tmp_path / "scripts")
    for script in SHELL:
        shutil.copy(tmp_path / "scripts" / script, tmp_path / script)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.replace(str(tmp_path), "") == ""
    assert result.returncode == 0


def test_documented_commands_and_options_exist() -> None:
    texts = [
        README,
        *(FILES[name].read_text() for name in FILES if name.endswith((".sh", ".bat", ".ps1"))),
    ]
    text = "\n".join(texts)
    modules = set(re.findall(r"-m (engine[a-z_.]*[a-z])", text))
    assert {
        "engine.serve",
        "engine.predict",
        "engine.deliver",
        "engine.doctor",
        "engine.hooks",
    } <= modules
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module
    for name in re.findall(r"`(engine\.[a-z_.]+)", README):
        assert importlib.util.find_spec(name.rstrip(".")) is not None, name
    wanted = {
        "engine.serve": ["--status", "--idle", "--force", "--engines", "--keep", "--sr", "--sc",
                         "--heatmap", "--store", "--orthanc", "--output-dir", "--head"],
        "engine.predict": ["--spool", "--no-wait"],
        "engine.hooks.orthanc_poll": ["--everything", "--once", "--position", "--orthanc"],
    }  # fmt: skip
    for module, options in wanted.items():
        known = importlib.import_module(module).parser()._option_string_actions
        assert [option for option in options if option not in known] == [], module


def test_what_hooks_leave_out_is_what_the_engine_calls_its_own() -> None:
    assert OWN_MANUFACTURER.upper() == orthanc_poll.OWN_MANUFACTURER
    assert OWN_SERIES.upper() == orthanc_poll.OWN_SERIES
    assert ("", *ACCEPTED_MODALITIES) == orthanc_poll.MODALITIES
    plugin, lua = FILES["orthanc_plugin.py"].read_text(), FILES["orthanc.lua"].read_text()
    for text, sign in ((plugin, '"'), (lua, "'")):
        assert f"{sign}{OWN_MANUFACTURER.upper()}{sign}" in text
        assert f"{sign}{OWN_SERIES.upper()}{sign}" in text
    assert f"sub(1, {len(OWN_SERIES)})" in lua
    assert 'MODALITIES = ("", "CR", "DX", "RF")' in plugin
    assert "MODALITIES = { CR = true, DX = true, RF = true }" in lua


def test_no_recipe_lets_a_senders_words_reach_a_shell() -> None:
    start = FILES["storescp_start.sh"].read_text()
    commands = "\n".join(line for line in start.splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"#[a-z]\b", commands)) == {"#p", "#f"}
    assert "+uf" in commands
    assert "-ss " in commands
    lua = re.sub(r"--.*", "", FILES["orthanc.lua"].read_text())
    assert "execute" not in lua
    assert "popen" not in lua
    for name in ("orthanc_plugin.py", "orthanc_poll.py"):
        assert not re.search(r"\bsubprocess\b|os\.system|os\.popen", FILES[name].read_text())
    # %%f of a "for" is not read again; arguments would be.
    assert not re.search(r"%[*1-9]", FILES["conquest.bat"].read_text())


def test_recipes_are_copied_and_settings_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a" / "hooks"
    assert hooks.main([str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name, path in FILES.items():
        assert (folder / name).read_bytes() == path.read_bytes()
        assert bool((folder / name).stat().st_mode & stat.S_IXOTH) == name.endswith(".sh")
    (folder / "hilum.conf").write_text("HILUM_PORT=104\n")
    (folder / "worker.sh").write_text("old")
    assert hooks.main([str(folder)]) == 0
    assert (folder / "hilum.conf").read_text() == "HILUM_PORT=104\n"
    assert (folder / "worker.sh").read_bytes() == FILES["worker.sh"].read_bytes()
    capsys.readouterr()
    assert hooks.main([]) == 0
    assert capsys.readouterr().out.strip() == str(HOOKS)
    (tmp_path / "file").touch()
    assert hooks.main([str(tmp_path / "file")]) == 3
    assert "cannot be written" in capsys.readouterr().err


# ---- The shell scripts --------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> dict[str, str]:
    """Settings with all below one folder, and a storescp that only says how it was called."""
    fake = tmp_path / "storescp"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$0.args"\n')
    fake.chmod(0o755)
    conf = tmp_path / "hilum.conf"
    conf.write_text(
        f"HILUM_PYTHON={sys.executable}\nHILUM_SPOOL={tmp_path}/spool\n"
        f"HILUM_RESULTS={tmp_path}/results\nHILUM_RECEIVED={tmp_path}/received\n"
        "HILUM_AET='MY AET'\nHILUM_PORT=11112\nHILUM_OPTIONS=''\n"
        "HILUM_ORTHANC=http://127.0.0.1:1\nHILUM_ORTHANC_USER=''\nHILUM_ORTHANC_PASSWORD=''\n"
    )
    return {"HILUM_CONF": str(conf), "HILUM_STORESCP": str(fake), "PATH": os.environ["PATH"]}


def start(house: dict[str, str], *arguments: str, script: str = "storescp_start.sh") -> Any:
    command = ["sh", str(HOOKS / script), *arguments]
    return subprocess.run(command, env=house, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mode", ["", "file", "study"])
def test_storescp_is_started_as_documented(
    mode: str, house: dict[str, str], tmp_path: Path
) -> None:
    result = start(house, *([mode] if mode else []))
    assert (result.returncode, result.stderr) == (0, "")
    arguments = (tmp_path / "storescp.args").read_text().splitlines()
    event = {
        "study": ["-ss", "study", "-tos", "2", "-xcs", f'{HOOKS}/storescp_study.sh "#p"'],
    }.get(mode, ["--fork", "-xcr", f'{HOOKS}/storescp_file.sh "#p/#f"'])
    received = f"{tmp_path}/received"
    expected = ["+xa", "+uf", "-fe", ".dcm", "-aet", "MY AET", "-od", received, *event, "11112"]
    assert arguments == expected
    for folder in ("received", "spool", "spool/incoming"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
        assert list((tmp_path / folder).iterdir()) == (
            [] if folder != "spool" else [tmp_path / "spool/incoming"]
        )


def test_storescp_hands_over_what_an_earlier_run_left(
    house: dict[str, str], tmp_path: Path
) -> None:
    study = tmp_path / "received" / "study_20260101_120000000"
    study.mkdir(parents=True)
    (study / "b.dcm").write_bytes(b"b")
    (study.parent / "a.dcm").write_bytes(b"a")
    assert start(house).returncode == 0
    incoming = tmp_path / "spool" / "incoming"
    assert {path.name: path.read_bytes() for path in incoming.iterdir()} == {
        "a.dcm": b"a",
        "b.dcm": b"b",
    }
    assert list((tmp_path / "received").iterdir()) == []


def test_storescp_is_not_started_with_what_a_shell_would_read(
    house: dict[str, str], tmp_path: Path
) -> None:
    conf = Path(house["HILUM_CONF"])
    settings = conf.read_text()
    for folder in (f"{tmp_path}/$(touch x)", f"{tmp_path}/a b", f"{tmp_path}/a;b", "relative"):
        conf.write_text(settings + f"HILUM_RECEIVED='{folder}'\n")
        result = start(house)
        assert (result.returncode, result.stdout) == (2, "")
        assert folder in result.stderr
    conf.write_text(settings)
    result = start(house, "series")
    assert result.returncode == 2
    assert "expected file or study" in result.stderr
    result = start({**house, "HILUM_STORESCP": "/no/storescp"})
    assert result.returncode == 2
    assert "apt-get install dcmtk" in result.stderr
    assert not (tmp_path / "storescp.args").exists()


def test_storescp_is_not_started_on_two_disks(house: dict[str, str], tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to try it with")
    folder = other / f"hilum-test-{os.getpid()}"
    conf = Path(house["HILUM_CONF"])
    conf.write_text(conf.read_text() + f"HILUM_RECEIVED='{folder}'\n")
    try:
        result = start(house)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert result.returncode == 2
    assert "on one local disk" in result.stderr


STRANGE = [
    "plain.dcm",
    "$(touch x).dcm",
    "`touch x`",
    "a;touch x;.dcm",
    "a'b\"c",
    "-rf",
    "a\nb",
    "é .dcm",
]


def test_hooks_move_files_of_any_name(tmp_path: Path) -> None:
    incoming = tmp_path / "spool" / "incoming"
    incoming.mkdir(parents=True)
    environment = {"HILUM_SPOOL": str(tmp_path / "spool"), "PATH": os.environ["PATH"]}
    work = tmp_path / "work"
    for way in ("file", "study"):
        received = tmp_path / "received" / "study_1"
        received.mkdir(parents=True)
        work.mkdir(exist_ok=True)
        for number, name in enumerate(STRANGE):
            (received / name).write_text(str(number))
        given = [str(received / name) for name in STRANGE] if way == "file" else [str(received)]
        # What storescp does, with a name that it never has.
        for path in given:
            quoted = "'" + path.replace("'", "'\\''") + "'"
            command = f"{HOOKS}/storescp_{way}.sh {quoted}"
            for _ in range(2):  # handed over already: no error
                subprocess.run(command, shell=True, check=True, env=environment, cwd=work)
        assert {path.name: path.read_text() for path in incoming.iterdir()} == {
            name: str(number) for number, name in enumerate(STRANGE)
        }
        assert list(work.iterdir()) == []
        for path in incoming.iterdir():
            path.unlink()
        shutil.rmtree(received.parent)


# ---- Inside Orthanc ----------------------------------------------------------------------------

ID = "53257a9e-033553e0-97337ef2-019d44a7-36cbe3c7"
SERIES: list[tuple[dict[str, str], bool]] = [
    ({"Modality": "DX"}, True),
    ({"Modality": "CR ", "Manufacturer": "Hilum (synthetic)"}, True),
    ({"Modality": "rf", "SeriesDescription": "A Hilum result"}, True),
    ({}, True),
    ({"Modality": "CT"}, False),
    ({"Modality": "SR"}, False),
    ({"Modality": "DX", "Manufacturer": "Hilum"}, False),
    ({"Modality": "DX", "Manufacturer": " HILUM "}, False),
    ({"Modality": "DX", "SeriesDescription": "Hilum result: chest"}, False),
]


def test_python_hooks_tell_radiographs_from_the_rest() -> None:
    for tags, wanted in SERIES:
        assert orthanc_poll.is_wanted({"MainDicomTags": tags}) is wanted
    assert orthanc_poll.is_wanted({})


class FakePlugin(types.ModuleType):
    """In the place of the module that Orthanc provides."""

    ChangeType = types.SimpleNamespace(NEW_INSTANCE=7, STABLE_SERIES=8)

    def __init__(self, tags: dict[str, str]) -> None:
        super().__init__("orthanc")
        self.tags, self.errors = tags, list[str]()
        self.callback: Callable[[int, int, str], None] | None = None

    def RegisterOnChangeCallback(self, callback: Callable[[int, int, str], None]) -> None:  # noqa: N802
        self.callback = callback

    def RestApiGet(self, path: str) -> bytes:  # noqa: N802
        if path == f"/instances/{ID}/series":
            return json.dumps({"MainDicomTags": self.tags}).encode()
        assert path == f"/instances/{ID}/file"
        return b"picture"

    def LogError(self, text: str) -> None:  # noqa: N802
        self.errors.append(text)


@pytest.mark.parametrize(("tags", "wanted"), SERIES)
def test_the_plugin_hands_over(
    tags: dict[str, str], wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakePlugin(tags)
    monkeypatch.setitem(sys.modules, "orthanc", fake)
    monkeypatch.setenv("HILUM_SPOOL", str(tmp_path))
    runpy.run_path(str(FILES["orthanc_plugin.py"]))
    assert fake.callback is not None
    if wanted:
        fake.callback(7, 3, ID)  # there is no spool: Orthanc goes on
        assert len(fake.errors) == 1
        assert "not handed over" in fake.errors.pop()
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    fake.callback(8, 2, ID)
    assert list(incoming.iterdir()) == []
    fake.callback(7, 3, ID)
    found = {path.name: path.read_bytes() for path in incoming.iterdir()}
    assert found == ({f"{ID}.dcm": b"picture"} if wanted else {})
    assert fake.errors == []


LUA = """
local calls = {}
function RestApiGet(path) calls[#calls + 1] = path; return 'pic\\0ture' end
function OnStoredInstance(id) io.write('other ', id, '\\n') end
dofile(arg[1])
OnStoredInstance(arg[2], %s, {}, {})
io.write(#calls, '\\n')
"""


@pytest.mark.parametrize(("tags", "wanted"), SERIES)
def test_lua_hands_over(tags: dict[str, str], wanted: bool, tmp_path: Path) -> None:
    lua = need("lua", "lua5.4", "lua5.3", "lua5.1")
    script = tmp_path / "script.lua"
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in tags.items())
    script.write_text(LUA % ("{" + table + "}"))

    def run() -> str:
        return subprocess.run(
            [lua, script, FILES["orthanc.lua"], ID],
            env={"HILUM_SPOOL": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    # Another script's function is still called, and a spool that is not there does no harm.
    assert run().startswith(f"other {ID}\n")
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    assert run() == f"other {ID}\n{int(wanted)}\n"
    found = {path.name: path.read_bytes() for path in incoming.iterdir()}
    assert found == ({f"{ID}.dcm": b"pic\0ture"} if wanted else {})


# ---- Polling -----------------------------------------------------------------------------------


class Pacs:
    """An Orthanc with nothing but the routes that are asked for."""

    def __init__(self, *, user: str = "") -> None:
        self.instances: dict[str, dict[str, str]] = {}
        self.changes: list[dict[str, Any]] = []
        self.broken: dict[str, int] = {}
        self.asked: list[str] = []
        self.delay = 0.0
        self.answer_changes: Callable[[dict[str, Any]], Any] = lambda found: found
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                expected = "Basic " + base64.b64encode(user.encode()).decode()
                if user and self.headers.get("Authorization") != expected:
                    self.send_error(401)
                    return
                pacs.asked.append(self.path)
                code, data = pacs.answer(self.path)
                self.send_response(code)
                if code == 307:
                    self.send_header(
                        "Location", f"http://127.0.0.1:{self.server.server_port}/stolen"
                    )  # type: ignore[attr-defined]
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    def up(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def add(self, number: int, kind: str = "NewInstance", **tags: str) -> str:
        name = "-".join([f"{number:08x}"] * 5)
        self.instances[name] = {"Modality": "DX", **tags}
        self.changes.append({"ChangeType": kind, "ID": name, "Seq": len(self.changes) + 1})
        return name

    def answer(self, path: str) -> tuple[int, bytes]:
        time.sleep(self.delay)
        if path.startswith("/changes"):
            if path == "/changes?last":
                found: dict[str, Any] = {"Changes": self.changes[-1:], "Done": True}
                found["Last"] = len(self.changes)
            else:
                match = re.fullmatch(r"/changes\?since=(\d+)&limit=(\d+)", path)
                assert match
                since, limit = map(int, match.groups())
                page = [change for change in self.changes if change["Seq"] > since][:limit]
                last = page[-1]["Seq"] if page else since
                found = {"Changes": page, "Done": last >= len(self.changes), "Last": last}
            return 200, json.dumps(self.answer_changes(found)).encode()
        match = re.fullmatch(r"/instances/([^/]+)/(series|file)", path)
        if not match or match[1] not in self.instances:
            return 404, b"{}"
        if match[1] in self.broken and match[2] == "file":
            return self.broken[match[1]], b"{}"
        if match[2] == "file":
            return 200, match[1].encode() * 1000
        return 200, json.dumps({"MainDicomTags": self.instances[match[1]]}).encode()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    found = Pacs()
    yield found
    found.down()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    (folder / "incoming").mkdir(parents=True)
    return folder


def names(spool: Path) -> list[str]:
    found = []
    for path in sorted((spool / "incoming").iterdir()):
        assert path.read_bytes() == path.stem.encode() * 1000
        found.append(path.stem)
    return found


def poll(pacs: Pacs, spool: Path, *more: str) -> int:
    return orthanc_poll.main(
        [
            str(spool),
            "--orthanc",
            f"http://127.0.0.1:{pacs.port}",
            "--interval",
            "0.01",
            "--once",
            *more,
        ]
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are as long as they are; tests do not wait for them, and leave signals as they were."""
    monkeypatch.setattr(orthanc_poll, "LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def test_poll_hands_radiographs_over_and_no_more(pacs: Pacs, spool: Path) -> None:
    pacs.add(1)
    assert poll(pacs, spool) == 0
    assert names(spool) == []  # what was there before the first start
    wanted = [pacs.add(number) for number in range(2, 5)]
    pacs.add(5, Modality="CT")
    pacs.add(6, Manufacturer="Hilum")
    pacs.add(7, kind="StableSeries")
    gone = pacs.add(8)
    del pacs.instances[gone]
    wanted += [pacs.add(number) for number in range(9, 260)]  # more than a page
    assert poll(pacs, spool, "--most-waiting", "1000") == 0
    assert names(spool) == sorted(wanted)
    # No pixels of what is not wanted were fetched.
    assert sum(path.endswith("/file") for path in pacs.asked) == len(wanted)
    pacs.asked.clear()
    assert poll(pacs, spool) == 0
    assert not any(path.endswith("/file") for path in pacs.asked)
    assert {path.name for path in spool.parent.iterdir()} == {"spool", "spool.position"}


def test_poll_can_begin_with_everything(pacs: Pacs, spool: Path) -> None:
    wanted = [pacs.add(number) for number in range(3)]
    assert poll(pacs, spool, "--everything") == 0
    assert names(spool) == sorted(wanted)


def test_poll_begins_anew_with_a_new_database(pacs: Pacs, spool: Path) -> None:
    for number in range(5):
        pacs.add(number)
    assert poll(pacs, spool) == 0
    pacs.changes.clear()
    wanted = pacs.add(7)
    assert poll(pacs, spool) == 0
    assert names(spool) == [wanted]


def test_poll_gives_one_picture_up_and_goes_on(
    pacs: Pacs, spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = pacs.add(1), pacs.add(2)
    pacs.broken[bad] = 500
    assert poll(pacs, spool, "--everything", "--attempts", "3") == 1
    assert names(spool) == [good]
    assert sum(path == f"/instances/{bad}/file" for path in pacs.asked) == 3
    assert (spool.parent / "spool.failed").read_text() == f"{bad}\n"
    assert "given up after 3 attempts (HTTP 500)" in capsys.readouterr().err


def test_poll_follows_no_redirection(pacs: Pacs, spool: Path) -> None:
    away = pacs.add(1)
    pacs.broken[away] = 307
    assert poll(pacs, spool, "--everything", "--attempts", "2") == 1
    assert not any("stolen" in path for path in pacs.asked)
    assert names(spool) == []


def test_poll_shows_a_password_to_orthanc_only(
    spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pacs = Pacs(user="hospital:se cret")
    try:
        wanted = pacs.add(1)
        assert poll(pacs, spool, "--everything", "--attempts", "2") == 3
        assert "HTTP 401; name and password?" in capsys.readouterr().err
        monkeypatch.setenv("HILUM_ORTHANC_USER", "hospital")
        monkeypatch.setenv("HILUM_ORTHANC_PASSWORD", "se cret")
        assert poll(pacs, spool, "--everything") == 0
        assert names(spool) == [wanted]
        monkeypatch.delenv("HILUM_ORTHANC_USER")
        url = f"http://hospital:se%20cret@127.0.0.1:{pacs.port}"
        pacs.add(2)
        assert orthanc_poll.main([str(spool), "--orthanc", url, "--once"]) == 0
        assert len(names(spool)) == 2
    finally:
        pacs.down()
    assert orthanc_poll.main([str(spool), "--orthanc", url, "--once", "--attempts", "1"]) == 3
    assert "se" not in capsys.readouterr().err.replace(
        "ConnectionRefusedError (Connection refused)", ""
    )


def test_poll_writes_nowhere_but_into_the_spool(pacs: Pacs, spool: Path) -> None:
    for evil in ("../../x", "/tmp/x", "a" * 44, "", ID.upper()):
        pacs.changes[:] = [{"ChangeType": "NewInstance", "ID": evil, "Seq": 1}]
        assert poll(pacs, spool, "--everything", "--attempts", "1") == 3
        assert not any(path.startswith("/instances") for path in pacs.asked)
    assert {path.name for path in spool.parent.iterdir()} <= {"spool", "spool.position"}
    assert list(spool.rglob("*")) == [spool / "incoming"]


@pytest.mark.parametrize("wrong", [{}, [], {"Changes": 1}, {"Changes": [{}], "Done": True}, "x"])
def test_poll_survives_an_answer_of_something_else(wrong: object, pacs: Pacs, spool: Path) -> None:
    pacs.add(1)
    pacs.answer_changes = lambda _found: wrong
    assert poll(pacs, spool, "--attempts", "2") == 3


def test_poll_fetches_no_more_than_the_spool_may_hold(pacs: Pacs, spool: Path) -> None:
    for number in range(30):
        pacs.add(number)
    most = 0
    taken: list[str] = []

    def answered(_seconds: float) -> None:
        nonlocal most
        found = sorted((spool / "incoming").iterdir())
        most = max(most, len(found))
        taken.append(found[0].stem)
        found[0].unlink()

    server = orthanc_poll.Orthanc(f"http://127.0.0.1:{pacs.port}")
    position = orthanc_poll.Position(spool.parent / "p")
    work = orthanc_poll.Poll(server, spool, position, most_waiting=4, pause=answered)
    work.start(everything=True)
    assert work.run_once() == 30
    assert most == 4
    assert sorted(taken + names(spool)) == sorted(pacs.instances)


def test_poll_says_what_is_wrong_with_its_arguments(
    pacs: Pacs, spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("", "ftp://x", "127.0.0.1:8042", "http://"):
        with pytest.raises(SystemExit) as caught:
            orthanc_poll.main([str(spool), "--orthanc", url, "--once"])
        assert caught.value.code == 2
        assert "expected http://host:port" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        poll(pacs, spool.parent / "none")
    assert "start the worker first" in capsys.readouterr().err
    (spool.parent / "spool.position").write_text("[]")
    with pytest.raises(SystemExit):
        poll(pacs, spool)
    assert "remove the file to begin anew" in capsys.readouterr().err


def started(pacs: Pacs, spool: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "engine.hooks.orthanc_poll", str(spool)]
    command += ["--orthanc", f"http://127.0.0.1:{pacs.port}", "--interval", "0.05", "--everything"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def await_(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_poll_leaves_nothing_out_when_it_or_orthanc_is_killed(pacs: Pacs, spool: Path) -> None:
    pacs.delay = 0.005
    wanted = [pacs.add(number) for number in range(60)]
    process = started(pacs, spool)
    try:
        for least in (5, 20, 35):
            await_(lambda least=least: len(list((spool / "incoming").glob("*.dcm"))) >= least)  # type: ignore[misc]
            process.kill()
            process.wait()
            # What was noted as done is there; what is there is whole.
            done = json.loads((spool.parent / "spool.position").read_text())["last"]
            found = names_of_whole(spool)
            assert set(wanted[:done]) <= set(found)
            assert len(found) - done <= 1
            process = started(pacs, spool)
        pacs.down()
        time.sleep(0.2)
        pacs.up()
        await_(lambda: len(names_of_whole(spool)) == 60)
        wanted.append(pacs.add(60))
        await_(lambda: len(names_of_whole(spool)) == 61)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
    for part in (spool / "incoming").glob(".*.part"):
        part.unlink()  # of the kills: the worker does not look at them, and removes them
    assert names(spool) == sorted(wanted)


def names_of_whole(spool: Path) -> list[str]:
    found = sorted((spool / "incoming").glob("[!.]*"))
    assert all(path.read_bytes() == path.stem.encode() * 1000 for path in found)
    return [path.stem for path in found]


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_letters_are_sent_with_the_password_of_the_settings(tmp_path: Path) -> None:
    python, results, conf = tmp_path / "python", tmp_path / "results", tmp_path / "hilum.conf"
    python.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "$HILUM_ORTHANC_USER" "$HILUM_ORTHANC_PASSWORD"\nexit 1\n'
    )
    python.chmod(0o755)
    conf.write_text(
        f"HILUM_PYTHON={python}\nHILUM_RESULTS={results}\n"
        'HILUM_ORTHANC_USER="me"\nHILUM_ORTHANC_PASSWORD="a secret"\n'
    )

    def send() -> Any:
        return subprocess.run(
            ["sh", FILES["letters.sh"], "--attempts", "1"],
            env={"PATH": os.environ["PATH"], "HILUM_CONF": str(conf)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert (send().returncode, send().stdout) == (0, "")  # none yet
    (results / "dead_letters").mkdir(parents=True)
    done = send()
    assert done.returncode == 1
    said = ["-m", "engine.deliver", str(results / "dead_letters"), "--attempts", "1"]
    assert done.stdout.splitlines() == [*said, "me", "a secret"]


# ---- Installation without internet -------------------------------------------------------------


def offline() -> list[str]:
    """Return what goes before a command that must not reach the network."""
    unshare = need("unshare")
    if subprocess.run([unshare, "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not take the network away from a process")
    return [unshare, "-n"]


def test_an_offline_installation_checks_what_it_gets(tmp_path: Path) -> None:
    house = tmp_path / "wheelhouse"
    house.mkdir()
    shutil.copy(FILES["offline_install.sh"], house)
    (house / "PYTHON").write_text("9.9\n")
    (house / "EXTRAS").write_text("dicom\n")
    sums = "sha256sum -- PYTHON EXTRAS offline_install.sh >SHA256SUMS"
    subprocess.run(sums, shell=True, check=True, cwd=house)

    def install(*arguments: str, **environment: str) -> Any:
        return subprocess.run(
            ["sh", house / "offline_install.sh", *arguments],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert install().returncode == 2
    result = install(str(tmp_path / "target"), PYTHON=sys.executable)
    assert result.returncode == 3
    assert "these packages are for 9.9" in result.stderr
    assert install(str(tmp_path / "target")).returncode == 3  # there is no python9.9
    (house / "EXTRAS").write_text("pacs\n")
    result = install(str(tmp_path / "target"), PYTHON=sys.executable)
    assert result.returncode == 1
    assert "were changed or are missing" in result.stderr
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(
    not os.environ.get("HILUM_TEST_WHEELHOUSE"),
    reason="collects 170 MB of packages: set HILUM_TEST_WHEELHOUSE=1",
)
def test_a_wheelhouse_is_installed_without_network(repository: Path, tmp_path: Path) -> None:
    alone = offline()
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    environment.pop("PYTHONPATH", None)
    house, target = tmp_path / "wheelhouse", tmp_path / "target"
    collect = ["sh", str(FILES["offline_collect.sh"]), str(repository), str(house)]
    subprocess.run(collect, check=True, env=environment, cwd=tmp_path)
    install = [*alone, "sh", str(house / "offline_install.sh"), str(target)]
    subprocess.run(install, check=True, env=environment, cwd=tmp_path)
    copied = [path.name for path in (target / "hooks").iterdir()]
    assert sorted(copied) == sorted(FILES)
    for script in SHELL:
        assert os.access(target / "hooks" / script, os.X_OK)
    code = "import engine; print(engine.__file__)"
    where = subprocess.run(
        [*alone, target / "bin" / "python", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    ).stdout
    assert where.startswith(str(target))
