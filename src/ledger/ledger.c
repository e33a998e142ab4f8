/*-------------------------------------------------------------------------
 * ledger.c
 *		How rows get into kavach.audit_log, and how single ones are found.
 *
 * Rows go straight into the month's partition (insert.c); where that is not
 * all that an INSERT would do (triggers, row security, ...), they go through a
 * prepared statement.  A trigger or rule that keeps the row out of the ledger
 * makes the call fail: there is no decision without its row.
 *
 * Ids are UUIDv7 (RFC 9562): milliseconds, 12 bits of the fraction (its method
 * 3), then a counter, so that one backend's ids sort even within a
 * microsecond, and 40 random bits.  The time in an id is the row's ts, so that
 * a search by id prunes partitions.
 *
 * Single rows are found by the unique indexes of the months that can hold them
 * (lookup.c); where that is not to be had, by a prepared statement.
 *
 * Requests and settlements are looked up under the locks of
 * ledger_lock_request and ledger_lock_authorization, held to the end of the
 * transaction, so that of two calls at once the second finds the first's row.
 * Partitions are searched whole, since their unique indexes span them whole.
 *-------------------------------------------------------------------------
 */
#include "ledger/ledger.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "ledger/batch.h"
#include "ledger/dropped.h"
#include "ledger/guard.h"
#include "ledger/insert.h"
#include "ledger/lookup.h"
#include "ledger/partition.h"
#include "ledger/row.h"
#include "ledger/written.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

#define UNIX_EPOCH_USECS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* A settlement is looked for in the months from this long before its call. */
#define CLOCK_SLACK		USECS_PER_DAY

static int	request_retention = 7 * 24 * 60;	/* minutes */

ENTRY_POINT(kavach_uuid7_ts, 1, 0);
ENTRY_POINT(kavach_uuid7_since, 2, 0);
ENTRY_POINT(kavach_uuid7_until, 2, 0);

void
ledger_define_settings(void)
{
	DefineCustomIntVariable("kavach.request_retention",
							"Sets how long a request_id is remembered.",
							"A request repeated later is a new one: it is decided and charged again.",
							&request_retention,
							7 * 24 * 60, 7 * 24 * 60, 10 * 366 * 24 * 60,
							PGC_SUSET,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
}

/* In minutes. */
int
ledger_request_retention(void)
{
	return request_retention;
}

/* ---- ids ---- */

/*
 * Random bytes, from a pool that a backend fills for many ids at a time: asking
 * for them costs as much as counting a call.
 */
static void
random_bytes(uint8 *to, int count)
{
	static uint8 pool[1024];
	static int	used = sizeof(pool);

	if (used + count > (int) sizeof(pool))
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		used = 0;
	}
	memcpy(to, pool + used, count);
	used += count;
}

static pg_uuid_t
uuid7(TimestampTz ts)
{
	static TimestampTz last_ts = DT_NOBEGIN;
	static uint32 counter = 0;
	pg_uuid_t	id;
	uint64		usecs = (uint64) (ts + UNIX_EPOCH_USECS);
	uint64		time = pg_hton64((usecs / 1000) << 16);
	uint32		fraction = (uint32) (usecs % 1000) * 4096 / 1000;

	counter = (ts == last_ts) ? counter + 1 : 0;
	last_ts = ts;

	memcpy(id.data, &time, 6);
	id.data[6] = 0x70 | (fraction >> 8);
	id.data[7] = fraction & 0xff;
	id.data[8] = 0x80 | ((counter >> 16) & 0x3f);
	id.data[9] = (counter >> 8) & 0xff;
	id.data[10] = counter & 0xff;
	random_bytes(id.data + 11, 5);
	return id;
}

/* The least id that a row from ts on can have. */
pg_uuid_t
ledger_first_id(TimestampTz ts)
{
	pg_uuid_t	id = {{0}};
	uint64		time = pg_hton64((uint64) ((ts + UNIX_EPOCH_USECS) / 1000) << 16);

	memcpy(id.data, &time, 6);
	return id;
}

/* The millisecond in an id.  Of an id that is no UUIDv7, some time or other. */
static TimestampTz
uuid7_ts(const pg_uuid_t *id)
{
	uint64		time = 0;

	memcpy(&time, id->data, 6);
	return (TimestampTz) (pg_ntoh64(time) >> 16) * 1000 - UNIX_EPOCH_USECS;
}

/*
 * The time whose windows a row counts in, for limits: what a settlement gives
 * back, in those of the charge that it gives back.  kavach.charged_at in SQL.
 */
TimestampTz
ledger_charged_at(const LedgerRow *row)
{
	if (row->settles == NULL || row->tokens_cost.value >= 0)
		return row->ts;
	return Min(row->ts, uuid7_ts(row->settles));
}

/* SQL: kavach.uuid7_ts(id) */
static Datum
kavach_uuid7_ts_checked(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(uuid7_ts(PG_GETARG_UUID_P(0)));
}

/* An id that bounds a search; beyond the times that ids can have, the least or the greatest of all. */
static Datum
bound_id(TimestampTz ts)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	if (ts < CLOCK_START)
		memset(id->data, 0, UUID_LEN);
	else if (ts >= CLOCK_END)
		memset(id->data, 0xff, UUID_LEN);
	else
		*id = ledger_first_id(ts);
	return UUIDPGetDatum(id);
}

static bool
is_time(TimestampTz ts)
{
	return ts > CLOCK_START && ts < CLOCK_END;
}

/* SQL: kavach.uuid7_since(ts, whole_month) */
static Datum
kavach_uuid7_since_checked(PG_FUNCTION_ARGS)
{
	TimestampTz ts;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ts = PG_GETARG_TIMESTAMPTZ(0);
	if (PG_GETARG_BOOL(1) && is_time(ts))
		ts = period_start(PERIOD_MONTH, ts);
	PG_RETURN_DATUM(bound_id(ts));
}

/* SQL: kavach.uuid7_until(ts, whole_month) */
static Datum
kavach_uuid7_until_checked(PG_FUNCTION_ARGS)
{
	TimestampTz ts;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ts = PG_GETARG_TIMESTAMPTZ(0);
	if (is_time(ts))			/* one of the same millisecond may be before
								 * it */
		ts = PG_GETARG_BOOL(1) ? period_end(PERIOD_MONTH, ts - 1) : ts + 999;
	PG_RETURN_DATUM(bound_id(ts));
}

/* ---- writing ---- */

static Statement insert_statement = {.nargs = NUM_LEDGER_COLUMNS};

/* The arguments are ledger_columns, in their order. */
static void
complete_insert_statement(void)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO kavach.audit_log (%s) VALUES (", row_column_list(false));
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		appendStringInfo(&sql, "%s$%d", i > 0 ? ", " : "", i + 1);
		insert_statement.argtypes[i] = ledger_columns[i].type;
	}
	appendStringInfoChar(&sql, ')');
	insert_statement.sql = MemoryContextStrdup(TopMemoryContext, sql.data);
}

/* Through the executor, where there are triggers, row security and the like. */
static void
insert_by_statement(const RowValues *row)
{
	OwnerRights owner;
	Datum		values[NUM_LEDGER_COLUMNS];
	char		nulls[NUM_LEDGER_COLUMNS];

	if (insert_statement.sql == NULL)
		complete_insert_statement();
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		values[i] = row->values[i];
		nulls[i] = row->isnull[i] ? 'n' : ' ';
	}
	query_begin(&owner);
	if (query_execute(&insert_statement, values, nulls) == 0)
	{
		/* a rule's plan may depend on no table, and outlive the rule */
		query_forget(&insert_statement);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the row was not written into the ledger"),
				 errdetail("A trigger or rule on kavach.audit_log, or on its partition, has left it out.")));
	}
	query_end(&owner);
}

/*
 * Begins a call that writes: takes the lock that an INSERT takes, to the end of
 * the transaction, so that the ledger is one and the same throughout the call.
 */
void
ledger_begin(void)
{
	lock_begin_call();
	(void) lock_ledger(RowExclusiveLock);
}

static void
insert(const LedgerRow *row)
{
	RowValues	values;

	row_values(row, &values);
	if (!insert_row(ledger_oid(), row->ts, &values))
		insert_by_statement(&values);
}

/* Whether the row is there already, rather than one that a constraint of somebody else's forbids. */
static bool
is_recorded_meanwhile(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		guard_is_key_of_calls(error->schema_name, error->constraint_name);
}

/*
 * Inserts a row that only one of two transactions can.  The other one has
 * committed its row since this one looked, under a lock that the other has given
 * back for want of room (lock_hold): a retry will find it.
 */
static void
insert_unique(const LedgerRow *row)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		insert(row);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (!is_recorded_meanwhile(error))
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not record the call, as another transaction has recorded the same one meanwhile"),
				 errdetail("%s", error->message),
				 errhint("Retry: the answer is that of the first call then.")));
	}
	PG_END_TRY();
}

/* Or the row's partition might not have been asked whether it takes that (insert.c). */
static bool PG_USED_FOR_ASSERTS_ONLY
is_result(const char *name)
{
	for (int i = 0; i < NUM_RESULTS; i++)
		if (strcmp(name, result_names[i]) == 0)
			return true;
	return false;
}

/* Writes a row, giving it its id.  After ledger_begin. */
void
ledger_append(LedgerRow *row)
{
	Assert(is_result(row->result));
	row->id = uuid7(row->ts);
	row->batch = batch_register(ledger_oid());
	if (row->settles != NULL || (row->request_id != NULL && strcmp(row->result, "allowed") == 0))
		insert_unique(row);
	else
		insert(row);
	written_note(row);
}

/* ---- finding ---- */

/* What finds a row where only a statement can. */
typedef struct FindStatement
{
	const char *writer;			/* what says who wrote it */
	const char *condition;
	Statement	statement;		/* its text is made at first use */
} FindStatement;

#define BY_ID "id = $1 AND ts >= $2 AND ts < $3"

static FindStatement find_by_id = {
	.writer = "xmin",
	.condition = BY_ID,
	.statement = {
		.nargs = 3,
		.argtypes = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID},
	},
};

/* in a partition without xmin */
static FindStatement find_archived_by_id = {
	.writer = "NULL::xid",
	.condition = BY_ID,
	.statement = {
		.nargs = 3,
		.argtypes = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID},
	},
};

static FindStatement find_by_request = {
	.writer = "NULL::xid",
	.condition = "agent_id = $1 AND kind = $2 AND request_id = $3 AND result = 'allowed' AND ts >= $4"
	" ORDER BY id DESC LIMIT 1",
	.statement = {
		.nargs = 4,
		.argtypes = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID},
	},
};

static FindStatement find_by_settles = {
	.writer = "NULL::xid",
	.condition = "settles = $1 AND ts >= $2",
	.statement = {
		.nargs = 2,
		.argtypes = {UUIDOID, TIMESTAMPTZOID},
	},
};

static void
complete_find_statement(FindStatement *find)
{
	find->statement.sql =
		MemoryContextStrdup(TopMemoryContext,
							psprintf("SELECT %s, %s FROM kavach.audit_log WHERE %s",
									 row_column_list(true), find->writer, find->condition));
}

/* The row that the last query found, or NULL. */
static LedgerRow *
found_row(uint64 nrows)
{
	LedgerRow  *row;
	Datum		value;
	bool		isnull;
	int			column = 0;

	if (nrows == 0)
		return NULL;
	row = palloc0(sizeof(LedgerRow));
	for (int i = 0; i < NUM_LEDGER_COLUMNS; i++)
	{
		if (!ledger_columns[i].found)
			continue;
		value = query_datum(0, ++column, &isnull);
		row_set(row, i, value, isnull);
	}
	value = query_datum(0, ++column, &isnull);
	row->own = !isnull && TransactionIdIsCurrentTransactionId(DatumGetTransactionId(value));
	return row;
}

static LedgerRow *
find_by_statement(FindStatement *find, Datum *values)
{
	OwnerRights owner;
	LedgerRow  *row;

	if (find->statement.sql == NULL)
		complete_find_statement(find);
	query_begin(&owner);
	row = found_row(query_select(&find->statement, values, NULL));
	query_end(&owner);
	return row;
}

/* The row of an id, or NULL; an error where the id is of a month that was dropped. */
LedgerRow *
ledger_find(const pg_uuid_t *id)
{
	TimestampTz ts = uuid7_ts(id);
	Datum		values[] = {
		UUIDPGetDatum(id),
		TimestampTzGetDatum(ts),
		TimestampTzGetDatum(ts + 1000),
	};
	LedgerRow  *row;

	if (!lookup_row(ledger_oid(), LOOKUP_ID, id, ts, ts + 1000, &row))
		row = find_by_statement(partition_is_heap(ledger_oid(), ts) ? &find_by_id : &find_archived_by_id, values);
	if (row == NULL)
		dropped_refuse(ts, "What it was charged stays: correct that with kavach_adjust().");
	return row;
}

static bool
is_own(const pg_uuid_t *id)
{
	LedgerRow  *row = ledger_find(id);

	return row != NULL && row->own;
}

static LedgerRow *
find_request_by_statement(LedgerKind kind, const char *agent_id, const char *request_id, TimestampTz since)
{
	Datum		values[] = {
		CStringGetTextDatum(agent_id),
		CStringGetTextDatum(ledger_kinds[kind]),
		CStringGetTextDatum(request_id),
		TimestampTzGetDatum(since),
	};
	LedgerRow  *row = find_by_statement(&find_by_request, values);

	if (row != NULL)
		row->own = is_own(&row->id);
	return row;
}

/*
 * The admitted rows of an agent's request, one for each kind, or NULL: as far back
 * as kavach.request_retention asks for, and on to the start of that month.  Where
 * there is one of the first kind, others may not have been looked for.
 */
void
ledger_find_requests(const LedgerKind *kinds, int count, const char *agent_id, const char *request_id,
					 TimestampTz ts, LedgerRow **rows)
{
	TimestampTz since = period_start(PERIOD_MONTH, ts - request_retention * USECS_PER_MINUTE);

	if (lookup_requests(ledger_oid(), agent_id, request_id, kinds, count, since, rows))
		return;
	for (int i = 0; i < count; i++)
		rows[i] = find_request_by_statement(kinds[i], agent_id, request_id, since);
}

/* The same of one kind. */
LedgerRow *
ledger_find_request(LedgerKind kind, const char *agent_id, const char *request_id, TimestampTz ts)
{
	LedgerRow  *row;

	ledger_find_requests(&kind, 1, agent_id, request_id, ts, &row);
	return row;
}

/* The usage row that settles an authorization, or NULL. */
LedgerRow *
ledger_find_settlement(const pg_uuid_t *id)
{
	TimestampTz since = period_start(PERIOD_MONTH, uuid7_ts(id) - CLOCK_SLACK);
	Datum		values[] = {UUIDPGetDatum(id), TimestampTzGetDatum(since)};
	LedgerRow  *row;

	if (lookup_row(ledger_oid(), LOOKUP_SETTLES, id, since, DT_NOEND, &row))
		return row;
	return find_by_statement(&find_by_settles, values);
}

/* ---- locks ---- */

static char *
month_id(TimestampTz month)
{
	return psprintf("%lld", (long long) month);
}

/*
 * Locks what is about to be looked up from "since" on, and then written at ts.
 * Where the lock is not kept, the month of the row is marked; and rows in other
 * months may be of those who have not kept theirs (lock.c).  That some month is
 * marked is a mark of its own (NULL), or each would have to be asked about.
 */
static void
lock_row(LockClass class, const char *id, TimestampTz since, TimestampTz ts)
{
	TimestampTz own = period_start(PERIOD_MONTH, ts);
	TimestampTz month = period_start(PERIOD_MONTH, since);

	if (!lock_hold(class, id))
	{
		lock_mark(LOCK_MONTH, NULL);
		lock_mark(LOCK_MONTH, month_id(own));
	}
	if (month == own && period_end(PERIOD_MONTH, own) > ts + CLOCK_SLACK)
		return;
	if (!lock_is_marked(LOCK_MONTH, NULL))
		return;
	for (; month <= ts + CLOCK_SLACK; month = period_end(PERIOD_MONTH, month))
		if (month != own)
			lock_wait(LOCK_MONTH, month_id(month));
}

/* Locks an agent's request, before it is looked up and written at ts. */
void
ledger_lock_request(const char *agent_id, const char *request_id, TimestampTz ts)
{
	lock_row(LOCK_REQUEST, psprintf("%s\n%s", agent_id, request_id),
			 ts - request_retention * USECS_PER_MINUTE, ts);
}

/* Locks an authorization, before its settlement is looked up and written at ts. */
void
ledger_lock_authorization(const pg_uuid_t *id, TimestampTz ts)
{
	TimestampTz made = Max(CLOCK_START, Min(ts, uuid7_ts(id) - CLOCK_SLACK));
	char		digits[2 * UUID_LEN + 1];

	digits[hex_encode((const char *) id->data, UUID_LEN, digits)] = '\0';
	lock_row(LOCK_AUTHORIZATION, digits, made, ts);
}
