/*-------------------------------------------------------------------------
 * tally.c
 *		Usage, summed up from the ledger.
 *
 * What a counter is loaded from, and what answers where there are no counters
 * (a standby).  Sums are over committed rows in the latest snapshot, and the
 * transaction's own.
 *
 * The agent's rows are found by the index on (agent_id, ts); user, tenant and
 * all agents take one pass together: over the rows of the hour or day, found by
 * the primary key as ids sort by time, or over whole months.  Nothing is summed up while a partition
 * lacks its primary key: a restore that is under way adds it last.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

static Statement restore_under_way = {
	.sql = "SELECT FROM pg_inherits p WHERE p.inhparent = 'kavach.audit_log'::regclass"
	"  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = p.inhrelid AND i.indisprimary)",
};

/* Tokens and calls, of rows that fulfil "condition", in one window. */
#define CHARGED_IN(condition, since, until) \
	"coalesce(sum(tokens_cost) FILTER (WHERE " condition " AND ts >= " since " AND ts < " until "), 0)::bigint," \
	"count(*) FILTER (WHERE " condition " AND kind = 'authorize' AND ts >= " since " AND ts < " until ")"

/* In the windows of hour, day, month and total: $1 to $8. */
#define CHARGED(condition) \
	CHARGED_IN(condition, "$1", "$2") "," CHARGED_IN(condition, "$3", "$4") "," \
	CHARGED_IN(condition, "$5", "$6") "," CHARGED_IN(condition, "$7", "$8")

/* Of the longest window that is wanted, $9 to $10, that is. */
#define CHARGING_ROWS \
	"  FROM kavach.audit_log WHERE result = 'allowed' AND ts >= $9 AND ts < $10"

#define WINDOW_TYPES \
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, \
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, \
	TIMESTAMPTZOID, TIMESTAMPTZOID

static Statement tally_agent = {
	.sql = "SELECT " CHARGED("true") CHARGING_ROWS " AND agent_id = $11",
	.nargs = 11,
	.argtypes = {WINDOW_TYPES, TEXTOID},
};

/* $11 user, $12 tenant, $13 whether all agents are wanted */
#define OTHERS \
	"SELECT " CHARGED("user_id = $11") "," CHARGED("tenant_id = $12") "," CHARGED("$13") \
	CHARGING_ROWS " AND ($13 OR user_id = $11 OR tenant_id = $12)"

static Statement tally_others = {
	.sql = OTHERS,
	.nargs = 13,
	.argtypes = {WINDOW_TYPES, TEXTOID, TEXTOID, BOOLOID},
};

/* $14 to $15: the ids that rows of the longest window can have */
static Statement tally_others_by_id = {
	.sql = OTHERS " AND id >= $14 AND id < $15",
	.nargs = 15,
	.argtypes = {WINDOW_TYPES, TEXTOID, TEXTOID, BOOLOID, UUIDOID, UUIDOID},
};

/* $1 agent, $2 permission, $3 to $4 all its windows */
static Statement tally_calls = {
	.sql = "SELECT floor(extract(epoch FROM ts - $3) / 300)::int, count(*)"
	"  FROM kavach.audit_log"
	" WHERE agent_id = $1 AND ts >= $3 AND ts < $4"
	"   AND permission_id = $2 AND kind = 'authorize' AND result = 'allowed'"
	" GROUP BY 1",
	.nargs = 4,
	.argtypes = {TEXTOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID},
};

static void
refuse_during_restore(void)
{
	if (query_select(&restore_under_way, NULL, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the ledger is being restored"),
				 errdetail("A partition of kavach.audit_log has no primary key yet."),
				 errhint("Wait for the restore to end.")));
}

static void
bind_windows(Datum *values, TimestampTz ts, PeriodKind longest)
{
	for (int period = 0; period < NUM_PERIODS; period++)
	{
		values[2 * period] = TimestampTzGetDatum(period_start(period, ts));
		values[2 * period + 1] = TimestampTzGetDatum(period_end(period, ts));
	}
	values[2 * NUM_PERIODS] = TimestampTzGetDatum(period_start(longest, ts));
	values[2 * NUM_PERIODS + 1] = TimestampTzGetDatum(period_end(longest, ts));
}

/* Takes the figures of one scope out of the result, from a column on. */
static void
take(Usage usage[NUM_PERIODS], int column)
{
	for (int period = 0; period < NUM_PERIODS; period++)
	{
		memset(&usage[period], 0, sizeof(Usage));
		for (int measure = 0; measure < NUM_MEASURES; measure++)
			usage[period].used[measure] = query_int64(0, column++).value;
	}
}

static void
tally_agent_rows(const char *agent_id, TimestampTz ts, PeriodKind longest, Usage usage[NUM_PERIODS])
{
	Datum		values[11];

	bind_windows(values, ts, longest);
	values[10] = CStringGetTextDatum(agent_id);
	query_select(&tally_agent, values, NULL);
	take(usage, 1);
}

static void
bind_subject(Datum *values, char *nulls, int index, const char *id)
{
	bool		isnull;

	values[index] = text_or_null(id, &isnull);
	nulls[index] = isnull ? 'n' : ' ';
}

static void
tally_other_rows(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
				 Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	Datum		values[15];
	char		nulls[] = "               ";
	PeriodKind	period = Max(longest[SCOPE_USER], Max(longest[SCOPE_TENANT], longest[SCOPE_ALL]));
	pg_uuid_t	first_id;
	pg_uuid_t	end_id;

	bind_windows(values, ts, period);
	bind_subject(values, nulls, 10, longest[SCOPE_USER] >= 0 ? subject->ids[SCOPE_USER] : NULL);
	bind_subject(values, nulls, 11, longest[SCOPE_TENANT] >= 0 ? subject->ids[SCOPE_TENANT] : NULL);
	values[12] = BoolGetDatum(longest[SCOPE_ALL] >= 0);
	if (period <= PERIOD_DAY)
	{
		first_id = ledger_first_id(period_start(period, ts));
		end_id = ledger_first_id(period_end(period, ts));
		values[13] = UUIDPGetDatum(&first_id);
		values[14] = UUIDPGetDatum(&end_id);
		query_avoid_scans();
		query_select(&tally_others_by_id, values, nulls);
	}
	else
		query_select(&tally_others, values, nulls);
	for (int scope = SCOPE_USER; scope <= SCOPE_ALL; scope++)
		take(usage[scope], 1 + (scope - SCOPE_USER) * NUM_PERIODS * NUM_MEASURES);
}

/*
 * The usage of subjects in the windows that ts falls into.  longest: for each
 * scope the longest window that is wanted, or -1 for none; what is returned of
 * longer ones means nothing.
 */
void
tally_subjects(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
			   Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	OwnerRights owner;

	query_begin(&owner);
	refuse_during_restore();
	if (longest[SCOPE_AGENT] >= 0)
		tally_agent_rows(subject->ids[SCOPE_AGENT], ts, longest[SCOPE_AGENT], usage[SCOPE_AGENT]);
	if (longest[SCOPE_USER] >= 0 || longest[SCOPE_TENANT] >= 0 || longest[SCOPE_ALL] >= 0)
		tally_other_rows(subject, ts, longest, usage);
	query_end(&owner);
}

/* The calls that a permission admitted in the windows of its rate per hour. */
void
tally_rate(const char *agent_id, int64 permission_id, TimestampTz ts, Usage usage[RATE_WINDOWS])
{
	OwnerRights owner;
	TimestampTz start = period_start(PERIOD_RATE, ts) - CURRENT_RATE_WINDOW * RATE_WINDOW;
	Datum		values[] = {
		CStringGetTextDatum(agent_id),
		Int64GetDatum(permission_id),
		TimestampTzGetDatum(start),
		TimestampTzGetDatum(start + RATE_WINDOWS * RATE_WINDOW),
	};
	uint64		nrows;

	query_begin(&owner);
	refuse_during_restore();
	nrows = query_select(&tally_calls, values, NULL);
	memset(usage, 0, sizeof(Usage) * RATE_WINDOWS);
	for (uint64 i = 0; i < nrows; i++)
	{
		bool		isnull;

		usage[DatumGetInt32(query_datum(i, 1, &isnull))].used[MEASURE_CALLS] = query_int64(i, 2).value;
	}
	query_end(&owner);
}
