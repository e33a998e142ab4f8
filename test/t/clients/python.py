# python.py: kavach through psycopg 3, in the ways that applications use it. psycopg.pl runs it.
#
# Prints "ok NAME" or "not ok NAME" for each check. The environment says where the server is.
import asyncio
import csv
import datetime
import decimal
import io
import ipaddress
import threading
import uuid

import psycopg
from psycopg import errors
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.json import Jsonb


def check(got, wanted, name):
    good = got == wanted and type(got) is type(wanted)
    print(("" if good else "not ") + "ok " + name + ("" if good else f": got {got!r}, wanted {wanted!r}"))


def fails(state, name, function, *args):
    try:
        function(*args)
        check(None, state, name)
    except psycopg.Error as error:
        check(error.sqlstate, state, name)


def connect(**kwargs):
    return psycopg.connect("", autocommit=True, row_factory=namedtuple_row, **kwargs)


db = connect()
AUTHORIZE = "SELECT * FROM kavach_authorize(%s, 'run', %s, tokens_cost => %s)"


def authorize(cost, agent="agt_py", connection=db):
    return connection.execute(AUTHORIZE, (agent, "x", cost)).fetchone()


def spent(agent="agt_py"):
    return db.execute("SELECT coalesce(sum(tokens_cost), 0)::int8 AS n FROM kavach.ledger WHERE agent_id = %s", (agent,)).fetchone().n


# ---- types, there and back ----

agent = db.execute(
    "SELECT kavach_create_agent('agt_py', user_id => %s, tenant_id => %s, permissions => %s, metadata => %s, expires_at => %s)",
    ("ann", None, Jsonb([{"resource": "*", "actions": ["*"]}]), Jsonb({"team": "β", "n": [1, None]}),
     datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc))).fetchone()[0]
check(agent, "agt_py", "text")
kept = db.execute("SELECT tenant_id, metadata, expires_at FROM kavach.agent WHERE agent_id = %s", (agent,)).fetchone()
check(kept.tenant_id, None, "NULL as None")
check(kept.metadata, {"team": "β", "n": [1, None]}, "jsonb as a dict")
check(kept.expires_at.astimezone(datetime.timezone.utc), datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc), "timestamptz as a datetime")
policy = db.execute("SELECT kavach_create_policy(agent_id => %s, limits => %s)",
                    (agent, Jsonb({"max_tokens_cost_per_day": 10**15, "max_calls_total": 100000}))).fetchone()[0]

call = authorize(10)
check(call.allowed, True, "boolean as a bool")
check((call.code, call.reason, call.policy_id, call.retry_at), ("allowed", None, None, None), "NULLs of an answer")
check(call.tokens_granted, 10, "int8 as an int")
check(call.tokens_remaining, 10**15 - 10, "a large one too")
check(isinstance(call.audit_id, uuid.UUID), True, "uuid as a UUID")
used = db.execute("SELECT * FROM kavach_record_usage(%s, %s, audit_id => %s, metadata => %s)",
                  (agent, 4, call.audit_id, Jsonb({"ok": True}))).fetchone()
check((used.tokens_charged, used.code), (-6, "recorded"), "a settlement by UUID")
full = db.execute("SELECT * FROM kavach_authorize(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                  (agent, "send", "smtp:out", 5, Jsonb({"to": "x@example.com"}), ipaddress.ip_address("10.1.2.3"), "request-1", Jsonb({}), 1)).fetchone()
check(full.allowed, True, "every argument")
check(db.execute("SELECT arguments, ip FROM kavach.ledger WHERE id = %s", (full.audit_id,)).fetchone(),
      db.execute("SELECT %s AS arguments, %s AS ip", (Jsonb({"to": "x@example.com"}), ipaddress.ip_address("10.1.2.3"))).fetchone(), "as it was sent")
nothing = authorize(None)
check((nothing.allowed, nothing.tokens_granted), (True, None), "None as no cost")
refused = authorize(10**15)
check((refused.allowed, refused.code, refused.tokens_granted, refused.policy_id), (False, "budget_exceeded", 0, policy), "a refusal is an answer")
check((refused.action, refused.http_status), ("block", 402), "that a gateway can pass on")
check(refused.retry_at.astimezone(datetime.timezone.utc), datetime.datetime(2026, 3, 11, tzinfo=datetime.timezone.utc), "with a datetime to retry at")
row = db.cursor(row_factory=dict_row).execute("SELECT * FROM kavach_cost_by_agent(%s, %s) WHERE agent_id = %s", (
    datetime.datetime(2026, 3, 10, tzinfo=datetime.timezone.utc), None, agent)).fetchone()
check((row["calls"], row["denied"], row["tokens_cost"]), (4, 1, decimal.Decimal(9)), "a report as a dict, its sum a Decimal")
binary = db.cursor(binary=True).execute(AUTHORIZE, (agent, "x", 1)).fetchone()
check((binary.allowed, binary.tokens_granted, isinstance(binary.audit_id, uuid.UUID)), (True, 1, True), "binary results")

# ---- errors ----

before = db.execute("SELECT count(*) FROM kavach.ledger").fetchone()[0]
fails("22004", "no agent", authorize, 1, None)
fails("22023", "an empty agent", authorize, 1, "")
fails("22023", "a negative cost", authorize, -1)
fails("42883", "a float as the cost", authorize, 1.5)
fails("42883", "an int that is no int8", authorize, 2**63)
fails("22P02", "no uuid", db.execute, "SELECT kavach_record_usage('agt_py', 1, audit_id => %s)", ("x",))
fails("KV002", "an unknown authorization", db.execute, "SELECT kavach_record_usage('agt_py', 1, audit_id => %s)", (uuid.uuid4(),))
fails("22023", "an array as arguments", db.execute, "SELECT kavach_authorize('agt_py', 'run', 'x', arguments => %s)", (Jsonb([1]),))
fails("42704", "usage of an unknown agent", db.execute, "SELECT kavach_record_usage(%s, 1)", ("agt_nobody",))
fails("42704", "a policy for an unknown agent", db.execute, "SELECT kavach_create_policy(agent_id => 'agt_nobody', limits => '{\"max_calls_total\": 1}')")
fails("23505", "an agent_id that is taken", db.execute, "SELECT kavach_create_agent('agt_py', 'ann')")
fails("42501", "a change of the ledger", db.execute, "UPDATE kavach.audit_log SET tokens_cost = 0")
try:
    db.execute("SELECT kavach_create_agent('agt_py', 'ann')")
except errors.UniqueViolation as error:
    check(bool(error.diag.message_primary), True, "errors have psycopg's own classes, and a message")
check(db.execute("SELECT count(*) FROM kavach.ledger").fetchone()[0], before, "errors write nothing")
check(authorize(1).allowed, True, "and the connection goes on")

# ---- prepared statements: psycopg makes one at the sixth time, the server a generic plan some time after ----

before = spent()
check({authorize(1).code for _ in range(20)}, {"allowed"}, "twenty times the same statement")
check(spent() - before, 20, "are twenty calls")
check(db.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%kavach_authorize%%' AND NOT from_sql").fetchone()[0] > 0, True, "of a statement that is prepared")
db.execute("SELECT kavach_revoke_agent('agt_py', 'test')")
check(authorize(1).code, "agent_revoked", "it obeys a revocation")
db.execute("SELECT kavach_restore_agent('agt_py')")
with connect(prepare_threshold=0) as other:
    check([authorize(1, connection=other).code for _ in range(10)], ["allowed"] * 10, "prepared at once")
with connect(prepare_threshold=None) as other:
    check([authorize(1, connection=other).code for _ in range(10)], ["allowed"] * 10, "never prepared, as for older poolers")

# ---- transactions ----

before = spent()
with db.transaction():
    authorize(1)
with db.transaction(force_rollback=True):
    authorize(10)
try:
    with db.transaction():
        authorize(100)
        raise ValueError
except ValueError:
    pass
with db.transaction():
    authorize(2)
    try:
        with db.transaction():
            authorize(1000)
            db.execute("SELECT 1 / 0")
    except errors.DivisionByZero:
        pass
    authorize(4)
check(spent() - before, 7, "transaction() charges what it commits, nested or not")
with psycopg.connect("") as other:          # no autocommit: the block commits
    other.execute(AUTHORIZE, ("agt_py", "x", 8))
other = psycopg.connect("")
other.execute(AUTHORIZE, ("agt_py", "x", 10000))
other.close()                               # without a commit
check(spent() - before, 15, "without autocommit, close() gives back what was not committed")

# ---- several at once ----

before = spent()
db.execute("SELECT kavach_authorize('agt_py', 'run', 'x', 1); SELECT kavach_authorize('agt_py', 'run', 'x', 2)")
check(spent() - before, 3, "two verbs in one query")
fails("22012", "two verbs and an error in one query", db.execute,
      "SELECT kavach_authorize('agt_py', 'run', 'x', 10); SELECT kavach_record_usage('agt_py', 20); SELECT 1 / 0")
check(spent() - before, 3, "are all rolled back")
with db.pipeline():
    cursors = [db.execute(AUTHORIZE, (agent, "x", 1)) for _ in range(30)]
    check([c.fetchone().code for c in cursors], ["allowed"] * 30, "thirty calls of a pipeline")
check(spent() - before, 33, "are charged")


def broken_pipeline():
    with db.pipeline():
        db.execute(AUTHORIZE, (agent, "x", 100))
        db.execute("SELECT 1 / 0")
        db.execute(AUTHORIZE, (agent, "x", 1000))


fails("22012", "a pipeline with an error", broken_pipeline)
check(spent() - before, 33, "is one transaction up to its Sync, and rolled back")
db.cursor().executemany(AUTHORIZE, [(agent, "x", 1)] * 10)
check(spent() - before, 43, "executemany")

# ---- streams ----

rows = db.execute("SELECT count(*) FROM kavach_export(NULL, NULL)").fetchone()[0]
with db.transaction(), db.cursor(name="export") as cursor:
    cursor.itersize = 10
    cursor.execute("SELECT id, tokens_cost FROM kavach_export(%s, %s)", (None, None))
    seen = [row.id for row in cursor]
check((len(seen), len(set(seen))), (rows, rows), "a named cursor has every row of an export")
with db.cursor().copy("COPY (SELECT * FROM kavach_export(NULL, NULL)) TO STDOUT (FORMAT csv, HEADER)") as copy:
    text = b"".join(bytes(block) for block in copy).decode()
table = list(csv.DictReader(io.StringIO(text)))
check((len(table), sum(int(row["tokens_cost"] or 0) for row in table if row["agent_id"] == agent)), (rows, spent()), "COPY of an export, summed up")
with db.cursor().copy("COPY (SELECT kavach_export_json(NULL, NULL)) TO STDOUT") as copy:
    copy.set_types(["text"])
    check(len(list(copy.rows())), rows, "COPY of an export as JSON")

# ---- cancel, and the end of a connection ----

before = spent()
other = connect()
pid = other.info.backend_pid
with other.transaction():
    authorize(1, connection=other)
    victim = connect()
    answers = []

    def settle():
        try:
            victim.execute("SELECT kavach_authorize('agt_py', 'run', 'x', 10, request_id => 'one'), pg_sleep(1000)")
        except psycopg.Error as error:
            answers.append(error.sqlstate)

    thread = threading.Thread(target=settle)
    thread.start()
    while not db.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = %s", (victim.info.backend_pid,)).fetchone()[0]:
        pass
    victim.cancel()
    thread.join()
check(answers, ["57014"], "cancel() from another thread")
check(authorize(1, connection=victim).allowed, True, "the connection goes on")
check(spent() - before, 2, "and only what was answered is charged")
victim.close()

# ---- asyncio ----


async def many():
    async def one():
        connection = await psycopg.AsyncConnection.connect("", autocommit=True)
        async with connection:
            cursor = await connection.execute(AUTHORIZE, ("agt_async", "x", 1))
            return (await cursor.fetchone())[1]
    return await asyncio.gather(*(one() for _ in range(12)))

db.execute("SELECT kavach_create_agent('agt_async', 'ann', permissions => '[{\"resource\": \"*\", \"actions\": [\"*\"]}]')")
db.execute("SELECT kavach_create_policy(agent_id => 'agt_async', limits => '{\"max_calls_total\": 5}')")
check(asyncio.run(many()).count("allowed"), 5, "twelve at once for five calls")
print("end")
