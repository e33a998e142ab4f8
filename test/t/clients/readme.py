# readme.py: runs the Python of README.md and doc/calling.md as it stands there, with a model that is none.
# psycopg.pl runs it.
import re
import sys
import types

from psycopg.types.json import Jsonb


def snippet(file):
    return re.search(r"^```python\n(.*?)^```", open(file, encoding="utf-8").read(), re.S | re.M).group(1)


calls = []


def model(prompt, max_tokens):
    calls.append((prompt, max_tokens))
    if prompt == "fail":
        raise ConnectionError
    return types.SimpleNamespace(text="hi", total_tokens=30)


page = {"model": model}
exec(snippet(sys.argv[1]), page)
ask, db = page["ask"], page["db"]


def check(got, wanted, name):
    print(("ok " + name) if got == wanted else f"not ok {name}: got {got!r}, wanted {wanted!r}")


def left():
    return db.execute("SELECT tokens_remaining FROM kavach_check_budget('agt_helper')").fetchone()[0]


check(ask("agt_helper", "hello", 100, "run-1").text, "hi", "an admitted call reaches the model")
check(calls, [("hello", 100)], "with what was granted")
check(left(), 970, "and is settled with what it spent")
try:
    ask("agt_helper", "fail", 100, "run-2")
    check(None, "an error", "a model that fails")
except ConnectionError:
    check(left(), 970, "a model that fails gives all of it back")
try:
    ask("agt_helper", "too much", 971, "run-3")
    check(None, "an error", "a refusal")
except PermissionError as error:
    check(str(error).split(":")[0], "budget_exceeded", "a refusal is raised, with its code")
check(len(calls), 2, "and the model is not called")
check(left(), 970, "nor anything charged")

page = {"db": db, "Jsonb": Jsonb}
exec(snippet(sys.argv[2]), page)
check(page["call"].code, "allowed", "doc/calling.md: a call with arguments")
print("end")
