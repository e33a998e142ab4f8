# dbapi.py: kavach through psycopg2, which puts arguments into the statement itself. psycopg.pl runs it.
import io
import uuid

import psycopg2
import psycopg2.extras
from psycopg2.extras import Json, NamedTupleCursor

psycopg2.extras.register_uuid()


def check(got, wanted, name):
    print(("ok " + name) if got == wanted else f"not ok {name}: got {got!r}, wanted {wanted!r}")


def connect():
    return psycopg2.connect("", cursor_factory=NamedTupleCursor)


db = connect()
db.autocommit = True
cursor = db.cursor()
AUTHORIZE = "SELECT * FROM kavach_authorize(%s, 'run', %s, tokens_cost => %s)"


def one(sql, values=None, connection=db):
    with connection.cursor() as c:
        c.execute(sql, values)
        return c.fetchone()


def spent():
    return int(one("SELECT coalesce(sum(tokens_cost), 0) FROM kavach.ledger WHERE agent_id = 'agt_py2'")[0])


def fails(state, name, sql, values=None):
    try:
        one(sql, values)
        check(None, state, name)
    except psycopg2.Error as error:
        check(error.pgcode, state, name)


one("SELECT kavach_create_agent('agt_py2', 'ann', permissions => %s, metadata => %s)",
    (Json([{"resource": "*", "actions": ["*"]}]), Json({"quote": "it's 100% \\ fine"})))
check(one("SELECT metadata FROM kavach.agent WHERE agent_id = 'agt_py2'")[0], {"quote": "it's 100% \\ fine"}, "jsonb as a dict, quotes and all")
one("SELECT kavach_create_policy(agent_id => 'agt_py2', limits => %s)", (Json({"max_tokens_cost_total": 10**15}),))
call = one(AUTHORIZE, ("agt_py2", "x", 10))
check((call.allowed, call.code, call.reason, call.tokens_remaining), (True, "allowed", None, 10**15 - 10), "bool, text, NULL and int8")
check(isinstance(call.audit_id, uuid.UUID), True, "uuid as a UUID")
check(one("SELECT * FROM kavach_record_usage('agt_py2', %s, audit_id => %s)", (4, call.audit_id)).tokens_charged, -6, "a settlement")
check(one(AUTHORIZE, ("agt_py2", "x", None)).tokens_granted, None, "None as no cost")
check(one(AUTHORIZE, ("agt_py2", "x", 10**15)).code, "budget_exceeded", "a refusal")

fails("22004", "no agent", AUTHORIZE, (None, "x", 1))
fails("22023", "a negative cost", AUTHORIZE, ("agt_py2", "x", -1))
fails("42704", "usage of an unknown agent", "SELECT kavach_record_usage('agt_nobody', 1)")
fails("23505", "an agent_id that is taken", "SELECT kavach_create_agent('agt_py2', 'ann')")
try:
    one("SELECT kavach_create_agent('agt_py2', 'ann')")
except psycopg2.errors.UniqueViolation:
    check(True, True, "errors have psycopg2's own classes")

before = spent()
other = connect()                       # without autocommit, as it is at first
with other:                             # commits
    one(AUTHORIZE, ("agt_py2", "x", 1), other)
try:
    with other:
        one(AUTHORIZE, ("agt_py2", "x", 10), other)
        raise ValueError
except ValueError:
    pass
one(AUTHORIZE, ("agt_py2", "x", 100), other)
other.close()
check(spent() - before, 1, "transactions charge what they commit")
cursor.execute("SELECT kavach_authorize('agt_py2', 'run', 'x', 1); SELECT kavach_record_usage('agt_py2', 2)")
check(spent() - before, 4, "two verbs in one query")

rows = one("SELECT count(*) FROM kavach_export(NULL, NULL)")[0]
other = connect()
with other, other.cursor("export") as export:
    export.itersize = 3
    export.execute("SELECT id FROM kavach_export(%s, %s)", (None, None))
    check(len({row.id for row in export}), rows, "a named cursor has every row of an export")
text = io.StringIO()
cursor.copy_expert("COPY (SELECT * FROM kavach_export(NULL, NULL)) TO STDOUT (FORMAT csv, HEADER)", text)
check(text.getvalue().count("\n"), rows + 1, "COPY of an export")
print("end")
