/*-------------------------------------------------------------------------
 * ledger.c
 *		How rows get into kavach.audit_log, and how single ones are found.
 *
 * Rows are inserted through a prepared statement.  A month's partition is made
 * by the call that first needs it, in that call's transaction: a second caller
 * waits for the first on a lock of ours, then finds it.  The parent carries no
 * index; what a partition needs is in partition_ddl.
 *
 * Ids are UUIDv7 (RFC 9562): milliseconds, 12 bits of the fraction (its method
 * 3), then a counter, so that one backend's ids sort even within a
 * microsecond, and 40 random bits.  The time in an id is the row's ts, so that
 * a search by id prunes partitions.
 *
 * Requests and settlements are looked up under the locks of
 * ledger_lock_request and ledger_lock_authorization, held to the end of the
 * transaction, so that of two calls at once the second finds the first's row.
 * Partitions are searched whole, since their unique indexes span them whole.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"

#define UNIX_EPOCH_USECS \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* A settlement is looked for in the months from this long before its call. */
#define CLOCK_SLACK		USECS_PER_DAY

static const char *const kinds[] = {
	[LEDGER_AUTHORIZE] = "authorize",
	[LEDGER_USAGE] = "usage",
	[LEDGER_ADJUSTMENT] = "adjustment",
};

static int	request_retention = 7 * 24 * 60;	/* minutes */

PG_FUNCTION_INFO_V1(kavach_uuid7_ts);

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

/* ---- ids ---- */

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

	if (!pg_strong_random(id.data + 11, 5))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	memcpy(id.data, &time, 6);
	id.data[6] = 0x70 | (fraction >> 8);
	id.data[7] = fraction & 0xff;
	id.data[8] = 0x80 | ((counter >> 16) & 0x3f);
	id.data[9] = (counter >> 8) & 0xff;
	id.data[10] = counter & 0xff;
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

/* SQL: kavach.uuid7_ts(id) */
Datum
kavach_uuid7_ts(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(uuid7_ts(PG_GETARG_UUID_P(0)));
}

/* ---- partitions ---- */

/* %1$s: the partition's name; %2$s, %3$s: its bounds */
static const char *const partition_ddl =
"CREATE TABLE kavach.%1$s (LIKE kavach.audit_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS);"
"COMMENT ON TABLE kavach.%1$s IS 'The ledger of one UTC month.';"
"ALTER TABLE kavach.%1$s ADD PRIMARY KEY (id);"
"CREATE INDEX %1$s_agent_id_ts_idx ON kavach.%1$s (agent_id, ts);"
"CREATE INDEX %1$s_batch_idx ON kavach.%1$s (batch);"
"CREATE UNIQUE INDEX %1$s_settles_idx ON kavach.%1$s (settles) WHERE settles IS NOT NULL;"
"CREATE UNIQUE INDEX %1$s_request_id_idx ON kavach.%1$s (agent_id, kind, request_id)"
"  WHERE request_id IS NOT NULL AND result = 'allowed';"
"CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON kavach.%1$s"
"  FOR EACH STATEMENT EXECUTE FUNCTION kavach.refuse_change();"
"ALTER TABLE kavach.%1$s ENABLE ALWAYS TRIGGER append_only_truncate;"
"ALTER TABLE kavach.audit_log ATTACH PARTITION kavach.%1$s FOR VALUES FROM ('%2$s') TO ('%3$s')";

static bool
partition_exists(const char *name)
{
	return OidIsValid(get_relname_relid(name, get_namespace_oid("kavach", false)));
}

/* Whatever the session has set for tables of its own must not reach ours. */
static void
pin_table_defaults(void)
{
	(void) set_config_option("default_tablespace", "", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("default_table_access_method", "heap", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

static void
ensure_partition(TimestampTz ts)
{
	TimestampTz start = period_start(PERIOD_MONTH, ts);
	char	   *from = format_utc(start);
	char	   *name = psprintf("audit_log_%.4s_%.2s", from, from + 5);

	if (partition_exists(name))
		return;

	lock_until_end(LOCK_PARTITION, name, true);
	AcceptInvalidationMessages();
	if (partition_exists(name))
		return;

	pin_table_defaults();
	query_utility(psprintf(partition_ddl, name, from, format_utc(period_end(PERIOD_MONTH, ts))));
}

/* ---- writing ---- */

static Statement insert_row = {
	.sql = "INSERT INTO kavach.audit_log"
	" (id, ts, kind, agent_id, user_id, tenant_id, action, resource, arguments, ip,"
	"  result, code, reason, permission_id, policy_id,"
	"  tokens_requested, min_tokens, tokens_released, tokens_cost, settles, request_id, metadata)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,"
	"  $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)",
	.nargs = 22,
	.argtypes = {UUIDOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, INETOID,
		TEXTOID, TEXTOID, TEXTOID, INT8OID, TEXTOID,
	INT8OID, INT8OID, INT8OID, INT8OID, UUIDOID, TEXTOID, JSONBOID},
};

/* Values of a statement, bound one after the other. */
typedef struct Binder
{
	int			count;
	Datum		values[MAX_QUERY_ARGS];
	char		nulls[MAX_QUERY_ARGS];
} Binder;

static void
bind_value(Binder *binder, Datum value, bool isnull)
{
	Assert(binder->count < MAX_QUERY_ARGS);
	binder->values[binder->count] = value;
	binder->nulls[binder->count] = isnull ? 'n' : ' ';
	binder->count++;
}

static void
bind_text(Binder *binder, const char *value)
{
	bool		isnull;
	Datum		datum = text_or_null(value, &isnull);

	bind_value(binder, datum, isnull);
}

static void
bind_pointer(Binder *binder, const void *value)
{
	bind_value(binder, PointerGetDatum(value), value == NULL);
}

static void
bind_number(Binder *binder, OptionalInt64 value)
{
	bind_value(binder, Int64GetDatum(value.value), !value.given);
}

/* Writes a row, giving it its id. */
void
ledger_append(LedgerRow *row)
{
	Binder		binder = {0};

	ensure_partition(row->ts);
	row->id = uuid7(row->ts);

	bind_pointer(&binder, &row->id);
	bind_value(&binder, TimestampTzGetDatum(row->ts), false);
	bind_text(&binder, kinds[row->kind]);
	bind_text(&binder, row->agent_id);
	bind_text(&binder, row->user_id);
	bind_text(&binder, row->tenant_id);
	bind_text(&binder, row->action);
	bind_text(&binder, row->resource);
	bind_pointer(&binder, row->arguments);
	bind_pointer(&binder, row->ip);
	bind_text(&binder, row->result);
	bind_text(&binder, row->code);
	bind_text(&binder, row->reason);
	bind_value(&binder, Int64GetDatum(row->permission_id), row->permission_id == 0);
	bind_text(&binder, row->policy_id);
	bind_number(&binder, row->tokens_requested);
	bind_number(&binder, row->min_tokens);
	bind_number(&binder, row->tokens_released);
	bind_number(&binder, row->tokens_cost);
	bind_pointer(&binder, row->settles);
	bind_text(&binder, row->request_id);
	bind_pointer(&binder, row->metadata);
	query_execute(&insert_row, binder.values, binder.nulls);
}

/* ---- finding ---- */

#define FOUND_COLUMNS \
	"SELECT id, ts, kind, agent_id, user_id, tenant_id, action, resource, arguments," \
	"       result, code, reason, policy_id," \
	"       tokens_requested, min_tokens, tokens_cost, settles, request_id, xmin" \
	"  FROM kavach.audit_log"

static Statement find_by_id = {
	.sql = FOUND_COLUMNS " WHERE id = $1 AND ts >= $2 AND ts < $3",
	.nargs = 3,
	.argtypes = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID},
};

static Statement find_by_request = {
	.sql = FOUND_COLUMNS
	" WHERE agent_id = $1 AND kind = $2 AND request_id = $3 AND result = 'allowed' AND ts >= $4"
	" ORDER BY id DESC LIMIT 1",
	.nargs = 4,
	.argtypes = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

static Statement find_by_settles = {
	.sql = FOUND_COLUMNS " WHERE settles = $1 AND ts >= $2",
	.nargs = 2,
	.argtypes = {UUIDOID, TIMESTAMPTZOID},
};

static LedgerKind
kind_named(const char *name)
{
	for (int kind = 0; kind < (int) lengthof(kinds); kind++)
		if (strcmp(name, kinds[kind]) == 0)
			return kind;
	elog(ERROR, "unrecognized kind \"%s\" in the ledger", name);
	return 0;					/* keep compiler quiet */
}

/* The row that the last query found, or NULL. */
static LedgerRow *
found_row(uint64 nrows)
{
	LedgerRow  *row;
	bool		isnull;
	Datum		settles;

	if (nrows == 0)
		return NULL;
	row = palloc0(sizeof(LedgerRow));
	row->id = *DatumGetUUIDP(query_datum(0, 1, &isnull));
	row->ts = DatumGetTimestampTz(query_datum(0, 2, &isnull));
	row->kind = kind_named(query_text(0, 3));
	row->agent_id = query_text(0, 4);
	row->user_id = query_text(0, 5);
	row->tenant_id = query_text(0, 6);
	row->action = query_text(0, 7);
	row->resource = query_text(0, 8);
	row->arguments = (Jsonb *) DatumGetPointer(query_datum(0, 9, &isnull));
	row->result = query_text(0, 10);
	row->code = query_text(0, 11);
	row->reason = query_text(0, 12);
	row->policy_id = query_text(0, 13);
	row->tokens_requested = query_int64(0, 14);
	row->min_tokens = query_int64(0, 15);
	row->tokens_cost = query_int64(0, 16);
	settles = query_datum(0, 17, &isnull);
	row->settles = isnull ? NULL : DatumGetUUIDP(settles);
	row->request_id = query_text(0, 18);
	row->own = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(query_datum(0, 19, &isnull)));
	return row;
}

/* The row of an id, or NULL. */
LedgerRow *
ledger_find(const pg_uuid_t *id)
{
	Datum		values[] = {
		UUIDPGetDatum(id),
		TimestampTzGetDatum(uuid7_ts(id)),
		TimestampTzGetDatum(uuid7_ts(id) + 1000),
	};

	return found_row(query_select(&find_by_id, values, NULL));
}

/*
 * The admitted row of an agent's request, or NULL: as far back as
 * kavach.request_retention asks for, and on to the start of that month.
 */
LedgerRow *
ledger_find_request(LedgerKind kind, const char *agent_id, const char *request_id, TimestampTz ts)
{
	TimestampTz since = period_start(PERIOD_MONTH, ts - request_retention * USECS_PER_MINUTE);
	Datum		values[] = {
		CStringGetTextDatum(agent_id),
		CStringGetTextDatum(kinds[kind]),
		CStringGetTextDatum(request_id),
		TimestampTzGetDatum(since),
	};

	return found_row(query_select(&find_by_request, values, NULL));
}

/* The usage row that settles an authorization, or NULL. */
LedgerRow *
ledger_find_settlement(const pg_uuid_t *id)
{
	Datum		values[] = {
		UUIDPGetDatum(id),
		TimestampTzGetDatum(period_start(PERIOD_MONTH, uuid7_ts(id) - CLOCK_SLACK)),
	};

	return found_row(query_select(&find_by_settles, values, NULL));
}

void
ledger_lock_request(const char *agent_id, const char *request_id)
{
	lock_until_end(LOCK_REQUEST, psprintf("%s\n%s", agent_id, request_id), true);
}

void
ledger_lock_authorization(const pg_uuid_t *id)
{
	lock_until_end(LOCK_AUTHORIZATION, DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))), true);
}
