"""Chains: what a person writes is followed to the letter, or refused with the line to mend."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_helpers import make_head

from engine import cascade, predict
from engine.cascade import Chain, Condition, load_chain
from engine.errors import ChainError
from engine.heads import Head

CHANNELS = {"x": 2}
HEADS = {
    "is_chest": make_head("x:mean", CHANNELS, name="is_chest", classes=("chest", "other")),
    "pneumonia": make_head(
        "x:mean", CHANNELS, name="pneumonia", classes=("normal", "pneumonia"), thresholds=(0.7, 0.3)
    ),
    "kind": make_head("x:mean", CHANNELS, name="kind", classes=("bacterial", "viral")),
    "findings": make_head(
        "x:mean", CHANNELS, name="findings", classes=("mass", "tube", "wire"), multilabel=True
    ),
}
EXAMPLE = """
[chain]
name = "lungs"

[[step]]
name = "chest"
head = "is_chest.safetensors"
continue_if = { class = "chest", at_least = 0.6 }

[[step]]
name = "pneumonia"
head = "pneumonia.safetensors"

[[step]]
name = "kind"
head = "kind.safetensors"
when = { step = "pneumonia", label = "pneumonia" }

[[step]]
name = "things"
head = "findings.safetensors"
when = { step = "chest" }
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a chain beside its heads."""
    for name, head in HEADS.items():
        head.save(tmp_path / f"{name}.safetensors")

    def write_text(text: str, name: str = "chain.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def answers(**first: float | str | list[float]) -> dict[str, dict[str, Any]]:
    """What heads say, by the probability of their first class (or of each, or a refusal)."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in first.items():
        if isinstance(value, str):
            found[name] = {"refused": value}
        else:
            p = np.array(value if isinstance(value, list) else [value, 1 - value])
            found[name] = HEADS[name].answer(p)
    return found


ALL: dict[str, Any] = {"is_chest": 0.9, "pneumonia": 0.2, "kind": 0.7, "findings": [0.1, 0.8, 0.6]}


def outcomes(chain: Chain, **changes: Any) -> dict[str, str]:
    told = chain.follow(answers(**(ALL | changes)))
    return {step["name"]: step["outcome"] for step in told["steps"]}


# ---- Following ---------------------------------------------------------------------------------


def test_each_step_says_what_it_did_and_why(write: Write) -> None:
    chain = load_chain(write(EXAMPLE))
    told = chain.follow(answers(**ALL))
    assert told == {
        "name": "lungs",
        "steps": [
            {"name": "chest", "head": "is_chest", "outcome": "answered",
             "reason": "answered: 'chest' (0.900)"},
            {"name": "pneumonia", "head": "pneumonia", "outcome": "answered",
             "reason": "answered: 'pneumonia' (0.800)"},
            {"name": "kind", "head": "kind", "outcome": "answered",
             "reason": "answered: 'bacterial' (0.700)"},
            {"name": "things", "head": "findings", "outcome": "answered",
             "reason": "answered: 'tube' (0.800), 'wire' (0.600)"},
        ],
        "answer": {"step": "things", "label": ["tube", "wire"],
                   "probability": {"tube": 0.8, "wire": 0.6}, "complete": True},
    }  # fmt: skip


def test_a_gate_holds_back_all_that_follow(write: Write) -> None:
    chain = load_chain(write(EXAMPLE))
    told = chain.follow(answers(**(ALL | {"is_chest": 0.0625})))
    reasons = [step["reason"] for step in told["steps"]]
    assert reasons == [
        "answered: 'other' (0.938)",
        "skipped: step 'chest' said 'other' (0.938), needed 'chest' at least 0.6, found 0.062",
        "skipped: step 'pneumonia' was skipped",
        "skipped: step 'chest' said 'other' (0.938), needed 'chest' at least 0.6, found 0.062",
    ]
    assert told["answer"] == {
        "step": "chest", "label": "other", "probability": 0.9375, "complete": True,
    }  # fmt: skip


def test_branches_go_their_own_ways(write: Write) -> None:
    chain = load_chain(write(EXAMPLE))
    done = {"chest": "answered", "pneumonia": "answered", "kind": "answered", "things": "answered"}
    # The head's own threshold (0.3 of pneumonia) decides about a label, not one half.
    assert outcomes(chain, pneumonia=0.65) == done
    assert outcomes(chain, pneumonia=0.75) == done | {"kind": "skipped"}
    told = chain.follow(answers(**(ALL | {"pneumonia": 0.75})))
    assert told["steps"][2]["reason"] == (
        "skipped: step 'pneumonia' said 'normal' (0.750), needed 'pneumonia'"
    )
    assert told["answer"]["complete"]


def test_refusals_end_a_branch_and_are_told(write: Write) -> None:
    chain = load_chain(write(EXAMPLE))
    told = chain.follow(answers(**(ALL | {"pneumonia": "out_of_distribution: strange"})))
    assert [step["outcome"] for step in told["steps"]] == [
        "answered", "refused", "skipped", "answered",
    ]  # fmt: skip
    assert told["steps"][1]["reason"] == "refused: out_of_distribution: strange"
    assert told["steps"][2]["reason"] == "skipped: step 'pneumonia' was refused"
    assert told["answer"]["step"] == "things"
    assert told["answer"]["complete"] is False
    told = chain.follow(answers(**(ALL | {"is_chest": "out_of_distribution: strange"})))
    assert told["answer"] is None
    assert [step["outcome"] for step in told["steps"]] == ["refused"] + 3 * ["skipped"]
    # A refusal nobody asked for is no refusal.
    told = chain.follow(answers(**(ALL | {"pneumonia": 0.9, "kind": "out_of_distribution: x"})))
    assert told["steps"][2]["outcome"] == "skipped"
    assert told["answer"]["complete"] is True


@pytest.mark.parametrize(
    ("condition", "first", "holds"),
    [
        ({"class": "chest", "at_least": 0.5}, 0.5, True),
        ({"class": "chest", "at_least": 0.5}, 0.4999, False),
        ({"class": "chest", "below": 0.5}, 0.5, False),
        ({"class": "chest", "below": 0.5}, 0.4999, True),
        ({"class": "chest", "at_least": 0.2, "below": 0.8}, 0.1, False),
        ({"class": "chest", "at_least": 0.2, "below": 0.8}, 0.3, True),
        ({"class": "chest", "at_least": 0.2, "below": 0.8}, 0.8, False),
        ({"class": "other", "at_least": 1}, 0.0, True),
        ({"class": "chest", "at_least": 0}, math.nan, False),
        ({"class": "chest", "below": 1}, math.nan, False),
        ({"class": "chest"}, 0.51, True),  # as the head decides
        ({"class": "chest"}, 0.49, False),
        ({"label": "other"}, 0.4, True),
        ({"label": ["other", "chest"]}, 0.9, True),
    ],
)
def test_conditions(condition: dict[str, Any], first: float, holds: bool) -> None:
    head = HEADS["is_chest"]
    read = cascade._condition(Path("c"), "step 'x': when", condition, head)
    assert read.holds(head.answer(np.array([first, 1 - first]))) is holds


def test_conditions_on_several_labels() -> None:
    answer = HEADS["findings"].answer(np.array([0.1, 0.8, 0.6]))
    assert Condition(labels=("wire",)).holds(answer)
    assert Condition(labels=("mass", "tube")).holds(answer)
    assert not Condition(labels=("mass",)).holds(answer)
    nothing = HEADS["findings"].answer(np.array([0.1, 0.2, 0.3]))
    assert not Condition(labels=("mass", "tube", "wire")).holds(nothing)
    chain = Chain("c", (cascade.Step("s", HEADS["findings"], None, None, None),))
    assert chain.follow({"findings": nothing})["steps"][0]["reason"] == "answered: no label"


# ---- Reading -----------------------------------------------------------------------------------


def test_the_examples_in_the_documentation_can_be_followed(write: Write) -> None:
    documents = [str(cascade.__doc__), predict.EPILOG]
    for document in documents:
        # The example is the indented text from its first header on.
        block = re.search(r"^( +)\[(?:chain|\[step)\].*?(?=^\S|^  \S|\Z)", document, re.M | re.S)
        assert block is not None
        indent = block[1]
        lines = [line.removeprefix(indent) for line in block[0].splitlines()]
        chain = load_chain(write("\n".join(lines)))
        assert [step.name for step in chain.steps] == ["chest", "pneumonia", "kind"]
        assert [step.follows for step in chain.steps] == [None, "chest", "pneumonia"]
        assert outcomes(chain)["kind"] == "answered"
        assert outcomes(chain, is_chest=0.4)["pneumonia"] == "skipped"


def test_steps_may_be_written_in_any_order(write: Write) -> None:
    chain = load_chain(write(_reordered(EXAMPLE)))
    assert [step.name for step in chain.steps] == ["chest", "things", "pneumonia", "kind"]
    assert outcomes(chain, is_chest=0.1)["kind"] == "skipped"


def _reordered(text: str) -> str:
    head, *steps = text.split("[[step]]")
    chest, pneumonia, kind, things = steps
    # The second step names the first, because it no longer stands behind it.
    pneumonia = pneumonia.rstrip() + '\nwhen = { step = "chest" }\n'
    return "[[step]]".join([head, chest, things, kind, pneumonia])


def test_heads_are_found_beside_the_file_and_read_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = EXAMPLE.replace('"kind.safetensors"', '"../heads/other.safetensors"').replace(
        '"findings.safetensors"', '"./is_chest.safetensors"'
    )
    path = write(text)
    folder = tmp_path.parent / "heads"
    folder.mkdir(exist_ok=True)
    HEADS["kind"].save(folder / "other.safetensors")
    monkeypatch.chdir("/")
    chain = load_chain(path)
    assert [head.name for head in chain.heads] == ["is_chest", "pneumonia", "kind"]
    assert chain.steps[3].head is chain.steps[0].head


def test_the_name_is_the_files_where_none_is_given(write: Write) -> None:
    text = EXAMPLE.replace('[chain]\nname = "lungs"', "")
    assert load_chain(write(text, "night shift.toml")).name == "night shift"


def test_the_mark_of_windows_editor_is_no_error(write: Write) -> None:
    path = write(EXAMPLE)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_chain(path).name == "lungs"


LAST = 'when = { step = "chest" }'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind.safetensors"', '"kid.safetensors"', r"step 'kind': its head cannot be used: .*kid"),
        ('"kind.safetensors"', '"chain.toml"', r"'kind': its head cannot be used: .*chain\.toml"),
        ('"kind.safetensors"', '"."', "step 'kind': its head cannot be used"),
        ('step = "pneumonia", ', 'step = "pnuemonia", ',
         r"'kind': when names step 'pnuemonia', which is not there; did you mean 'pneumonia'\?"),
        ('step = "pneumonia", ', 'step = "zzz", ', "the steps are chest, pneumonia, kind, things"),
        ('step = "pneumonia", ', 'step = "kind", ', "the steps run in a loop: kind -> kind"),
        ('head = "is_chest.safetensors"', 'head = "is_chest.safetensors"\nwhen = { step = "kind" }',
         "loop: chest -> pneumonia -> kind -> chest"),
        ('label = "pneumonia" }', 'label = "pneumona" }',
         r"no class 'pneumona'; did you mean 'pneumonia'\? it has: normal, pneumonia"),
        ('class = "chest"', 'class = "viral"', "continue_if: head 'is_chest' has no class"),
        ('name = "kind"', 'name = "chest"', "two steps are called 'chest'"),
        ('name = "kind"', "", r'step 3 has no name; add: name = "\.\.\."'),
        ('head = "kind.safetensors"', "", "step 'kind' has no head"),
        ('name = "kind"', "name = 3", "step 3: name is 3; expected a text"),
        ('name = "kind"', 'name = " "', "name is ' '"),
        ('name = "kind"', 'name = "a\\u0000"', "expected a text"),
        ('name = "lungs"', "name = true", r"\[chain\] name is True; expected a text"),
        ("continue_if", "continue_it", r"'continue_it'; did you mean 'continue_if'\?"),
        ("at_least", "atleast", r"unknown key 'atleast'; did you mean 'at_least'\?"),
        ("at_least", "zzz", "unknown key 'zzz'; expected only label, class, at_least, below"),
        ('name = "lungs"', 'nome = "lungs"', r"unknown key 'nome'; did you mean 'name'"),
        ("[chain]", "[chian]", r"the file has unknown key 'chian'; did you mean 'chain'\?"),
        ("0.6", '"0.6"', "at_least is '0.6'; expected a probability from 0 to 1"),
        ("0.6", "60", "at_least is 60"),
        ("0.6", "-0.1", "at_least is -0.1"),
        ("0.6", "true", "at_least is True"),
        ("0.6", "nan", "at_least is nan"),
        ("0.6", "0.6, below = 0.6", "at_least is 0.6 and below is 0.6; no probability is both"),
        ("at_least = 0.6", 'label = "chest"', "has both label and class"),
        ('class = "chest", ', "", "has neither label nor class"),
        ('class = "chest", ', 'label = "chest", ', "at_least needs a class"),
        ('{ class = "chest", at_least = 0.6 }', '"chest"', "is 'chest'; expected a table"),
        ('{ class = "chest", at_least = 0.6 }', "{}", "has neither label nor class"),
        ('label = "pneumonia" }', "label = [] }", "label is an empty list"),
        ('label = "pneumonia" }', "label = [1] }", "label is 1; expected a text"),
        ('label = "pneumonia" }', 'class = ["pneumonia"] }', r"class is \['pneumonia'\]"),
        (LAST, "when = {}", "step 'things': when is empty"),
        (LAST, "when = { step = 3 }", "when: step is 3"),
        (LAST, 'continue_if = { label = "tube" }', "has continue_if, and no step follows it"),
        ('head = "is_chest.safetensors"',
         'head = "is_chest.safetensors"\nwhen = { label = "chest" }', "names no step, and none"),
        ('name = "kind"', 'name = "kind', r"is not TOML: .*\(at line 15"),
        ('"kind.safetensors"', '"C:\\heads\\kind.safetensors"', "is not TOML: .*single quotes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_cure(
    write: Write, old: str, new: str, message: str
) -> None:
    assert old in EXAMPLE
    path = write(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ChainError, match=message) as caught:
        load_chain(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.path == path
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"there is no step; expected a \[\[step\]\]"),
        (b"step = 3", "there is no step"),
        (b"step = []", "there is no step"),
        (b"step = [3]", "step 1 is 3; expected a table"),
        (b'[step]\nname = "a"', r"write \[\[step\]\], with two brackets"),
        ('[[step]]\nname = "a"\n'.encode("utf-16"), "is not text in UTF-8"),
        (b"\x89HIL" + bytes(range(256)), "is not text in UTF-8"),
        (b"a" * (1 << 20) + b"b", "longer than 1 MiB"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (b"[[step]]\n" * 101, "has 101 steps; expected at most 100"),
    ],
)
def test_files_that_are_no_chain(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "chain.toml"
    path.write_bytes(data)
    with pytest.raises(ChainError, match=message):
        load_chain(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "a\0b"):
        with pytest.raises(ChainError, match=r"cannot be read .*check the spelling"):
            load_chain(path)


@pytest.mark.parametrize("key", ["backbone", "backbone_digest", "preprocessing_digest", "name"])
def test_heads_that_cannot_go_together(
    write: Write, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Whatever differs, or does not, is found before a backbone is loaded."""
    value = "pneumonia" if key == "name" else "1" * 64

    def load(path: Path) -> Head:
        head = HEADS[path.stem]
        return dataclasses.replace(head, **{key: value}) if path.stem == "kind" else head

    path = write(EXAMPLE)
    monkeypatch.setattr(cascade, "load_head", load)
    message = (
        "two of the heads are called 'pneumonia'"
        if key == "name"
        else f"steps 'chest' and 'kind' do not share one backbone pass: {key.replace('_', ' ')} "
    )
    with pytest.raises(ChainError, match=message):
        load_chain(path)


def test_long_chains_and_long_loops_end(write: Write) -> None:
    step = '[[step]]\nname = "s{}"\nhead = "kind.safetensors"\n'
    text = "".join(step.format(number) for number in range(100))
    chain = load_chain(write(text))
    assert len(chain.steps) == 100
    assert set(outcomes(chain).values()) == {"answered"}
    loop = text.replace('"s0"\n', '"s0"\nwhen = { step = "s99" }\n', 1)
    with pytest.raises(ChainError, match=r"loop: s0 -> s1 -> .* -> s99 -> s0;"):
        load_chain(write(loop))


def test_heads_are_those_of_the_files(write: Write) -> None:
    chain = load_chain(write(EXAMPLE))
    found: list[Head] = list(chain.heads)
    assert [head.digest for head in found] == [head.digest for head in HEADS.values()]
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain.name = "x"  # type: ignore[misc]
