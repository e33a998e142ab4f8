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
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

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
 * ($1 on bound each period but the last, each within the next), over the longest
 * window that is wanted (the last two bounds), or NUM_PERIODS for what is later;
 * and by whose they are, of those subjects that no index finds: one pass for all
 * of them, as this may read millions of rows.
 */
#define NUM_BOUNDS	(2 * NUM_PERIODS)
#define LONGEST		"$7"		/* where the longest window starts */

static Statement tally_indexed[NUM_SCOPES];
static Statement tally_others;
static Statement tally_others_by_id;

/* $1 agent, $2 permission, $3 from when on */
static Statement tally_calls = {
	.sql = "SELECT floor(extract(epoch FROM ts - $3) / 300)::bigint, count(*)"
	"  FROM kavach.audit_log"
	" WHERE agent_id = $1 AND ts >= $3"
	"   AND permission_id = $2 AND kind = 'authorize' AND result = 'allowed'"
	" GROUP BY 1 ORDER BY 1",
	.nargs = 3,
	.argtypes = {TEXTOID, INT8OID, TIMESTAMPTZOID},
};

/* ---- the statements, from the tables of scopes and periods ---- */

/* whose: columns to group by, and their commas */
static void
write_tally(Statement *statement, const char *whose, const char *condition)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s CASE", whose);
	for (int period = 0; period < PERIOD_TOTAL; period++)
		appendStringInfo(&sql, " WHEN charged_at >= $%d AND charged_at < $%d THEN %d",
						 2 * period + 1, 2 * period + 2, period);
	appendStringInfo(&sql, " WHEN charged_at < $%d THEN %d ELSE %d END AS period,"
					 " coalesce(sum(tokens_cost), 0)::bigint, count(*) FILTER (WHERE kind = 'authorize'),"
					 " max(charged_at)"
					 " FROM (SELECT *, kavach.charged_at(ts, tokens_cost, settles) FROM kavach.audit_log"
					 " WHERE result = 'allowed' AND ts >= " LONGEST " AND %s) a"
					 " WHERE charged_at >= " LONGEST
					 " GROUP BY %s period",
					 NUM_BOUNDS, PERIOD_TOTAL, NUM_PERIODS, condition, whose);
	statement->sql = MemoryContextStrdup(TopMemoryContext, sql.data);
	for (int i = 0; i < NUM_BOUNDS; i++)
		statement->argtypes[i] = TIMESTAMPTZOID;
	statement->nargs = NUM_BOUNDS;
	pfree(sql.data);
}

static void
add_parameter(Statement *statement, Oid type)
{
	statement->argtypes[statement->nargs++] = type;
}

static bool
is_one_of_others(int scope)
{
	return scopes[scope].column != NULL && !scopes[scope].indexed;
}

/* Of a scope whose column is indexed; the id comes after the bounds. */
static Statement *
statement_of(ScopeKind scope)
{
	Statement  *statement = &tally_indexed[scope];

	if (statement->sql == NULL)
	{
		write_tally(statement, "", psprintf("%s = $%d", scopes[scope].column, NUM_BOUNDS + 1));
		add_parameter(statement, TEXTOID);
	}
	return statement;
}

/* After the bounds: an id for each of the others, whether all agents are wanted, the least id. */
static void
write_others(Statement *statement, bool by_id)
{
	StringInfoData whose;
	StringInfoData any;
	int			parameter = NUM_BOUNDS;

	initStringInfo(&whose);
	initStringInfo(&any);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		if (!is_one_of_others(scope))
			continue;
		parameter++;
		appendStringInfo(&whose, "coalesce(%s = $%d, false), ", scopes[scope].column, parameter);
		appendStringInfo(&any, " OR %s = $%d", scopes[scope].column, parameter);
	}
	write_tally(statement, whose.data,
				by_id ? psprintf("($%d%s) AND id >= $%d", parameter + 1, any.data, parameter + 2) :
				psprintf("($%d%s)", parameter + 1, any.data));
	for (int i = NUM_BOUNDS; i < parameter; i++)
		add_parameter(statement, TEXTOID);
	add_parameter(statement, BOOLOID);
	if (by_id)
		add_parameter(statement, UUIDOID);
}

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

/* ---- sums ---- */

static void
bind_windows(Datum *values, TimestampTz ts, PeriodKind longest)
{
	for (int period = 0; period < PERIOD_TOTAL; period++)
	{
		values[2 * period] = TimestampTzGetDatum(period_start(period, ts));
		values[2 * period + 1] = TimestampTzGetDatum(period_end(period, ts));
	}
	values[NUM_BOUNDS - 2] = TimestampTzGetDatum(period_start(longest, ts));
	values[NUM_BOUNDS - 1] = TimestampTzGetDatum(period_end(longest, ts));
}

static bool
group_flag(uint64 row, int column)
{
	bool		isnull;

	return DatumGetBool(query_datum(row, column, &isnull));
}

/*
 * Adds a group's sums to its window, and to those that this one is within, and
 * has newest not lie before its latest row.
 */
static void
add_group(Tally *tally, uint64 row, int column)
{
	bool		isnull;
	int			shortest = DatumGetInt32(query_datum(row, column, &isnull));
	TimestampTz latest = DatumGetTimestampTz(query_datum(row, column + 3, &isnull));

	tally->newest = Max(tally->newest, latest);
	for (int period = shortest; period < NUM_PERIODS; period++)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
			if (pg_add_s64_overflow(tally->usage[period].used[measure],
									query_int64(row, column + 1 + measure).value,
									&tally->usage[period].used[measure]))
				ereport(ERROR,
						(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						 errmsg("bigint out of range"),
						 errdetail("The rows of the ledger add up to more than can be counted.")));
}

static void
tally_one(const Subject *subject, TimestampTz ts, PeriodKind longest, Tally *tally)
{
	Datum		values[NUM_BOUNDS + 1];
	uint64		nrows;

	bind_windows(values, ts, longest);
	values[NUM_BOUNDS] = CStringGetTextDatum(subject->id);
	nrows = query_select(statement_of(subject->scope), values, NULL);
	for (uint64 row = 0; row < nrows; row++)
		add_group(tally, row, 1);
}

/* Runs the pass over the rows of the others; subjects: one at most of each scope, or NULL. */
static uint64
select_others(const Subject *const subjects[NUM_SCOPES], TimestampTz ts, PeriodKind longest)
{
	Datum		values[MAX_QUERY_ARGS];
	char		nulls[MAX_QUERY_ARGS];
	int			count = NUM_BOUNDS;
	bool		by_id = longest <= PERIOD_DAY;
	Statement  *statement = by_id ? &tally_others_by_id : &tally_others;
	pg_uuid_t	first_id;

	if (statement->sql == NULL)
		write_others(statement, by_id);
	bind_windows(values, ts, longest);
	memset(nulls, ' ', sizeof(nulls));
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		bool		isnull;

		if (!is_one_of_others(scope))
			continue;
		values[count] = text_or_null(subjects[scope] ? subjects[scope]->id : NULL, &isnull);
		nulls[count++] = isnull ? 'n' : ' ';
	}
	values[count++] = BoolGetDatum(subjects[SCOPE_ALL] != NULL);
	if (by_id)
	{
		first_id = ledger_first_id(period_start(longest, ts));
		values[count++] = UUIDPGetDatum(&first_id);
		query_avoid_scans();
	}
	Assert(count == statement->nargs);
	return query_select(statement, values, nulls);
}

/* Adds the rows of a pass to those of its subjects whose they are. */
static void
add_others(Tally *const tallies[NUM_SCOPES], uint64 nrows)
{
	int			ncolumns = 0;

	for (int scope = 0; scope < NUM_SCOPES; scope++)
		ncolumns += is_one_of_others(scope);
	for (uint64 row = 0; row < nrows; row++)
	{
		int			column = 1;

		for (int scope = 0; scope < NUM_SCOPES; scope++)
		{
			bool		theirs = is_one_of_others(scope) ? group_flag(row, column++) : scope == SCOPE_ALL;

			if (theirs && tallies[scope] != NULL)
				add_group(tallies[scope], row, ncolumns + 1);
		}
	}
}

/* One pass, for a subject of each scope that is left; false where none is. */
static bool
tally_others_once(const SubjectList *list, TimestampTz ts, int left[MAX_SUBJECTS], Tally tallies[MAX_SUBJECTS])
{
	const Subject *subjects[NUM_SCOPES] = {NULL};
	Tally	   *theirs[NUM_SCOPES] = {NULL};
	int			longest = -1;

	for (int i = 0; i < list->count; i++)
	{
		ScopeKind	scope = list->subjects[i].scope;

		if (left[i] < 0 || subjects[scope] != NULL)
			continue;
		subjects[scope] = &list->subjects[i];
		theirs[scope] = &tallies[i];
		longest = Max(longest, left[i]);
		left[i] = -1;
	}
	if (longest < 0)
		return false;
	add_others(theirs, select_others(subjects, ts, longest));
	return true;
}

/*
 * The usage of subjects in the windows that ts falls into.  longest: for each
 * the longest window that is wanted, or -1 for none; what is returned of
 * longer ones means nothing.  own: whether the transaction's own rows count.
 */
void
tally_subjects(const SubjectList *list, TimestampTz ts, const int longest[MAX_SUBJECTS],
			   bool own, Tally tallies[MAX_SUBJECTS])
{
	OwnerRights owner;
	int			left[MAX_SUBJECTS] = {0};	/* of those that no index finds */

	query_begin(&owner);
	refuse_during_restore();
	if (!own)
		query_ignore_own();
	for (int i = 0; i < list->count; i++)
	{
		left[i] = longest[i];
		memset(&tallies[i], 0, sizeof(Tally));
		if (longest[i] < 0)
			continue;
		tallies[i].newest = period_start(longest[i], ts) - (longest[i] == PERIOD_TOTAL ? 0 : 1);
		if (!scopes[list->subjects[i].scope].indexed)
			continue;
		tally_one(&list->subjects[i], ts, longest[i], &tallies[i]);
		left[i] = -1;
	}
	while (tally_others_once(list, ts, left, tallies))
		;
	query_end(&owner);
}

/*
 * The calls that a permission has admitted in each window of its rate per hour
 * from "first" on, the oldest first; returns how many windows have any.
 */
int
tally_rate(const char *agent_id, int64 permission_id, int64 first, RateTally **tallies)
{
	OwnerRights owner;
	Datum		values[] = {
		CStringGetTextDatum(agent_id),
		Int64GetDatum(permission_id),
		TimestampTzGetDatum(first * RATE_WINDOW),
	};
	int			count;

	query_begin(&owner);
	refuse_during_restore();
	count = (int) query_select(&tally_calls, values, NULL);
	*tallies = palloc(sizeof(RateTally) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		(*tallies)[i].window = first + query_int64(i, 1).value;
		(*tallies)[i].calls = query_int64(i, 2).value;
	}
	query_end(&owner);
	return count;
}
