"""Every bad spec is refused with the place, the value and the way out; nothing but `SpecError` leaves the reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctr.engine.errors import PluginError, SpecError
from ctr.engine.spec import load_study
from ctr.engine.text import printable
from ctr.engine.yaml_reader import MAX_BYTES, MAX_PROBLEMS

from .spec_fakes import STUDY, Fakes, study

QUICKSTART = (Path(__file__).parents[2] / "specs" / "quickstart.yaml").read_text(encoding="utf-8")


def table() -> list[tuple[str, str, str, list[str]]]:
    rows = []
    text = (Path(__file__).parent / "bad_specs.txt").read_text(encoding="utf-8")
    for block in text.split("\n== ")[1:]:
        name, old, new, *expected = block.strip("\n").split("\n")
        rows.append((name, _decoded(old), _decoded(new), expected))
    return rows


def _decoded(line: str) -> str:
    return line[2:].encode().decode("unicode_escape")


ROWS = table()


def problems(folder: Path, text: str | bytes, *sets: str) -> list[str]:
    """Return what is wrong with a study, without the name of its file."""
    with pytest.raises(SpecError) as found:
        study(folder, text, *sets)
    return [
        str(problem).replace(f"{folder}/x.yaml", "x").removeprefix("x:").lstrip() for problem in found.value.problems
    ]


def fits(given: str, expected: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, expected.split("<...>"))), given) is not None


def test_the_table_is_as_large_as_promised() -> None:
    assert len(ROWS) >= 80 and len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("old", "new", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_spec(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert STUDY.count(old) == 1, "the table must change one place"
    given = problems(tmp_path, STUDY.replace(old, new))
    assert len(given) == len(expected), given
    for one, wanted in zip(given, expected, strict=True):
        assert fits(one, wanted), f"{one}\n{wanted}"


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)
HOSTILE = [
    ("name of 5000", STUDY.replace("toy", "a" * 5000), "1:8: study: is 5000 characters long, at most 64 are allowed"),
    ("name of 1 MB", STUDY.replace("toy", "a" * 2**20), "is larger than 256 kB, the most a spec may be"),
    ("10 MB scalar", "study: '" + "a" * 10_000_000 + "'\n", "is larger than 256 kB, the most a spec may be"),
    ("key of 200", "k" * 200 + ": 1\n" + STUDY, "1:1: " + "k" * 64 + "…: no such setting"),
    ("key of 300", "k" * 300 + ": 1\n" + STUDY, "1:1: is a key of 300 characters; 256 are allowed: kkkkk"),
    ("question", "question: " + "x" * 2001 + "\n" + STUDY, "1:11: question: must be a text of at most 2000 characters"),
    ("300 digits", STUDY.replace("epochs: 3", "epochs: " + "9" * 300), "6:11: train.epochs: must be a whole number"),
    ("500 digits", STUDY.replace("epochs: 3", "epochs: " + "9" * 500), "6:11: train.epochs: is a number of 500 digits"),
    ("deep flow", "x: " + "[" * 40 + "]" * 40 + "\n", "1:35: x[0][0]"),
    ("deep flow open", "x: " + "[" * 9_000 + "\n", "1:1: is nested deeper than 32 levels"),
    ("deep mappings", "{a: " * 40 + "1" + "}" * 40 + "\n", "1:129: a.a.a"),
    ("deep blocks", "".join(" " * i + "a:\n" for i in range(40)), "33:33: a.a.a"),
    ("deep lists", "- " * 200 + "\n", "1:65: [0][0]"),
    ("billion laughs", LAUGHS, "1:4: a: anchors are not allowed (&a); remove it"),
    ("long line", "study: toy # " + "x" * 20_000 + "\n", "1:10001: is a line of 20013 characters; 10000 are allowed"),
    ("lines", "\n" * 20_000 + STUDY, "10001:1: has 20012 lines; a spec may have 10000"),
    ("words", STUDY + "# " + ("x " * 100 + "\n# ") * 500, "has 5"),
    ("values", "x: [" + "1,\n " * 4000 + "]\n", "2998:2: x[2997]: has more than 3000 values and keys"),
    ("empty", "", "is empty"),
    ("comment", "# nothing\n", "is empty"),
    ("list", "- 1\n", "1:1: must be a mapping of settings, given a list of 1"),
    ("scalar", "study\n", '1:1: must be a mapping of settings, given "study"'),
    ("latin-1", b"study: t\xf6y\n", "1:9: byte 0xf6 is not UTF-8; save the file as UTF-8"),
    ("utf-16", STUDY.encode("utf-16"), "1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
    ("second line", b"study: toy\nx: \xff\n", "2:4: byte 0xff is not UTF-8"),
]


@pytest.mark.parametrize(("text", "expected"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_hostile_file(tmp_path: Path, text: str | bytes, expected: str) -> None:
    first = problems(tmp_path, text)[0]
    assert first.startswith(expected)
    assert len(first) < 1000 and first == printable(first)


SETS = [
    ("train.epochs=0", "--set: train.epochs: must be a whole number from 1 to 100000, given 0"),
    ("train.epoch=1", "--set: train.epoch: no such setting; settings: <...>. Did you mean epochs?"),
    ("train.epochs", '--set: must be key=value, such as train.epochs=3, given "train.epochs"'),
    ("=3", '--set: must be key=value, such as train.epochs=3, given "=3"'),
    ("train..epochs=3", '--set: must be key=value, such as train.epochs=3, given "train..epochs=3"'),
    (".".join("a" * 40) + "=3", '--set: must be key=value, such as train.epochs=3, given "a.a.<...>'),
    ("train.epochs=[1", "--set: train.epochs: is not YAML: <...>"),
    ("train.epochs=!!int 3", "--set: train.epochs: tags are not allowed (tag:yaml.org,2002:int); a spec is plain data"),
    ("train.epochs=\x1b", "--set: train.epochs: the character \\x1b is not allowed"),
    ("task.data.size=0", "--set: task.data.size: must be a whole number from 1 to 100, given 0"),
    ("train.epochs.x=3", "--set: train.epochs: must be a whole number from 1 to 100000, given a mapping of 1"),
    ("train.epochs=", "--set: train.epochs: is removed here, but it is needed: epochs of the phase"),
    ("arms.treated.plugins.scale.by=-1", "--set: arms.treated.plugins.scale.by: must be a number at least 0, given -1"),
    ("arms.treated.plugins.scal=null", "--set: arms.treated.plugins.scal: no such plugin; plugins: <...>"),
    ("extends=other.yaml", "--set: extends: no such setting; settings: <...>"),
    ("seeds=[1, 1]", "--set: seeds: 1 is given twice"),
    ("model.kind=named", "--set: model.name: is missing"),
]


@pytest.mark.parametrize(("text", "expected"), SETS, ids=[row[0][:30] for row in SETS])
def test_bad_set(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as found:
        study(tmp_path, STUDY, text)
    given = [str(problem).replace(f"{tmp_path}/", "").replace("x.yaml", "x") for problem in found.value.problems]
    assert len(given) == 1 and fits(given[0], expected), given


def test_bad_extends(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for value, expected in [
        ("nowhere.yaml", f"1:10: extends: no such file: {tmp_path}/nowhere.yaml"),
        ("folder", f"1:10: extends: no such file: {tmp_path}/folder"),
        ("/etc/passwd", '1:10: extends: must be a path relative to this file, given "/etc/passwd"'),
        ("[a]", "1:10: extends: must be the path of a study file, given a list of 1"),
        ("x.yaml", "1:10: extends: extends itself: x.yaml → x.yaml"),
        ("n" * 5000, "1:10: extends: no such file: "),
    ]:
        assert any(one.startswith(expected) for one in problems(tmp_path, f"extends: {value}\n" + STUDY)), value


def test_a_problem_stands_in_the_extended_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(STUDY.replace("epochs: 3", "epochs: 0"))
    with pytest.raises(SpecError) as found:
        study(tmp_path, "extends: base.yaml\nstudy: other\n")
    [problem] = found.value.problems
    assert problem.file == f"{tmp_path}/base.yaml" and (problem.line, problem.column) == (6, 11)


def test_a_chain_of_extends_ends(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "12.yaml").write_text(STUDY)
    assert problems(tmp_path, "extends: 0.yaml\n")[0].endswith("extends: more than 8 files extend one another")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in [
        (tmp_path / "none.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / ("n" * 300), "cannot be read: File name too long"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ]:
        with pytest.raises(SpecError, match=reason):
            load_study(path, (), Fakes())


def test_many_problems_are_counted_not_shown(tmp_path: Path) -> None:
    found = problems(tmp_path, STUDY + "".join(f"k{i}: 1\n" for i in range(MAX_PROBLEMS + 12)))
    assert len(found) == MAX_PROBLEMS + 1 and found[0] == "12 more problems are not shown"


def test_a_problem_of_the_shared_part_is_told_once_and_all_are_told(tmp_path: Path) -> None:
    text = STUDY.replace("epochs: 3", "epochs: 0").replace("by: 1.1", "by: -1").replace("toy", "t/y")
    places = [one.split(" ")[0] for one in problems(tmp_path, text + "  third: {}\n  fourth: {}\n")]
    assert places == ["1:8:", "6:11:", "11:35:"]


def test_a_validator_that_raises_is_the_plugins_fault(tmp_path: Path) -> None:
    text = STUDY.replace("scale: {by: 1.1}", "sloppy: {number: 13}")
    with pytest.raises(PluginError, match="plugin sloppy: its settings class raised TypeError: thirteen"):
        study(tmp_path, text)


def test_a_setting_that_allows_nan_gets_it(tmp_path: Path) -> None:
    run = study(tmp_path, STUDY.replace("scale: {by: 1.1}", "sloppy: {number: .nan}")).runs()[-1]
    assert run.plugins["sloppy"].number != run.plugins["sloppy"].number


def _checked(folder: Path, text: str) -> None:
    try:
        study(folder, text)
    except SpecError as error:
        assert error.problems and str(error) == "\n".join(printable(line, 10_000) for line in str(error).split("\n"))


MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(st.text(max_size=300))
def test_random_text_raises_nothing_else(tmp_path: Path, text: str) -> None:
    _checked(tmp_path, text.encode("utf-8", "replace").decode())


@MANY
@given(st.text(alphabet="ab:{}[]-?!&*|>'\"%@`#,<~ \n01.e+\\ux", max_size=200))
def test_random_yaml_raises_nothing_else(tmp_path: Path, text: str) -> None:
    _checked(tmp_path, text)


PIECES = [
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "\n",
    "null",
    "&a ",
    "*a",
    "<<: ",
    "!!x ",
    "'",
    '"',
    "\x00",
    "\t",
    ".nan",
    "1e999",
]


@MANY
@given(st.data())
def test_a_mutated_study_raises_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([STUDY, QUICKSTART]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(st.sampled_from(PIECES) | st.text(max_size=5)) + text[stop:]
    _checked(tmp_path, text.encode("utf-8", "replace").decode())


@MANY
@given(st.text(max_size=60), st.text(max_size=60))
def test_a_random_set_raises_nothing_else(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(STUDY)
    for text in (key, f"{key}={value}", f"train.{key}={value}", f"arms.{value}={key}"):
        try:
            load_study(path, [text], Fakes())
        except SpecError as error:
            assert str(error) == "\n".join(printable(line, 10_000) for line in str(error).split("\n"))


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    line = "# " + "x" * 97 + "\n"
    text = STUDY + line * ((MAX_BYTES - len(STUDY)) // len(line))
    assert len(text) > MAX_BYTES - 100
    assert study(tmp_path, text).study == "toy"
