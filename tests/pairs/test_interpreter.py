"""Code steps: what goes wrong in them, the limits, and solutions as typed blocks."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.data.formats.fields.blocks import render_content
from prefkit.data.formats.fields.row import Row
from prefkit.errors import ConfigError
from prefkit.pairs.code.blocks import code_of, is_closed, output_block, split_blocks
from prefkit.pairs.code.interpreter import CUT, PythonInterpreter
from prefkit.pairs.code.tools import continue_with_tools
from prefkit.pairs.engines.base import Completion, Request


@pytest.fixture(scope="module")
def python():
    return PythonInterpreter(seconds=1.0, memory_mb=256, most_chars=800)


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(6 * 7)", "42\n"),
        ("x = 6\nx * 7", "42\n"),  # a last expression is shown, as in a notebook
        ("x = 42", ""),
        ("", ""),
        ("print('½ π')\nexit()\nprint(2)", "½ π\n"),
        ("print({'a', 'b', 'c'} == {'c', 'b', 'a'}); input()", "EOFError"),
        ("y = [1]\ny[3]", 'File "<block 1>", line 2, in <module>\n    y[3]\n'),
        ("1/0", "ZeroDivisionError: division by zero\n"),
        ("for", "SyntaxError: invalid syntax\n"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
        ("import os; os.abort()", "SIGABRT"),
        ("x = 'a' * (1 << 29)", "MemoryError\n"),
        ("import subprocess; subprocess.run(['ls'])", "PermissionError: subprocess.Popen"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:1')", "is not allowed here"),
        ("import time; time.sleep(60)", "TimeoutError: stopped after 1 s"),
        ("print('seen?', flush=True)\nwhile True: pass", "TimeoutError: stopped after 1 s"),
    ],
)
def test_outputs(python, code, output):
    started = time.monotonic()
    found = python.run(code)
    assert output in found if output else found == ""
    assert not any(word in found for word in ("seen", str(Path.cwd()), "site-packages"))
    assert time.monotonic() - started < 8


def test_a_flood_is_cut_and_ended(python):
    started = time.monotonic()
    for flood in ("while True: print('é' * 99)", "print('é' * 900)"):
        found = python.run(flood)
        assert found.endswith(CUT)
        assert len(found) == 800 + len(CUT)
        assert set(found[:99]) == {"é"}
    assert python.run("print('é' * 799)") == "é" * 799 + "\n"
    assert time.monotonic() - started < 8


def test_a_fork_bomb_stays_small(python, tmp_path):
    """Refused by its name; what comes through by another way dies with its group."""
    assert "PermissionError: os.fork" in python.run("import os\nwhile True: os.fork()")
    survivor = tmp_path / "alive"
    code = (
        "import ctypes, time\nlibc = ctypes.CDLL(None)\nfor _ in range(3): libc.fork()\n"
        f"time.sleep(4)\nlibc.creat({str(survivor).encode()!r}, 0o600)"
    )
    assert python.run(code) == "TimeoutError: stopped after 1 s"
    time.sleep(3)
    assert not survivor.exists()


def test_files_only_in_its_own_folder(python, tmp_path):
    code = "open('a', 'w').write('hi')\nprint(open('a').read())\nimport os\nprint(os.getcwd())"
    text, folder = python.run(code).split()
    assert text == "hi"
    assert not os.path.exists(folder)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for bad in (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})"):
        assert "PermissionError" in python.run(bad)
    assert victim.read_text() == "kept"
    assert python.run("import os; print(sorted(os.environ))").count("KEY") == 0


def test_other_processes_and_their_environments_are_not_read(python, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "sesame")  # here; what a process began with is in /proc
    parent = f"/proc/{os.getpid()}"
    ways = (
        f"print(open('{parent}/environ').read())",
        f"import os; print(os.read(os.open('{parent}/environ', os.O_RDONLY), 9999))",
        f"import os; os.chdir('{parent}'); print(open('environ').read())",
        f"print(open('/dev/fd/../../{os.getpid()}/environ').read())",
        "import pathlib; print(list(pathlib.Path('/proc').iterdir()))",
        "import os; print(os.listdir('/proc/self/..'), list(os.scandir('/proc')))",
    )
    for way in ways:
        assert python.run(way).endswith("is not allowed here\n"), way
    assert python.run("import os; print(os.environ.get('SERVER_KEY'))") == "None\n"


def test_threads_share_an_interpreter(python):
    code = "open('a', 'a').write('{0}'); x += len(open('a').read()); print(x)"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: python.run(code.format(n), [f"x = {n}"]), range(10, 22)))
    assert found == [f"{n + 2}\n" for n in range(10, 22)]


def test_earlier_blocks_are_there_but_silent_and_everything_is_the_same_every_time(python):
    before = ["x = 20\nprint('no')", "x += 1; 1/0"]
    assert python.run("x * 2", before) == "42\n"
    assert python.run("y", before).endswith("NameError: name 'y' is not defined\n")
    code = "print({str(i) for i in range(9)}, hash('a'))"
    assert python.run(code) == python.run(code)


def test_limits_out_of_range():
    for wrong in ({"seconds": 0}, {"memory_mb": 8}, {"most_chars": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PythonInterpreter(**wrong)


# -- typed blocks -----------------------------------------------------------------------------

SOLUTION = (
    "We add.\n```python\nx = 1 + 2\nprint(x)\n```\n```output\n3\n```\n"
    "So it is 3.\n```text\nno\n```\n"
)


def test_a_solution_as_blocks():
    blocks = split_blocks(SOLUTION)
    assert [block["type"] for block in blocks] == ["text", "code", "execution", "text"]
    assert code_of(blocks[1]) == "x = 1 + 2\nprint(x)\n"
    assert output_block("3\n") == blocks[2]["content"] == output_block("3")
    assert output_block("") == "```output\n```\n"
    content = render_content(Row("f", 0, {}), blocks, "chosen")
    assert content.text == SOLUTION
    (span,) = content.tool_output
    assert SOLUTION[slice(*span)] == "```output\n3\n```\n"
    cut = split_blocks(SOLUTION[:30])
    assert [block["type"] for block in cut] == ["text", "code"]
    assert [is_closed(block) for block in (blocks[1], cut[1])] == [True, False]


PIECES = ["```python\n", "```output\n", "```py \n", "```\n", "```", "\n", "x = 1\n", "a", " ```\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_blocks_lose_nothing(text):
    blocks = split_blocks(text)
    assert "".join(block["content"] for block in blocks) == text
    content = render_content(Row("f", 0, {}), blocks, "chosen")
    assert content.text == text
    executions = [block["content"] for block in blocks if block["type"] == "execution"]
    assert [text[a:b] for a, b in content.tool_output] == executions


@given(st.text(alphabet="`\n ab", max_size=12))
@settings(max_examples=200, deadline=None)
def test_an_output_is_one_block_whatever_it_holds(output):
    text = "a\n" + output_block(output) + "b"
    assert [b["type"] for b in split_blocks(text)] == ["text", "execution", "text"]


# -- sampling with tools ----------------------------------------------------------------------


def solve(writes, interpreter, *, front="", max_tokens=100, calls=4):
    """Plays the model's side: texts to write in turn, cut at stop texts as engines do."""
    request = Request(
        key="q/s/0", text="Q\n" + front, temperature=1.0, max_tokens=max_tokens, seed=5
    )
    solving = continue_with_tools(request, interpreter, prefix=front, calls=calls)
    asked, writes = [], list(writes)
    try:
        (sent,) = next(solving)
        while True:
            asked.append(sent)
            whole = writes.pop(0)
            cuts = [whole.find(stop) for stop in sent.stop if stop in whole]
            text, finish = (whole[: min(cuts)], "stop") if cuts else (whole, "end")
            (sent,) = solving.send(
                [Completion(key=sent.key, text=text, finish=finish, tokens=len(text))]
            )
    except StopIteration as stop:
        assert not writes
        return stop.value, asked


def test_code_is_run_as_it_comes(python):
    writes = ["Add.\n```python\nx = 3\nx\n```\nIt", "Then\n```python\nx + 1\n```\n", "So 4."]
    found, asked = solve(writes, python)
    assert found.text == (
        "Add.\n```python\nx = 3\nx\n```\n```output\n3\n```\n"
        "Then\n```python\nx + 1\n```\n```output\n4\n```\nSo 4."
    )
    assert (found.key, found.finish) == ("q/s/0", "end")
    assert [r.key for r in asked] == [f"q/s/0/call/{i}" for i in range(3)]
    assert len({r.seed for r in asked}) == 3
    assert all(("Q\n" + found.text).startswith(r.text) for r in asked)
    assert asked[-1].max_tokens == 100 - sum(len(w.split("\n```\n")[0]) for w in writes[:2])


def test_code_of_the_front_and_a_block_that_it_leaves_open(python):
    front = "```python\na = 5\n```\n```output\n```\n```python\nb = a"
    found, _ = solve([" + 1\nprint(b)\n```\n", "6"], python, front=front)
    assert found.text == " + 1\nprint(b)\n```\n```output\n6\n```\n6"


def test_no_code_other_languages_and_too_many_calls(python):
    assert solve(["Just 4."], python)[0].text == "Just 4."
    found, _ = solve(["See\n```text\nnotes\n```\n", "4."], python)
    assert (found.text, found.finish) == ("See\n```text\nnotes\n```\n4.", "end")
    made_up, _ = solve(["It prints\n```output\n4\n```\n"], python)
    assert (made_up.text, made_up.finish) == ("It prints\n", "stop")
    block = "```python\n1\n```\n"
    many, asked = solve([block] * 2, python, calls=1)
    assert (many.finish, len(asked)) == ("length", 2)
    assert many.text == block + "```output\n1\n```\n" + block
    with pytest.raises(ConfigError, match="q/s/0"):
        next(
            continue_with_tools(
                Request(key="q/s/0", text="Q", temperature=1, max_tokens=9, seed=1, stop=("\n",)),
                python,
            )
        )
