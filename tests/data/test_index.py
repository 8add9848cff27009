"""The index of annotation files on disk, and the JSON list that is parsed record by record."""

import json
import multiprocessing
import os
import pickle
import signal
import time

import pytest
from torch.utils.data import DataLoader

from xsam.data import index as module
from xsam.data.index import Index, stream_json_list, take, take_text, unique
from xsam.structures import BadSample, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XSAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/index"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.json"
    path.write_text("x")
    return path


def test_rows_are_made_once_for_files_and_layout(source):
    made = []

    def rows():
        made.append(1)
        yield from zip("abbc", ({"a": 1}, ["ü"], None, 5), strict=True)
        yield None, {"kinds": 2}

    for layout in ("one", "one", "two"):
        index = Index([source], layout, rows)
        assert list(index) == [{"a": 1}, ["ü"], None, 5]
        assert index.ids.tolist() == ["a", "b", "b#2", "c"]
        assert index.known == {"kinds": 2}
    assert len(made) == 2
    assert index.lengths.tolist() == [8, 11, 5, 2]  # compact JSON in ASCII and the end of the line
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            index[outside]


def test_a_file_that_changes_is_read_anew(source):
    def read():
        return list(Index([source], "one", lambda: [("", source.read_text())]))

    assert read() == ["x"]
    source.write_text("longer")
    assert read() == ["longer"]
    source.write_text("anew..")  # as long as before
    os.utime(source, ns=(1, 1))
    assert read() == ["anew.."]


def test_no_rows(source):
    index = Index([source], "one", lambda: [])
    assert len(index) == 0
    assert list(index) == index.lengths.tolist() == index.ids.tolist() == []
    assert index.known is None


def test_bad_rows_are_refused_one_by_one_but_not_all(source):
    index = Index([source], "one", lambda: [("x", 1), ("", BadSample("record 1 has no text"))])
    assert index[0] == 1
    assert index.ids.tolist() == ["x", "record 1"]
    with pytest.raises(BadSample, match="^record 1 has no text$"):
        index[1]
    for _ in range(2):  # it stays refused
        with pytest.raises(UserError, match=r"source\.json: none of its 2 records can be used, the last: b"):
            Index([source], "two", lambda: [("", BadSample("a")), ("", BadSample("b"))])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: cannot be read \(No such file"):
        Index([tmp_path / "absent.json"], "one", lambda: [])


def test_a_cache_that_cannot_be_written_is_named(source, monkeypatch):
    monkeypatch.setenv("XSAM_CACHE", str(source))
    with pytest.raises(UserError, match=r"source\.json cannot be written .*XSAM_CACHE"):
        Index([source], "one", lambda: [("", 1)])


def test_rows_that_were_cut_are_not_read(source, cache):
    Index([source], "one", lambda: [("", 1), ("", 2)])
    (rows,) = cache.glob("*.jsonl")
    rows.write_text("1\n")
    with pytest.raises(UserError, match="does not fit the rows beside it; delete it"):
        Index([source], "one", lambda: [])


def _slow_build(source, started, done):
    def rows():
        started.put(os.getpid())
        for number in range(3):
            time.sleep(0.1)
            yield "", number

    done.put(list(Index([source], "one", rows)))


def test_two_processes_at_once_build_it_once(source):
    context = multiprocessing.get_context("fork")
    started, done = context.Queue(), context.Queue()
    processes = [context.Process(target=_slow_build, args=(source, started, done)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [done.get(timeout=60) for _ in processes] == [[0, 1, 2]] * 2
    for process in processes:
        process.join(60)
    started.get(timeout=5)
    assert started.empty()


def _endless_build(source, started):
    def rows():
        yield from (("", number) for number in range(1000))
        started.put(os.getpid())
        while True:
            yield "", 0

    Index([source], "one", rows)


def test_a_killed_build_is_not_taken_for_complete(source):
    context = multiprocessing.get_context("fork")
    started = context.Queue()
    process = context.Process(target=_endless_build, args=(source, started))
    process.start()
    os.kill(started.get(timeout=60), signal.SIGKILL)
    process.join(60)
    assert list(Index([source], "one", lambda: [("", 7)])) == [7]


def test_it_goes_to_workers(source):
    index = Index([source], "one", lambda: [("", number) for number in range(6)])
    assert list(pickle.loads(pickle.dumps(index))) == list(range(6))
    assert len(pickle.dumps(index)) < 1000  # the path alone
    loader = DataLoader(index, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == list(range(6))


def stream(path, content, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(stream_json_list(path))


VALUES = [{"a": [1, {"b": "ü€😀 ] , \\"}]}, [], 12345678901234567890, -1.5e-7, "x" * 200, None, True, {}, "", 0]


@pytest.mark.parametrize("chunk", [4, 5, 7, 64, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"ensure_ascii": False}])
def test_a_list_is_parsed_value_by_value_whatever_is_read_at_a_time(source, chunk, options, monkeypatch):
    assert stream(source, json.dumps(VALUES, **options), chunk, monkeypatch) == VALUES
    assert stream(source, " [ ] \n", chunk, monkeypatch) == []


def test_values_come_before_the_end_is_read(source):
    source.write_text("[" + "1," * 1_000_000 + "broken")
    values = stream_json_list(source)
    assert next(values) == 1
    with pytest.raises(UserError, match="is damaged at character 2000001 "):
        list(values)


@pytest.mark.parametrize("chunk", [4, 5, 1 << 20])
@pytest.mark.parametrize(
    "content, problem",
    [
        ("", "not a JSON list"),
        ('{"a": 1}', "not a JSON list"),
        ("[1, 2", "damaged at character 5 .no comma and no end of the list"),
        ("[1, ", "at character 4"),
        ("[1, 2,]", "at character 6"),
        ("[1 2]", "is damaged at character 2 .no comma"),
        ('["ü", nul]', "at character 6"),
        ('[{"a": 1, "b"}]', "at character 13"),
        ('[{"a": "cut', "at character 7"),
        ("[1] 2", "goes on after its list at character"),
        (b'["\xc3\xbc", "\xff"]', "is not UTF-8 somewhere after character"),
        (b'["\xc3', "is not UTF-8 somewhere after character"),
        ("[" * 100_000, "is damaged at character 1 .*recursion"),
        ("[" + "9" * 5000 + "]", "is damaged at character 1 .*digits"),
    ],
)
def test_a_damaged_list_is_named_with_its_place(source, content, problem, chunk, monkeypatch):
    with pytest.raises(UserError, match=rf"source\.json: .*{problem}"):
        stream(source, content, chunk, monkeypatch)


def test_damage_is_found_without_reading_all(source, monkeypatch):
    """What is wrong, not cut off, is refused before a large file behind it has been read into memory."""
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "LONGEST", 1000)
    source.write_bytes(b'[{"a": 1, "b" 2},' + b" " * 10_000 + b"\xff")
    with pytest.raises(UserError, match="at character 14"):
        list(stream_json_list(source))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: cannot be read"):
        list(stream_json_list(tmp_path / "absent"))


@pytest.mark.parametrize(
    "value, kind, least",
    [("5", int, None), (None, int, None), (True, int, None), (0, int, 1), (float("nan"), float, 0), ([], dict, None)],
)
def test_a_field_of_another_type_or_range_is_named(value, kind, least):
    with pytest.raises(BadSample, match="^image 3: 'x' is "):
        take({"x": value}, "x", kind, "image 3", least)


def test_fields():
    assert take({"x": 2}, "x", (int, float), "image 3", 1) == 2
    with pytest.raises(BadSample, match="^image 3: has no 'x'$"):
        take({}, "x", int, "image 3")
    with pytest.raises(BadSample, match="^image 3: is 'text', not an object with 'x'$"):
        take("text", "x", int, "image 3")


@pytest.mark.parametrize("text", ["", "  ", "a <p>", "</p>", "the <SEG>", "<image>", "a <region> b", "\ud800", 7])
def test_text_that_would_break_a_prompt(text):
    with pytest.raises(BadSample, match="ref 4: 'sent' is "):
        take_text({"sent": text}, "sent", "ref 4")


def test_text():
    assert take_text({"sent": " a < b 😀 "}, "sent", "ref 4") == "a < b 😀"


def test_names_become_unique():
    seen = set()
    assert [unique(name, i, seen) for i, name in enumerate(["a#2", "a", "a", "b", "a"])] == [
        "a#2", "a", "a#2#2", "b", "a#4",
    ]  # fmt: skip
