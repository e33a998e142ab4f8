/*-------------------------------------------------------------------------
 * counter.c
 *		How usage is counted: for every scope, in every window.
 *
 * Usage is the sum over the ledger, read under locks that make it exact.  Each
 * call locks its four scopes, from all to agent: exclusively where an enabled
 * limit binds the scope, so that calls on it decide one after the other, each
 * seeing what those before it have committed; shared elsewhere, which hinders
 * nobody, but makes the first call under a new limit wait for those that began
 * before the limit was there.  The locks last to the end of the transaction.
 *
 * Invariant: who holds a scope's lock exclusively sees every committed charge
 * to it, and no charge to it is pending but his own.
 *
 * Caveat: calls under one limit queue for each other's commits.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"

const ScopeInfo scopes[NUM_SCOPES] = {
	[SCOPE_AGENT] = {"agent"},
	[SCOPE_USER] = {"user"},
	[SCOPE_TENANT] = {"tenant"},
	[SCOPE_ALL] = {"all"},
};

PG_FUNCTION_INFO_V1(kavach_current_usage);

ScopeKind
scope_named(const char *name)
{
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (strcmp(name, scopes[scope].name) == 0)
			return scope;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized scope \"%s\"", name)));
	return 0;					/* keep compiler quiet */
}

/* Does one thing with the locks of a call's scopes, from all to agent. */
static void
for_each_lock(const Subject *subject, int exclusive, void (*action) (int class, const char *id, bool exclusive))
{
	for (int scope = SCOPE_ALL; scope >= SCOPE_AGENT; scope--)
	{
		const char *id = (scope == SCOPE_ALL) ? "" : subject->ids[scope];

		if (id != NULL)
			action(LOCK_SCOPE + scope, id, exclusive & SCOPE_BIT(scope));
	}
}

/*
 * Locks the scopes of a call; "exclusive" has a SCOPE_BIT for each that a
 * limit binds.
 */
void
counter_lock(const Subject *subject, int exclusive)
{
	for_each_lock(subject, exclusive, lock_until_end);
}

/*
 * Gives the same locks back, so that a call which finds that it needs stronger
 * ones takes them in order: an upgrade could deadlock with another's.
 */
void
counter_unlock(const Subject *subject, int exclusive)
{
	for_each_lock(subject, exclusive, lock_give_back);
}

/*
 * Tokens and calls of $1, in the windows whose bounds are $2 to $7 and in all
 * that is read: $8 to $9, the longest window that matters.
 */
#define CHARGED_IN(since, until) \
	"coalesce(sum(tokens_cost) FILTER (WHERE ts >= " since " AND ts < " until "), 0)::bigint," \
	"count(*) FILTER (WHERE kind = 'authorize' AND ts >= " since " AND ts < " until "),"
#define USAGE_OF(condition) { \
	.sql = "SELECT " CHARGED_IN("$2", "$3") CHARGED_IN("$4", "$5") CHARGED_IN("$6", "$7") \
	"       coalesce(sum(tokens_cost), 0)::bigint, count(*) FILTER (WHERE kind = 'authorize')" \
	"  FROM kavach.audit_log" \
	" WHERE result = 'allowed' AND ts >= $8 AND ts < $9 AND " condition, \
	.nargs = 9, \
	.argtypes = {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, \
		TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID}, \
}

static Statement usage_of[NUM_SCOPES] = {
	[SCOPE_AGENT] = USAGE_OF("agent_id = $1"),
	[SCOPE_USER] = USAGE_OF("user_id = $1"),
	[SCOPE_TENANT] = USAGE_OF("tenant_id = $1"),
	[SCOPE_ALL] = USAGE_OF("$1 IS NULL"),
};

static void
read_usage(ScopeKind scope, const char *id, TimestampTz ts, PeriodKind longest, Usage usage[NUM_PERIODS],
		   uint64 (*select) (Statement *statement, Datum *values, const char *nulls))
{
	Datum		values[9];
	char		nulls[] = "         ";
	bool		isnull;

	values[0] = text_or_null(id, &isnull);
	nulls[0] = isnull ? 'n' : ' ';
	for (int period = PERIOD_HOUR; period <= PERIOD_MONTH; period++)
	{
		values[1 + 2 * period] = TimestampTzGetDatum(period_start(period, ts));
		values[2 + 2 * period] = TimestampTzGetDatum(period_end(period, ts));
	}
	values[7] = TimestampTzGetDatum(period_start(longest, ts));
	values[8] = TimestampTzGetDatum(period_end(longest, ts));
	select(&usage_of[scope], values, nulls);
	for (int period = PERIOD_HOUR; period <= (int) longest; period++)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
			usage[period].used[measure] = query_int64(0, 1 + NUM_MEASURES * period + measure).value;
}

/*
 * The usage of a subject in the windows that ts falls into, up to the longest
 * that the caller asks for; the longer ones are left unset.  It is exact under
 * the scope's exclusive lock, else as of now.
 */
void
counter_read(ScopeKind scope, const char *id, TimestampTz ts, PeriodKind longest, Usage usage[NUM_PERIODS])
{
	read_usage(scope, id, ts, longest, usage, query_select);
}

/* The same without this transaction's own charges, which are not committed. */
void
counter_read_committed(ScopeKind scope, const char *id, TimestampTz ts, PeriodKind longest,
					   Usage usage[NUM_PERIODS])
{
	read_usage(scope, id, ts, longest, usage, query_select_committed);
}

static Statement rate_of = {
	.sql = "SELECT floor(extract(epoch FROM ts - $3) / 300)::int, count(*)"
	"  FROM kavach.audit_log"
	" WHERE agent_id = $1 AND ts >= $3 AND ts < $4"
	"   AND permission_id = $2 AND kind = 'authorize' AND result = 'allowed'"
	" GROUP BY 1",
	.nargs = 4,
	.argtypes = {TEXTOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID},
};

/*
 * The calls that a permission admitted, in the current window of five minutes
 * (the last) and the twelve before.  Exact under the agent's exclusive lock.
 */
void
counter_read_rate(const char *agent_id, int64 permission_id, TimestampTz ts, int64 calls[RATE_WINDOWS])
{
	TimestampTz end = unit_floor(ts, RATE_WINDOW) + RATE_WINDOW;
	Datum		values[] = {
		CStringGetTextDatum(agent_id),
		Int64GetDatum(permission_id),
		TimestampTzGetDatum(end - RATE_WINDOWS * RATE_WINDOW),
		TimestampTzGetDatum(end),
	};
	uint64		nrows = query_select(&rate_of, values, NULL);

	memset(calls, 0, sizeof(int64) * RATE_WINDOWS);
	for (uint64 i = 0; i < nrows; i++)
	{
		bool		isnull;

		calls[DatumGetInt32(query_datum(i, 1, &isnull))] = query_int64(i, 2).value;
	}
}

/* SQL: kavach.current_usage(scope, subject, period) */
Datum
kavach_current_usage(PG_FUNCTION_ARGS)
{
	OwnerRights owner;
	Usage		usage[NUM_PERIODS];
	TimestampTz ts = clock_now();
	char	   *subject = optional_id_arg(fcinfo, 1, "subject");
	ScopeKind	scope = scope_named(required_id_arg(fcinfo, 0, "scope"));
	PeriodKind	period = period_named(required_id_arg(fcinfo, 2, "period"));
	Datum		values[3];
	bool		nulls[3] = {false};
	TupleDesc	desc = answer_desc(fcinfo);

	query_begin(&owner);
	counter_read_committed(scope, scope == SCOPE_ALL ? NULL : subject, ts, period, usage);
	query_end(&owner);

	values[0] = TimestampTzGetDatum(period_start(period, ts));
	values[1] = Int64GetDatum(usage[period].used[MEASURE_TOKENS]);
	values[2] = Int64GetDatum(usage[period].used[MEASURE_CALLS]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
