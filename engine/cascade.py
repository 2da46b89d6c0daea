"""Which head answers after which: chains, as a person writes them in a TOML file.

::

    [chain]
    name = "pneumonia"                       # optional: the file's name without .toml

    [[step]]
    name = "chest"
    head = "is_chest.safetensors"            # relative to this file
    continue_if = { class = "chest", at_least = 0.5 }

    [[step]]
    name = "pneumonia"                       # follows the step before it
    head = "pneumonia.safetensors"

    [[step]]
    name = "kind"
    head = "kind.safetensors"
    when = { step = "pneumonia", label = "pneumonia" }

A step follows the one written before it, or the one its ``when`` names; several may follow the
same one, which makes branches. A step is due if the step it follows has answered, that step's
``continue_if`` holds, and its own ``when`` holds. A condition is one of

``label = "x"`` or ``label = ["x", "y"]``
    the head decided so, by the thresholds in its file; of a multi-label head, one of these labels
    is present.
``class = "x"`` with ``at_least = 0.6`` and/or ``below = 0.9``
    the probability of the class lies there. Without either, as ``label = "x"``.

``when = { step = "x" }`` alone says only what to follow. Every step but one follows another, none
follows itself over others, and each is looked at once, so every chain ends.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from engine.errors import ChainError, EngineError
from engine.heads import Head, load_head
from formats import open_regular

__all__ = ["Chain", "Condition", "Step", "load_chain"]

# A chain is a page of text; whatever is longer is another file.
_MOST_BYTES = 1 << 20
_MOST_STEPS = 100
_TOP_KEYS = ("chain", "step")
_CHAIN_KEYS = ("name",)
_STEP_KEYS = ("name", "head", "continue_if", "when")
_CONDITION_KEYS = ("label", "class", "at_least", "below")


@dataclass(frozen=True)
class Condition:
    """What a head must have said.

    Attributes
    ----------
    labels : tuple of str
        One of them was decided; empty for a condition on a probability.
    class_name : str
        The class whose probability counts; empty for a condition on the label.
    at_least, below : float or None
        Its bounds.
    """

    labels: tuple[str, ...] = ()
    class_name: str = ""
    at_least: float | None = None
    below: float | None = None

    def holds(self, answer: Mapping[str, Any]) -> bool:
        """Whether an answer meets the condition.

        Parameters
        ----------
        answer : mapping
            As `Head.answer` gives it.

        Returns
        -------
        bool
        """
        if self.class_name:
            p = answer["probabilities"][self.class_name]
            # A probability that is not a number meets no condition.
            return (self.at_least is None or p >= self.at_least) and (
                self.below is None or p < self.below
            )
        label = answer["label"]
        said = [label] if isinstance(label, str) else label
        return any(name in said for name in self.labels)

    def __str__(self) -> str:
        if not self.class_name:
            return " or ".join(repr(label) for label in self.labels)
        bounds = []
        if self.at_least is not None:
            bounds.append(f"at least {self.at_least:g}")
        if self.below is not None:
            bounds.append(f"below {self.below:g}")
        return f"{self.class_name!r} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Step:
    """One head of a chain.

    Attributes
    ----------
    name : str
        Unique in the chain.
    head : Head
        What answers; the same head may serve several steps.
    follows : str or None
        Name of the step before it; None for the first.
    when : Condition or None
        What that step must have said for this one to be due.
    continue_if : Condition or None
        What this one must say for any to follow it.
    """

    name: str
    head: Head = field(repr=False)
    follows: str | None
    when: Condition | None
    continue_if: Condition | None


@dataclass(frozen=True)
class Chain:
    """Heads and the conditions under which each is asked.

    Attributes
    ----------
    name : str
        For results.
    steps : tuple of Step
        Each after the one it follows, otherwise as written.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads, each once."""
        return tuple({id(step.head): step.head for step in self.steps}.values())

    def follow(self, answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Go through the steps for one picture.

        Parameters
        ----------
        answers : mapping of str to mapping
            By head's name, what `Head.answer` gives, or ``{"refused": reason}``.

        Returns
        -------
        dict
            ``name``; ``steps``, a list in the order of `steps` of ``name``, ``head``, ``outcome``
            (``"answered"``, ``"skipped"`` or ``"refused"``) and ``reason`` in words; ``answer``,
            None if no step answered, else of the last step that did: ``step``, ``label``,
            ``probability`` (of that label, by label for a list of them) and ``complete``, false if
            a step that was due refused.
        """
        outcomes: dict[str, str] = {}
        told: list[dict[str, Any]] = []
        last: Step | None = None
        by_name = {step.name: step for step in self.steps}
        for step in self.steps:
            obstacle = None
            if step.follows is not None:
                obstacle = _obstacle(by_name[step.follows], step, outcomes, answers)
            given = answers[step.head.name]
            if obstacle is not None:
                outcome, reason = "skipped", f"skipped: {obstacle}"
            elif "refused" in given:
                outcome, reason = "refused", f"refused: {given['refused']}"
            else:
                outcome, reason = "answered", f"answered: {_said(given)}"
                last = step
            outcomes[step.name] = outcome
            told.append(
                {"name": step.name, "head": step.head.name, "outcome": outcome, "reason": reason}
            )
        answer: dict[str, Any] | None = None
        if last is not None:
            given = answers[last.head.name]
            answer = {
                "step": last.name,
                "label": given["label"],
                "probability": _probability(given),
                "complete": "refused" not in outcomes.values(),
            }
        return {"name": self.name, "steps": told, "answer": answer}


def _obstacle(
    before: Step,
    step: Step,
    outcomes: Mapping[str, str],
    answers: Mapping[str, Mapping[str, Any]],
) -> str | None:
    """Say why a step is not due, None if it is."""
    outcome = outcomes[before.name]
    if outcome != "answered":
        return f"step {before.name!r} was {outcome}"
    given = answers[before.head.name]
    for condition in (before.continue_if, step.when):
        if condition is not None and not condition.holds(given):
            found = ""
            if condition.class_name:
                found = f", found {given['probabilities'][condition.class_name]:.3f}"
            return f"step {before.name!r} said {_said(given)}, needed {condition}{found}"
    return None


def _probability(given: Mapping[str, Any]) -> float | dict[str, float]:
    label, probabilities = given["label"], given["probabilities"]
    if isinstance(label, str):
        return float(probabilities[label])
    return {name: float(probabilities[name]) for name in label}


def _said(given: Mapping[str, Any]) -> str:
    label = given["label"]
    names = [label] if isinstance(label, str) else label
    words = [f"{name!r} ({given['probabilities'][name]:.3f})" for name in names]
    return ", ".join(words) or "no label"


# ---- Reading -----------------------------------------------------------------------------------


def load_chain(path: str | PathLike[str]) -> Chain:
    """Read a chain and its heads, and check that it can be followed.

    Parameters
    ----------
    path : str or PathLike
        The TOML file; heads are looked for relative to its folder.

    Returns
    -------
    Chain
        Steps in an order in which each comes after the one it follows.

    Raises
    ------
    ChainError
        The file cannot be read or is not TOML; a key is unknown, missing or of the wrong kind; two
        steps have one name; a step follows an unknown one or, over others, itself; a head is
        missing or damaged; heads are of different backbones, or two have one name; a condition
        names a class its head does not have.
    """
    path = Path(path)
    document = _read(path)
    _check_keys(path, "the file", document, _TOP_KEYS)
    about = _table(path, document.get("chain", {}), "chain", "[chain]")
    _check_keys(path, "[chain]", about, _CHAIN_KEYS)
    name = about.get("name", path.stem)
    _check_text(path, "[chain] name", name)
    entries = document.get("step")
    if isinstance(entries, dict):
        raise ChainError(path, "there is [step]; write [[step]], with two brackets, for each step")
    if not isinstance(entries, list) or not entries:
        raise ChainError(path, "there is no step; expected a [[step]] with name and head for each")
    if len(entries) > _MOST_STEPS:
        raise ChainError(path, f"has {len(entries)} steps; expected at most {_MOST_STEPS}")
    raw = [
        _table(path, entry, f"step {number}", "[[step]]") for number, entry in enumerate(entries, 1)
    ]
    names = _names(path, raw)
    follows = _links(path, raw, names)
    order = _order(path, names, follows)
    heads = _heads(path, raw, names)
    by_name = dict(zip(names, raw, strict=True))
    steps = []
    for step_name in order:
        entry = by_name[step_name]
        before = follows[step_name]
        when = dict(entry.get("when", {}))
        when.pop("step", None)
        where = f"step {step_name!r}"
        gate = entry.get("continue_if")
        steps.append(
            Step(
                name=step_name,
                head=heads[step_name],
                follows=before,
                when=_condition(path, f"{where}: when", when, heads[before])
                if when and before is not None
                else None,
                continue_if=_condition(path, f"{where}: continue_if", gate, heads[step_name])
                if gate is not None
                else None,
            )
        )
    last = steps[-1].name
    for step in steps:
        if step.continue_if is not None and step.name not in follows.values():
            raise ChainError(
                path,
                f"step {step.name!r} has continue_if, and no step follows it; remove it, or write "
                f"the steps that are to follow behind it (the last one is {last!r})",
            )
    return Chain(name, tuple(steps))


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ChainError(path, f"cannot be read ({reason}); check the spelling") from error
    if len(data) > _MOST_BYTES:
        raise ChainError(path, "is longer than 1 MiB, so it is no chain; check the name")
    try:
        # Windows' editor puts a mark before UTF-8, which TOML does not allow.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChainError(path, "is not text in UTF-8; save it as UTF-8, or check the name") from (
            error
        )
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        cure = "see the example in the help of engine.predict"
        if "\\" in text:
            cure = "write folders with / or the path in single quotes: 'C:\\heads\\a.safetensors'"
        raise ChainError(path, f"is not TOML: {error}; {cure}") from error


def _check_keys(path: Path, where: str, table: Mapping[str, Any], valid: Sequence[str]) -> None:
    for key in table:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, 1, 0.5)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ChainError(
                path,
                f"{where} has unknown key {key!r}{meant or ';'} expected only {', '.join(valid)}",
            )


def _check_text(path: Path, where: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ChainError(path, f"{where} is {value!r}; expected a text in quotes")


def _table(path: Path, value: object, where: str, form: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ChainError(path, f"{where} is {value!r}; expected a table, written {form}")
    return value


def _names(path: Path, raw: Sequence[Mapping[str, Any]]) -> list[str]:
    names: list[str] = []
    for number, entry in enumerate(raw, 1):
        where = f"step {number}"
        named = entry.get("name")
        if isinstance(named, str):
            where = f"step {named!r}"
        _check_keys(path, where, entry, _STEP_KEYS)
        for key in ("name", "head"):
            if key not in entry:
                raise ChainError(path, f'{where} has no {key}; add: {key} = "..."')
            _check_text(path, f"{where}: {key}", entry[key])
        if named in names:
            raise ChainError(path, f"two steps are called {named!r}; give one of them another name")
        names.append(str(named))
    return names


def _links(
    path: Path, raw: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, str | None]:
    """Return for each step the one it follows."""
    follows: dict[str, str | None] = {}
    for number, (name, entry) in enumerate(zip(names, raw, strict=True)):
        follows[name] = names[number - 1] if number else None
        if "when" not in entry:
            continue
        form = '{ step = "...", label = "..." }'
        when = _table(path, entry["when"], f"step {name!r}: when", form)
        _check_keys(path, f"step {name!r}: when", when, ("step", *_CONDITION_KEYS))
        if "step" in when:
            before = when["step"]
            _check_text(path, f"step {name!r}: when: step", before)
            if before not in names:
                near = difflib.get_close_matches(str(before), names, 1, 0.5)
                meant = f"; did you mean {near[0]!r}?" if near else ";"
                raise ChainError(
                    path,
                    f"step {name!r}: when names step {before!r}, which is not there{meant} "
                    f"the steps are {', '.join(names)}",
                )
            follows[name] = before
        elif not number:
            raise ChainError(
                path,
                f"step {name!r}: when names no step, and none is written before it; name one: "
                f"when = {form}",
            )
        elif not when:
            raise ChainError(path, f"step {name!r}: when is empty; name a step: when = {form}")
    return follows


def _order(path: Path, names: Sequence[str], follows: Mapping[str, str | None]) -> list[str]:
    """Sort steps so that each comes after the one it follows; the first one follows none."""
    order: list[str] = []
    waiting = list(names)
    while waiting:
        ready = [name for name in waiting if follows[name] is None or follows[name] in order]
        if not ready:
            # Every step left has one before it among those left: going back ends in a circle.
            trail = [waiting[0]]
            while trail.count(trail[-1]) == 1:
                trail.append(str(follows[trail[-1]]))
            loop = trail[trail.index(trail[-1]) :][::-1]
            raise ChainError(
                path,
                f"the steps run in a loop: {' -> '.join(loop)}; one of them must follow another "
                "step, or be written first without when",
            )
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def _heads(path: Path, raw: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Head]:
    """Load every head file once."""
    folder = path.parent
    loaded: dict[Path, Head] = {}
    heads: dict[str, Head] = {}
    for name, entry in zip(names, raw, strict=True):
        file = folder / entry["head"]
        try:
            file = file.resolve()
            if file not in loaded:
                loaded[file] = load_head(file)
        except (EngineError, OSError, RuntimeError) as error:
            raise ChainError(
                path,
                f"step {name!r}: its head cannot be used: {error}; heads are looked for "
                f"relative to the folder of this file",
            ) from error
        heads[name] = loaded[file]
        difference = heads[names[0]].difference(heads[name])
        if difference is not None:
            raise ChainError(
                path,
                f"the heads of steps {names[0]!r} and {name!r} do not share one backbone pass: "
                f"{difference}; train both on features of one backbone",
            )
    twice = [head.name for head in loaded.values()]
    for head_name in twice:
        if twice.count(head_name) > 1:
            raise ChainError(
                path,
                f"two of the heads are called {head_name!r}, so their answers could not be told "
                "apart; train one of them with another --name",
            )
    return heads


def _condition(path: Path, where: str, value: object, head: Head) -> Condition:
    table = _table(path, value, where, '{ label = "..." } or { class = "...", at_least = 0.5 }')
    _check_keys(path, where, table, _CONDITION_KEYS)
    if ("label" in table) == ("class" in table):
        found = "both label and class" if "label" in table else "neither label nor class"
        raise ChainError(
            path,
            f"{where} has {found}; expected label (what the head decided) or class with "
            "at_least or below (a probability)",
        )
    key = "label" if "label" in table else "class"
    given = table[key]
    labels = given if key == "label" and isinstance(given, list) else [given]
    if not labels:
        raise ChainError(path, f"{where}: label is an empty list; name at least one")
    for label in labels:
        _check_text(path, f"{where}: {key}", label)
        if label not in head.classes:
            near = difflib.get_close_matches(str(label), head.classes, 1, 0.5)
            meant = f"; did you mean {near[0]!r}?" if near else ";"
            raise ChainError(
                path,
                f"{where}: head {head.name!r} has no class {label!r}{meant} it has: "
                f"{', '.join(head.classes)}",
            )
    bounds: dict[str, float] = {}
    for bound in ("at_least", "below"):
        if bound not in table:
            continue
        number = table[bound]
        plain = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not plain or not 0.0 <= number <= 1.0:
            raise ChainError(
                path, f"{where}: {bound} is {number!r}; expected a probability from 0 to 1"
            )
        bounds[bound] = float(number)
    if bounds and key == "label":
        raise ChainError(
            path,
            f'{where}: {next(iter(bounds))} needs a class; write class = "..." instead of label',
        )
    if bounds.get("at_least", 0.0) >= bounds.get("below", 2.0):
        raise ChainError(
            path,
            f"{where}: at_least is {bounds['at_least']:g} and below is {bounds['below']:g}; no "
            "probability is both",
        )
    if not bounds:
        return Condition(labels=tuple(labels))
    return Condition((), str(given), bounds.get("at_least"), bounds.get("below"))
