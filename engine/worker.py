"""From a picture to everything that is made of it, once: stored, predicted, written, delivered.

What commands and the resident worker share: the settings, as options and as JSON, and a worker that
answers by them. Importing it loads neither NumPy nor a network; a worker loads them with the first
picture that has no stored answer.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine import __version__
from engine.answers import DEMONSTRATION_HEAD, Prediction
from engine.cli import MOST_THREADS, count_up_to
from engine.errors import OVERRIDABLE, EngineError, MissingPart
from engine.results import (
    CAPTURE_SUFFIX,
    HEATMAP_SUFFIX,
    REPORT_SUFFIX,
    Results,
    file_digest,
    picture_identity,
    result_key,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from engine.cascade import Chain
    from engine.heads import Head
    from engine.prediction import Predictor

__all__ = ["DEAD_LETTERS", "MOST_VIEWS", "Settings", "Worker", "add_options", "settings_of"]

# engine.views.MAX_VIEWS, which is not worth its import before the command line is understood.
MOST_VIEWS = 32

DEAD_LETTERS = "dead_letters"
"""Folder, in that of the results, for what could not be delivered."""

# How often a file that changes while it is read is begun anew.
_MOST_CHANGES = 3
_PACS = "install the extra it belongs to: pip install 'hilum[pacs]'"


# ---- Settings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What is asked of pictures, and what is made of the answers.

    Attributes
    ----------
    heads : tuple of str
        Head files; empty for the embedded demonstration head, or with a chain.
    chain : str or None
        A chain's file.
    output_dir : str or None
        Folder of results; without it nothing is written.
    allow : tuple of str
        Reasons of refusal that are set aside.
    views : int
        Augmented views, 0 to 32.
    heatmap, csv, sr, sc : bool
        What is written beside the JSON: heatmap, table of a whole run, DICOM structured report,
        DICOM secondary capture.
    store, orthanc : tuple of str
        Where these two are sent: ``AET@host:port``, addresses of Orthanc servers.
    force : bool
        Predict, and send, although there is a stored answer.
    threads : int or None
        Pictures worked on at once.
    """

    heads: tuple[str, ...] = ()
    chain: str | None = None
    output_dir: str | None = None
    allow: tuple[str, ...] = ()
    views: int = 0
    heatmap: bool = False
    csv: bool = False
    sr: bool = False
    sc: bool = False
    store: tuple[str, ...] = ()
    orthanc: tuple[str, ...] = ()
    force: bool = False
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return every field by its name; paths become absolute, for another working folder."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else os.path.abspath(path)  # noqa: PTH100 - keeps links

        return {
            "heads": [absolute(head) for head in self.heads],
            "chain": absolute(self.chain),
            "output_dir": absolute(self.output_dir),
            "allow": list(self.allow),
            "views": self.views,
            "heatmap": self.heatmap,
            "csv": self.csv,
            "sr": self.sr,
            "sc": self.sc,
            "store": list(self.store),
            "orthanc": list(self.orthanc),
            "force": self.force,
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Read what `to_json` gave.

        Parameters
        ----------
        values : mapping
            Fields by name; those left out have their default.

        Returns
        -------
        Settings
            The settings.

        Raises
        ------
        ValueError
            An unknown field, or a value of the wrong kind.
        """
        default = cls()
        taken: dict[str, Any] = {}
        for name, value in values.items():
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"settings: unknown key {name!r}; written by a newer release?")
            usual = getattr(default, name)
            if isinstance(usual, tuple):
                right = isinstance(value, list | tuple) and all(isinstance(x, str) for x in value)
                value = tuple(value) if right else value  # noqa: PLW2901
            elif isinstance(usual, bool):
                right = isinstance(value, bool)
            elif name in ("views", "threads"):
                right = (isinstance(value, int) and not isinstance(value, bool)) or (
                    value is None and name == "threads"
                )
            else:
                right = value is None or isinstance(value, str)
            if not right:
                raise ValueError(f"settings: {name} is {value!r}, of the wrong kind")
            taken[name] = value
        return cls(**taken)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that settings are made of.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of a command that predicts.
    """
    add = parser.add_argument
    add(
        "--head",
        action="append",
        metavar="HEAD.safetensors",
        help="a trained head; may be given several times (default: the embedded demonstration "
        "head)",
    )
    add(
        "--chain",
        metavar="FILE.toml",
        help="heads to ask one after the other, see predict --help; in the place of --head: a head "
        "that is to answer besides is one more step of the file",
    )
    add(
        "--output-dir",
        metavar="DIR",
        help="also write one JSON file an image into DIR, which is made if missing; an image that "
        "has its answer there is not predicted again",
    )
    add(
        "--csv",
        action="store_true",
        help="a table instead of JSON lines on standard output; with --output-dir, "
        "DIR/predictions.csv beside them",
    )
    add(
        "--views",
        type=count_up_to(MOST_VIEWS),
        metavar="N",
        help="average the logits of the image with those of N augmented views of it (turned, "
        "shifted, scaled, contrast changed): N + 1 times the work, a little better for heads "
        "trained with views, worse for others (default: none)",
    )
    add(
        "--heatmap",
        action="store_true",
        help=f"with --output-dir, also draw NAME{HEATMAP_SUFFIX}: for each decided label, "
        "which places spoke for it and against it",
    )
    add(
        "--sr",
        action="store_true",
        help=f"with --output-dir, also write NAME{REPORT_SUFFIX} for each DICOM image that is "
        "answered: a structured report (Comprehensive 3D SR, TID 1500) in the study of the image, "
        "for systems that read numbers; needs the extra [pacs]",
    )
    add(
        "--sc",
        action="store_true",
        help=f"with --output-dir, also write NAME{CAPTURE_SUFFIX} for each DICOM image that is "
        "answered: a secondary capture of the heatmap under a banner, in the study of the image, "
        "which every viewer shows; needs the extra [pacs]",
    )
    add(
        "--store",
        action="append",
        metavar="AET@HOST:PORT",
        help="send what --sr and --sc made to this DICOM storage provider; may be given several "
        "times; needs the extra [pacs]",
    )
    add(
        "--orthanc",
        action="append",
        metavar="URL",
        help="send it to this Orthanc by its REST interface, such as http://127.0.0.1:8042; may be "
        f"given several times. What cannot be sent is kept in DIR/{DEAD_LETTERS}, for "
        "python -m engine.deliver",
    )
    add(
        "--force",
        action="store_true",
        help="with --output-dir, predict, and send, although the answer is stored there",
    )
    add(
        "--allow",
        action="append",
        choices=OVERRIDABLE,
        metavar="REASON",
        help="predict although this reason speaks against it; may be given several times, one of: "
        + ", ".join(OVERRIDABLE),
    )
    add(
        "--threads",
        type=count_up_to(MOST_THREADS),
        metavar="N",
        help="images worked on at once (default: one per core)",
    )


def settings_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Settings:
    """Read the settings from a command line; ends the command where they contradict each other.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        With `add_options`.
    arguments : argparse.Namespace
        What it parsed.

    Returns
    -------
    Settings
        The settings.
    """
    settings = Settings(
        heads=tuple(arguments.head or ()),
        chain=arguments.chain,
        output_dir=arguments.output_dir,
        allow=tuple(arguments.allow or ()),
        views=arguments.views or 0,
        heatmap=arguments.heatmap,
        csv=arguments.csv,
        sr=arguments.sr,
        sc=arguments.sc,
        store=tuple(arguments.store or ()),
        orthanc=tuple(arguments.orthanc or ()),
        force=arguments.force,
        threads=arguments.threads,
    )
    if settings.chain and settings.heads:
        parser.error(
            "--chain and --head do not go together; add the head to the chain's file as a step"
        )
    why = {
        "heatmap": "draws files",
        "sr": "writes files",
        "sc": "writes files",
        "store": "sends files",
        "orthanc": "sends files",
        "force": "passes over the answers that are stored there",
    }
    for name, does in why.items():
        if getattr(settings, name) and settings.output_dir is None:
            parser.error(f"--{name} {does}: give --output-dir for them")
    if (settings.store or settings.orthanc) and not (settings.sr or settings.sc):
        parser.error("--store and --orthanc send what --sr and --sc make: give one of them too")
    if settings.store or settings.orthanc:
        try:
            _targets(settings)
        except ValueError as error:
            parser.error(str(error))
    return settings


def _targets(settings: Settings) -> list[Any]:
    """Read where results are sent; ValueError has the advice."""
    if not (settings.store or settings.orthanc):
        return []
    from engine.delivery import parse_orthanc, parse_store

    return [*map(parse_store, settings.store), *map(parse_orthanc, settings.orthanc)]


# ---- Worker ---------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """What was seen of a picture, and is still to be written."""

    given: str
    prediction: Prediction
    sides: dict[str, bytes] | None  # None: it was stored


class Worker:
    """Answers pictures by its settings; loads heads and network when it first needs them.

    Parameters
    ----------
    settings : Settings
        What is asked, and what is made of it.
    streams : int, optional
        Pictures worked on at once where the settings name no number; default one per core.
    kernels : bool
        Load compiled loops with the network: half a second, won back over a few hundred pictures.
    notice : callable, optional
        Called with an input and a sentence for each thing a result lacks; the sentence names no
        file and nothing of its content.
    loaded : callable, optional
        Called once with the heads, when they are loaded.

    Raises
    ------
    MissingPart
        The settings ask for what an optional package makes, and it is not installed.
    ValueError
        They name a target that is none; the message says how one looks.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        streams: int | None = None,
        kernels: bool = False,
        notice: Callable[[str, str], None] | None = None,
        loaded: Callable[[tuple[Head, ...]], None] | None = None,
    ) -> None:
        self.settings = settings
        self._streams = settings.threads or streams
        self._kernels = kernels
        self._notice = notice
        self._loaded = loaded
        _check_parts(settings)
        self._targets = _targets(settings)
        self.results = None if settings.output_dir is None else Results(settings.output_dir)
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None
        self._asked: tuple[list[str], str | None] | None = None
        # The picture that was hashed last: it is asked for before and behind the wait for a slot.
        self._known: tuple[object, tuple[int, ...], str | None] | None = None

    def prepare(self) -> Worker:
        """Load heads, network and compiled loops now, and make the folder of results.

        Returns
        -------
        Worker
            This one.

        Raises
        ------
        EngineError
            Heads that cannot be used together or here, a network that cannot run, or a folder that
            cannot be written to.
        """
        self._kernels = True
        self._load()
        return self

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, loaded if they are not yet."""
        return self._load().heads

    @property
    def chain(self) -> Chain | None:
        """The chain they are asked by, loaded if it is not yet."""
        return self._load().chain

    @property
    def delivers(self) -> bool:
        """Whether results are sent anywhere."""
        return bool(self._targets)

    def answer(self, path: str | os.PathLike[str]) -> Prediction:
        """Answer for one file: stored if it can be, else predicted, written and delivered.

        Parameters
        ----------
        path : str or PathLike
            PNG, JPEG, TIFF or DICOM.

        Returns
        -------
        Prediction
            Bad files give an answer too.

        Raises
        ------
        EngineError
            What concerns every file: heads, network, folder of results.
        """
        return self.deliver(self.judge(path))

    def answer_many(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Prediction]:
        """Answer for files one by one, in their order, on all streams of the network.

        Parameters
        ----------
        paths : iterable of path
            May be endless: at most a few files a stream are taken ahead of the answers.

        Yields
        ------
        Prediction
            One for each path, as `answer` gives it.
        """
        yield from map(self.deliver, self.judge_many(paths))

    def judge_many(self, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Prediction]:
        """Do what `answer_many` does, but for the delivery.

        Parameters
        ----------
        paths : iterable of path
            May be endless.

        Yields
        ------
        Prediction
            One for each path, as `judge` gives it.
        """
        from engine.inference import in_order

        # Written one after the other: names must not depend on which of two threads is faster.
        streams = self._load().backbone.n_streams
        yield from map(self._keep, in_order(self._look, paths, streams))

    def stored(self, path: str | os.PathLike[str]) -> Prediction | None:
        """Give the stored answer for a file, if there is one.

        Parameters
        ----------
        path : str or PathLike
            The file.

        Returns
        -------
        Prediction or None
            With ``stored``; files of its own are written where it has a name of its own.

        Raises
        ------
        WriteError
            These cannot be written.
        """
        found = self._find(self._picture(path), path)
        if found is None or self.results is None:
            return None
        return self.results.repeat(found, str(path))

    def judge(self, path: str | os.PathLike[str]) -> Prediction:
        """Do what `answer` does, but for the delivery, which needs no network.

        Parameters
        ----------
        path : str or PathLike
            The file.

        Returns
        -------
        Prediction
            Stored, or predicted and written.

        Raises
        ------
        EngineError
            What concerns every file.
        """
        return self._keep(self._look(path))

    def _look(self, path: str | os.PathLike[str]) -> _Seen:
        """Look at a picture, and for its stored answer; nothing is written."""
        for _ in range(_MOST_CHANGES):
            before = _signature(path)
            picture = self._picture(path)
            found = self._find(picture, path)
            if found is not None:
                return _Seen(str(path), found, None)
            predictor = self._load(path)
            key = self._key(picture)  # with the heads that are loaded now
            prediction = predictor.predict(os.fspath(path))
            if before == _signature(path):
                break
        else:
            # Still being written: what was read may be half of one picture and half of another.
            key = None
            prediction = Prediction(
                input=str(path),
                status="error",
                reason=f"{path}: changes while it is read; wait until it is whole",
                backbone=predictor.backbone.name,
                wanted=predictor.wanted,
            )
        prediction = replace(prediction, key=key)
        if self.results is None:
            return _Seen(str(path), prediction, {})
        sides = self._sides(Path(path), prediction)
        wanted = prediction.wanted
        if not self.settings.heatmap:  # it was drawn for the capture
            wanted = tuple(name for name in wanted if name != "heatmap")
        # What is drawn is in the sides, and many may wait for their delivery.
        return _Seen(str(path), replace(prediction, wanted=wanted, heatmap=None), sides)

    def _keep(self, seen: _Seen) -> Prediction:
        """Write what was seen of a picture."""
        if self.results is None:
            return seen.prediction
        if seen.sides is None:
            return self.results.repeat(seen.prediction, seen.given)
        return self.results.write(seen.prediction, seen.sides, forget=self.settings.force)

    def deliver(self, prediction: Prediction) -> Prediction:
        """Send what was made of an answer wherever it has not been sent yet.

        Parameters
        ----------
        prediction : Prediction
            From `judge` or `stored`.

        Returns
        -------
        Prediction
            With ``delivered``.

        Raises
        ------
        WriteError
            It cannot be noted where they were sent; they are sent again the next time.
        """
        if (
            not self._targets
            or self.results is None
            or prediction.key is None
            or prediction.status != "ok"
        ):
            return prediction
        wanted = {
            suffix: name
            for suffix, name, asked in (
                (REPORT_SUFFIX, prediction.sr_file, self.settings.sr),
                (CAPTURE_SUFFIX, prediction.sc_file, self.settings.sc),
            )
            if asked and name is not None
        }
        if not wanted:
            return prediction
        from engine.delivery import deliver

        known = self.results.deliveries(prediction.key)
        said: list[dict[str, Any]] = []
        is_new = False
        for target in self._targets:
            done = {
                _suffix(one): one
                for one in known
                if one.get("target") == target.name and one.get("status") != "failed"
            }
            due = [name for suffix, name in wanted.items() if suffix not in done]
            if due:
                found = deliver(
                    [self.results.folder / name for name in due],
                    [target],
                    dead_letters=self.results.folder / DEAD_LETTERS,
                )
                done |= {_suffix(one): one for one in found}
                known = [one for one in known if one.get("target") != target.name]
                known += done.values()
                self.results.note_deliveries(prediction.key, known)
                is_new = True
            said += [done[suffix] for suffix in wanted if suffix in done]
        delivered = replace(prediction, delivered=tuple(said))
        if is_new:
            self.results.note_delivered(delivered)
        return delivered

    def close(self) -> None:
        """Give the network back; the next picture loads it anew."""
        with self._lock:
            predictor, self._predictor = self._predictor, None
        if predictor is not None:
            predictor.backbone.close()

    # -- in the order in which they happen --

    def _picture(self, path: str | os.PathLike[str]) -> str | None:
        """Tell which picture it is."""
        now, known = _signature(path), self._known
        if known is not None and known[:2] == (path, now):
            return known[2]
        picture = picture_identity(path)
        if now is not None:
            self._known = (path, now, picture)
        return picture

    def _key(self, picture: str | None) -> str | None:
        if picture is None:
            return None
        if self._asked is None:
            self._asked = self._digests()
        heads, chain = self._asked
        settings = self.settings
        return result_key(picture, heads, chain, settings.allow, settings.views, __version__)

    def _digests(self) -> tuple[list[str], str | None]:
        """Hash what is asked: files, so that nothing need be loaded for a stored answer."""
        chain = self.settings.chain
        files = [str(head) for head in self.settings.heads]
        if chain is not None:
            files = _chain_heads(chain)
        elif not files:
            files = [str(DEMONSTRATION_HEAD)]
        # A file that cannot be read has no answers: loading it says what is wrong.
        heads = [file_digest(file) or f"unreadable {os.urandom(16).hex()}" for file in files]
        return heads, None if chain is None else file_digest(chain) or os.urandom(16).hex()

    def _find(self, picture: str | None, path: str | os.PathLike[str]) -> Prediction | None:
        """Look for a stored answer with everything that is wanted now."""
        if self.results is None or self.settings.force:
            return None
        key = self._key(picture)
        found = None if key is None else self.results.find(key, str(path))
        if found is None:
            return None
        if found.status == "ok":
            settings = self.settings
            if settings.heatmap and "heatmap" not in found.wanted:
                return None
            lacks = (settings.sr and not found.sr_file) or (settings.sc and not found.sc_file)
            if lacks and _is_dicom(path):
                return None
        elif self.settings.heatmap and "heatmap" not in found.wanted:
            found = replace(found, wanted=(*found.wanted, "heatmap"))
        return found

    def _load(self, path: str | os.PathLike[str] | None = None) -> Predictor:
        """Load all that is needed, also to read the file at `path`."""
        with self._lock:
            if self._predictor is not None:
                return self._predictor
            settings = self.settings
            from engine.head_start import begin

            begin(_chain_heads(settings.chain) if settings.chain is not None else settings.heads)
            if path is not None:
                # Before the predictor, which waits for the network that loads meanwhile.
                from engine.images import load_reader

                load_reader(path)
            if self._kernels:
                from engine import jit

                jit.load()
            chain = None
            while True:
                asked = self._digests()
                if settings.chain is not None:
                    from engine.cascade import load_chain

                    chain = load_chain(settings.chain)
                from engine.prediction import Predictor

                predictor = Predictor(
                    list(settings.heads) or None,
                    streams=self._streams,
                    allow=settings.allow,
                    views=settings.views,
                    chain=chain,
                    heatmap=settings.heatmap or settings.sc,
                )
                # Keys must name the heads that answer, not those that were there an hour ago.
                if asked == self._digests():
                    break
                predictor.backbone.close()
            self._asked = asked
            if self.results is not None:
                # Behind all that can be wrong with heads: then nothing is written, this folder
                # included.
                self.results.make()
            self._predictor = predictor
        if self._loaded is not None:
            self._loaded(predictor.heads)
        return predictor

    def _sides(self, path: Path, prediction: Prediction) -> dict[str, bytes]:
        """Make what lies beside the JSON: nothing for refused pictures."""
        sides: dict[str, bytes] = {}
        settings = self.settings
        if prediction.status != "ok":
            return sides
        if settings.heatmap and prediction.heatmap is not None:
            from engine.heatmap import encode_png

            sides[HEATMAP_SUFFIX] = encode_png(prediction.heatmap)
        if not (settings.sr or settings.sc):
            return sides
        if prediction.key is None or not _is_dicom(path):
            self._say(prediction, "no DICOM file, so there is no study for a report or capture")
            return sides
        from engine.dicom_results import secondary_capture, structured_report

        makers: list[tuple[str, Callable[[], bytes]]] = []
        if settings.sr:
            heads = self._load().heads
            makers.append((REPORT_SUFFIX, lambda: structured_report(path, prediction, heads)))
        sheet = prediction.heatmap
        if settings.sc and sheet is not None:
            makers.append((CAPTURE_SUFFIX, lambda: secondary_capture(path, prediction, sheet)))
        for suffix, make in makers:
            try:
                sides[suffix] = make()
            except MissingPart:
                raise
            except EngineError as error:
                self._say(prediction, str(error).removeprefix(f"{path}: "))
            except Exception as error:
                # Others' headers in others' code: the answer itself is as good as before.
                self._say(prediction, f"no NAME{suffix} could be made ({type(error).__name__})")
        return sides

    def _say(self, prediction: Prediction, sentence: str) -> None:
        if self._notice is not None:
            self._notice(prediction.input, sentence)


def _suffix(said: Mapping[str, Any]) -> str:
    """Tell a report from a capture by the name of the file that was sent."""
    name = str(said.get("file", ""))
    return REPORT_SUFFIX if name.endswith(REPORT_SUFFIX) else CAPTURE_SUFFIX


def _check_parts(settings: Settings) -> None:
    from importlib.util import find_spec

    for wanted, option, package in (
        (settings.sr, "--sr", "highdicom"),
        (settings.sc, "--sc", "highdicom"),
        (settings.store, "--store", "pynetdicom"),
    ):
        if wanted and find_spec(package) is None:
            raise MissingPart(f"{option} needs {package}, which is not installed; {_PACS}")


def _chain_heads(chain: str) -> list[str]:
    """List the heads a chain names; what is wrong with it is for `load_chain` to say."""
    import tomllib

    from formats import open_regular

    try:
        with open_regular(chain) as stream:  # not a pipe, for which one could wait for ever
            steps = tomllib.loads(stream.read().decode())["step"]
        return [str(Path(chain).parent / step["head"]) for step in steps]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _is_dicom(path: str | os.PathLike[str]) -> bool:
    """Tell DICOM by its first bytes; only asked where NumPy is about to be loaded anyway."""
    from engine.picture import sniff
    from formats import open_regular

    try:
        with open_regular(path) as stream:
            return sniff(stream.read(1024)) == "dicom"
    except (OSError, ValueError):
        return False


def _signature(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Say what changes when a file is written to."""
    try:
        found = os.stat(path)  # noqa: PTH116 - raises ValueError for names that are none
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
