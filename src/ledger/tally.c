/*-------------------------------------------------------------------------
 * tally.c
 *		Usage, summed up from the ledger.
 *
 * What a counter is loaded from, and what answers where there are no counters
 * (a standby).  Sums are over committed rows in the latest snapshot, and the
 * transaction's own, where they are asked for.
 *
 * A row counts in the windows of kavach.charged_at, which is never later than
 * its ts: so rows are looked for from the start of the window on, with no end.
 *
 * The agent's rows are found by the index on (agent_id, ts); user, tenant and
 * all agents take one pass together: over the rows of the hour or day, found by
 * the primary key as ids sort by time, or over whole months.
 *
 * Nothing is summed up while a restore is under way.  What there is to see of
 * one: it gives a table its indexes when the rows are in.  So a month such as
 * kavach makes them, but without any, is being restored, and so is any table
 * without, as long as pg_restore or a COPY into the ledger is at work.  Others
 * are left as they are by those who made them: a default partition, say, or an
 * archived month, which may be foreign, or no heap, and has no need of indexes.
 *-------------------------------------------------------------------------
 */
#include "ledger/tally.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "utils/builtins.h"

#include "ledger/ledger.h"
#include "ledger/partition.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/query.h"

#define BARE_PARTITIONS \
	"  FROM pg_inherits p JOIN pg_class c ON c.oid = p.inhrelid" \
	" WHERE p.inhparent = 'kavach.audit_log'::regclass AND c.relkind = 'r'" \
	"   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid)"

static Statement bare_partitions = {
	.sql = "SELECT c.oid, c.oid::regclass::text" BARE_PARTITIONS " ORDER BY 2",
};

/* A file that is a foreign table is read with COPY, too. */
static Statement restoring_sessions = {
	.sql = "SELECT FROM pg_stat_activity"
	" WHERE datname = current_database() AND starts_with(application_name, 'pg_restore')"
	" UNION ALL "
	"SELECT FROM pg_stat_progress_copy"
	" WHERE datname = current_database() AND command = 'COPY FROM'"
	"   AND relid IN (SELECT 'kavach.audit_log'::regclass UNION ALL SELECT c.oid" BARE_PARTITIONS ")",
};

/*
 * Sums are grouped by the shortest window that a row is in, as a PeriodKind
 * ($1 to $6 bound hour, day and month, each within the next), over the longest
 * window that is wanted ($7 to $8); and by whether it is the user's and the
 * tenant's.  One pass of two aggregates: this may read millions of rows.
 */
#define TALLY(is_user, is_tenant, condition) \
	"SELECT " is_user "," is_tenant "," \
	"       CASE WHEN charged_at >= $1 AND charged_at < $2 THEN 0" \
	"            WHEN charged_at >= $3 AND charged_at < $4 THEN 1" \
	"            WHEN charged_at >= $5 AND charged_at < $6 THEN 2 ELSE 3 END," \
	"       coalesce(sum(tokens_cost), 0)::bigint, count(*) FILTER (WHERE kind = 'authorize')" \
	"  FROM (SELECT *, kavach.charged_at(ts, tokens_cost, settles)" \
	"          FROM kavach.audit_log" \
	"         WHERE result = 'allowed' AND ts >= $7 AND " condition ") a" \
	" WHERE charged_at >= $7 AND charged_at < $8" \
	" GROUP BY 1, 2, 3"

#define WINDOW_TYPES \
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, \
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID
#define NUM_BOUNDS	8

static Statement tally_agent = {
	.sql = TALLY("false", "false", "agent_id = $9"),
	.nargs = 9,
	.argtypes = {WINDOW_TYPES, TEXTOID},
};

/* $9 user, $10 tenant, $11 whether all agents are wanted */
#define OTHERS(condition) \
	TALLY("coalesce(user_id = $9, false)", "coalesce(tenant_id = $10, false)", \
		  "($11 OR user_id = $9 OR tenant_id = $10)" condition)

static Statement tally_others = {
	.sql = OTHERS(""),
	.nargs = 11,
	.argtypes = {WINDOW_TYPES, TEXTOID, TEXTOID, BOOLOID},
};

/* $12: the least id that rows of the longest window can have */
static Statement tally_others_by_id = {
	.sql = OTHERS(" AND id >= $12"),
	.nargs = 12,
	.argtypes = {WINDOW_TYPES, TEXTOID, TEXTOID, BOOLOID, UUIDOID},
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
refuse_restored(const char *partition, bool is_month)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the ledger is being restored"),
			 errdetail("Its partition %s has no index yet.", partition),
			 is_month ?
			 errhint("Wait for the restore to end; if there is none: ALTER TABLE %s ADD PRIMARY KEY (id).", partition) :
			 errhint("Wait for pg_restore, or COPY, to end.")));
}

static void
refuse_during_restore(void)
{
	uint64		nrows = query_select(&bare_partitions, NULL, NULL);
	char	   *partition = NULL;

	for (uint64 row = 0; row < nrows; row++)
	{
		bool		isnull;
		Oid			relid = DatumGetObjectId(query_datum(row, 1, &isnull));

		partition = query_text(row, 2);
		if (partition_is_month(relid))
			refuse_restored(partition, true);
	}
	if (partition != NULL && query_select(&restoring_sessions, NULL, NULL) > 0)
		refuse_restored(partition, false);
}

static void
bind_windows(Datum *values, TimestampTz ts, PeriodKind longest)
{
	for (int period = PERIOD_HOUR; period <= PERIOD_MONTH; period++)
	{
		values[2 * period] = TimestampTzGetDatum(period_start(period, ts));
		values[2 * period + 1] = TimestampTzGetDatum(period_end(period, ts));
	}
	values[NUM_BOUNDS - 2] = TimestampTzGetDatum(period_start(longest, ts));
	values[NUM_BOUNDS - 1] = TimestampTzGetDatum(period_end(longest, ts));
}

static void
bind_subject(Datum *values, char *nulls, int index, const char *id)
{
	bool		isnull;

	values[index] = text_or_null(id, &isnull);
	nulls[index] = isnull ? 'n' : ' ';
}

static bool
group_flag(uint64 row, int column)
{
	bool		isnull;

	return DatumGetBool(query_datum(row, column, &isnull));
}

/* Adds a group's sums to its window, and to those that this one is within. */
static void
add_group(Usage usage[NUM_PERIODS], uint64 row)
{
	bool		isnull;
	int			shortest = DatumGetInt32(query_datum(row, 3, &isnull));

	for (int period = shortest; period < NUM_PERIODS; period++)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
			if (pg_add_s64_overflow(usage[period].used[measure],
									query_int64(row, 4 + measure).value,
									&usage[period].used[measure]))
				ereport(ERROR,
						(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						 errmsg("bigint out of range"),
						 errdetail("The rows of the ledger add up to more than can be counted.")));
}

static void
tally_agent_rows(const char *agent_id, TimestampTz ts, PeriodKind longest, Usage usage[NUM_PERIODS])
{
	Datum		values[NUM_BOUNDS + 1];
	uint64		nrows;

	bind_windows(values, ts, longest);
	values[NUM_BOUNDS] = CStringGetTextDatum(agent_id);
	nrows = query_select(&tally_agent, values, NULL);
	for (uint64 row = 0; row < nrows; row++)
		add_group(usage, row);
}

static void
tally_other_rows(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
				 Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	PeriodKind	period = Max(longest[SCOPE_USER], Max(longest[SCOPE_TENANT], longest[SCOPE_ALL]));
	pg_uuid_t	first_id;
	Datum		values[NUM_BOUNDS + 4];
	char		nulls[] = "            ";
	uint64		nrows;

	bind_windows(values, ts, period);
	bind_subject(values, nulls, NUM_BOUNDS, longest[SCOPE_USER] >= 0 ? subject->ids[SCOPE_USER] : NULL);
	bind_subject(values, nulls, NUM_BOUNDS + 1, longest[SCOPE_TENANT] >= 0 ? subject->ids[SCOPE_TENANT] : NULL);
	values[NUM_BOUNDS + 2] = BoolGetDatum(longest[SCOPE_ALL] >= 0);
	if (period <= PERIOD_DAY)
	{
		first_id = ledger_first_id(period_start(period, ts));
		values[NUM_BOUNDS + 3] = UUIDPGetDatum(&first_id);
		query_avoid_scans();
		nrows = query_select(&tally_others_by_id, values, nulls);
	}
	else
		nrows = query_select(&tally_others, values, nulls);

	for (uint64 row = 0; row < nrows; row++)
	{
		if (group_flag(row, 1))
			add_group(usage[SCOPE_USER], row);
		if (group_flag(row, 2))
			add_group(usage[SCOPE_TENANT], row);
		add_group(usage[SCOPE_ALL], row);
	}
}

/*
 * The usage of subjects in the windows that ts falls into.  longest: for each
 * scope the longest window that is wanted, or -1 for none; what is returned of
 * longer ones means nothing.  own: whether the transaction's own rows count.
 */
void
tally_subjects(const Subject *subject, TimestampTz ts, const int longest[NUM_SCOPES],
			   bool own, Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	OwnerRights owner;

	memset(usage, 0, sizeof(Usage) * NUM_SCOPES * NUM_PERIODS);
	query_begin(&owner);
	refuse_during_restore();
	if (!own)
		query_ignore_own();
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
