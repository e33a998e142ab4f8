/*-------------------------------------------------------------------------
 * rollup.c
 *		Folds closed batches into the rollups.
 *
 * One statement reads the rows of all batches that are closed together, once,
 * and adds what they come to: to usage_daily, usage_monthly and usage_total by ts,
 * as bills do; to usage_scope in the windows of limits (kavach.charged_at).  So the sums
 * are those of one snapshot, and of the same rows.
 *
 * What is not settled has no model yet.  So by model, a settling row counts what
 * was used under its own, and takes what it replaces (tokens_released) away
 * under NULL; all together that is its tokens_cost.
 *
 * Calls of unknown agents (they have no user) are added up under agent NULL, or
 * whoever makes names up would make rows here.
 *
 * Nothing in it is joined by rows: the plan is a generic one, and knows nothing of
 * how many there are: a few, or all that an installation has, the first time.  So
 * each window is added up from shorter ones: of each scope hours, or an agent's days
 * where its hours are old; of these, days; and of days all that is longer.
 *
 * kavach.open_authorization gets what the batches do not settle themselves, and
 * loses what they settle.  A settlement may be folded before its authorization,
 * whose batch another transaction holds up: that stays in the table, and
 * kavach.unsettled, which looks at each row of it, passes over it.
 *
 * An agent's hours are read for two days, and after that from its raw rows.  There
 * are as many as agents call: older ones are not put in, which are most of what an
 * upgrade brings, and the worker takes away what gets old (rollup_prune), going over
 * the agents by the primary key: three pages or so for each agent, and none for its
 * other rows.
 *-------------------------------------------------------------------------
 */
#include "ledger/rollup.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "server/clock.h"
#include "server/query.h"

/* Figures of usage_daily, usage_monthly and usage_total, and how they are added up from rows. */
#define FIGURES \
	"calls, denied, calls_without_cost, tokens_cost, tokens_input, tokens_output, tokens_cache_read, tokens_cache_write, cost"
#define SUM_OF_FIGURES \
	"sum(calls), sum(denied), sum(calls_without_cost), sum(tokens_cost), sum(tokens_input), sum(tokens_output)," \
	" sum(tokens_cache_read), sum(tokens_cache_write), sum(cost)"
#define ADD_FIGURES \
	" calls = u.calls + excluded.calls, denied = u.denied + excluded.denied," \
	" calls_without_cost = u.calls_without_cost + excluded.calls_without_cost," \
	" tokens_cost = u.tokens_cost + excluded.tokens_cost, tokens_input = u.tokens_input + excluded.tokens_input," \
	" tokens_output = u.tokens_output + excluded.tokens_output," \
	" tokens_cache_read = u.tokens_cache_read + excluded.tokens_cache_read," \
	" tokens_cache_write = u.tokens_cache_write + excluded.tokens_cache_write, cost = u.cost + excluded.cost"
#define KEY		"tenant_id, user_id, agent_id, provider, model"

/* %1$s: hour, %2$s: usage by scope and hour, %3$s: month, %4$s: day, %5$s: agent */
#define FOLD \
	"WITH r AS MATERIALIZED (" \
	"SELECT a.id, a.batch, a.ts, (a.ts AT TIME ZONE 'UTC')::date AS day, a.kind, a.result, a.agent_id, a.user_id, a.tenant_id, a.provider, a.model," \
	"       a.tokens_requested, a.tokens_cost, a.settles, a.tokens_input, a.tokens_output, a.tokens_cache_read, a.tokens_cache_write, a.cost," \
	"       CASE WHEN a.user_id IS NOT NULL THEN a.agent_id END AS known," \
	"       CASE WHEN a.settles IS NOT NULL AND coalesce(a.provider, a.model) IS NOT NULL THEN coalesce(a.tokens_released, 0) ELSE 0 END AS moved" \
	"  FROM kavach.audit_log a WHERE a.batch = ANY ($1))," \
	" part AS (" \
	"SELECT day, tenant_id, user_id, known AS agent_id, provider, model," \
	"       CASE WHEN kind = 'authorize' THEN 1 ELSE 0 END AS calls," \
	"       CASE WHEN kind = 'authorize' AND result <> 'allowed' THEN 1 ELSE 0 END AS denied," \
	"       CASE WHEN kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL THEN 1 ELSE 0 END AS calls_without_cost," \
	"       tokens_cost, moved, tokens_input, tokens_output, tokens_cache_read, tokens_cache_write, cost" \
	"  FROM r" \
	" UNION ALL " \
	"SELECT day, tenant_id, user_id, known, NULL, NULL, 0, 0, 0, 0, -moved, 0, 0, 0, 0, 0 FROM r WHERE moved <> 0)," \
	" by_day AS MATERIALIZED (" \
	"SELECT day, " KEY ", sum(calls), sum(denied), sum(calls_without_cost), coalesce(sum(tokens_cost), 0) + sum(moved)," \
	"       coalesce(sum(tokens_input), 0), coalesce(sum(tokens_output), 0), coalesce(sum(tokens_cache_read), 0)," \
	"       coalesce(sum(tokens_cache_write), 0), coalesce(sum(cost), 0)" \
	"  FROM part GROUP BY day, " KEY ")," \
	" daily AS (" \
	"INSERT INTO kavach.usage_daily AS u (day, " KEY ", " FIGURES ")" \
	" SELECT * FROM by_day ORDER BY agent_id, day" \
	" ON CONFLICT (agent_id, day, user_id, tenant_id, provider, model) DO UPDATE SET" ADD_FIGURES ")," \
	" monthly AS (" \
	"INSERT INTO kavach.usage_monthly AS u (month, " KEY ", " FIGURES ")" \
	" SELECT date_trunc('%3$s', day)::date, " KEY ", " SUM_OF_FIGURES \
	"   FROM by_day AS b (day, " KEY ", " FIGURES ") GROUP BY 1, " KEY " ORDER BY agent_id, 1" \
	" ON CONFLICT (agent_id, month, user_id, tenant_id, provider, model) DO UPDATE SET" ADD_FIGURES ")," \
	" total AS (" \
	"INSERT INTO kavach.usage_total AS u (day, " FIGURES ")" \
	" SELECT day, " SUM_OF_FIGURES " FROM by_day AS b (day, " KEY ", " FIGURES ") GROUP BY day ORDER BY day" \
	" ON CONFLICT (day) DO UPDATE SET" ADD_FIGURES ")," \
	" admitted AS MATERIALIZED (" \
	"SELECT agent_id, user_id, tenant_id, date_trunc('%1$s', kavach.charged_at(ts, tokens_cost, settles), 'UTC') AS at," \
	"       coalesce(sum(tokens_cost), 0) AS tokens, count(*) FILTER (WHERE kind = 'authorize') AS calls" \
	"  FROM r WHERE result = 'allowed' GROUP BY 1, 2, 3, 4)," \
	" hourly AS MATERIALIZED (%2$s)," \
	" daily_spent AS MATERIALIZED (" \
	"SELECT scope, subject, date_trunc('%4$s', at, 'UTC') AS at, sum(tokens) AS tokens, sum(calls) AS calls FROM hourly GROUP BY 1, 2, 3)," \
	" longer AS (" \
	"SELECT t.at, w.period, w.period_start FROM (SELECT DISTINCT at FROM daily_spent) t CROSS JOIN LATERAL kavach.windows(t.at) w" \
	" WHERE w.period <> '%1$s')," \
	" scoped AS (" \
	"INSERT INTO kavach.usage_scope AS u (scope, subject, period, start, tokens, calls)" \
	" SELECT scope, subject, '%1$s', at, tokens, calls FROM hourly WHERE scope <> '%5$s' OR at >= $2" \
	"  UNION ALL " \
	"SELECT d.scope, d.subject, l.period, l.period_start, sum(d.tokens), sum(d.calls)" \
	"  FROM daily_spent d JOIN longer l USING (at) GROUP BY 1, 2, 3, 4" \
	"  ORDER BY 1, 2, 3, 4" \
	" ON CONFLICT (scope, subject, period, start) DO UPDATE SET" \
	" tokens = u.tokens + excluded.tokens, calls = u.calls + excluded.calls)," \
	" closed AS (" \
	"INSERT INTO kavach.batch (batch, month, rows, calls, tokens_cost, first_ts, last_ts, closed_at, seal_no)" \
	" SELECT batch, date_trunc('%3$s', day)::date, count(*), count(*) FILTER (WHERE kind = 'authorize')," \
	"        coalesce(sum(tokens_cost), 0), min(ts), max(ts), clock_timestamp()," \
	"        (SELECT coalesce(max(seal_no), 0) FROM kavach.batch) + row_number() OVER (ORDER BY batch, date_trunc('%3$s', day))" \
	"   FROM r GROUP BY batch, date_trunc('%3$s', day))," \
	" settled AS (" \
	"DELETE FROM kavach.open_authorization WHERE id = ANY (ARRAY(SELECT settles FROM r WHERE settles IS NOT NULL)))," \
	" opened AS (" \
	"INSERT INTO kavach.open_authorization (id)" \
	" SELECT c.id FROM (SELECT id, true AS is_open FROM r WHERE kind = 'authorize' AND result = 'allowed' AND tokens_cost IS NOT NULL" \
	"                   UNION ALL SELECT settles, false FROM r WHERE settles IS NOT NULL) AS c" \
	"  GROUP BY c.id HAVING bool_and(c.is_open) ORDER BY c.id ON CONFLICT DO NOTHING)" \
	" SELECT count(*) FROM r"

static Statement fold_batches = {
	.nargs = 2,
	.argtypes = {INT8ARRAYOID, TIMESTAMPTZOID},
};

/* The window of an hour that began before may yet be asked for, by who has looked at the clock. */
#define KEPT_HOURS	(2 * USECS_PER_DAY + USECS_PER_HOUR)

/* What of a call is in the shortest window that is kept of a scope: an agent's hour, or else its day. */
static const char *
start_kept(int scope)
{
	if (scope != SCOPE_AGENT)
		return "at";
	return psprintf("CASE WHEN at >= $2 THEN at ELSE date_trunc('%s', at, 'UTC') END", periods[PERIOD_DAY].name);
}

static const char *
subject_of(int scope)
{
	return scopes[scope].column ? scopes[scope].column : "''::text";
}

/* What each scope's subjects have used, summed up before it is put into all windows. */
static char *
sums_by_scope(void)
{
	StringInfoData sums;

	initStringInfo(&sums);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		appendStringInfo(&sums, "%sSELECT '%s' AS scope, %s AS subject, %s AS at, sum(tokens) AS tokens, sum(calls) AS calls"
						 " FROM admitted WHERE %s IS NOT NULL GROUP BY 2, 3",
						 scope == 0 ? "" : " UNION ALL ", scopes[scope].name,
						 subject_of(scope), start_kept(scope), subject_of(scope));
	return sums.data;
}

/* Adds the rows of batches to the rollups; returns how many there are. */
int64
rollup_fold(const int64 *batches, int count)
{
	Datum	   *numbers = palloc_extended(sizeof(Datum) * count, MCXT_ALLOC_HUGE);
	Datum		values[2];

	if (fold_batches.sql == NULL)
		fold_batches.sql = MemoryContextStrdup(TopMemoryContext,
											   psprintf(FOLD, periods[0].name, sums_by_scope(), periods[PERIOD_MONTH].name,
														periods[PERIOD_DAY].name, scopes[SCOPE_AGENT].name));
	for (int i = 0; i < count; i++)
		numbers[i] = Int64GetDatum(batches[i]);
	values[0] = PointerGetDatum(construct_array(numbers, count, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp() - KEPT_HOURS);
	query_avoid_scans();
	query_expect_many();
	if (query_execute(&fold_batches, values, NULL) != 1)
		elog(ERROR, "could not fold batches of the ledger");
	return query_int64(0, 1).value;
}

/* ---- what is read no longer ---- */

static Statement prune_hours = {
	.sql = "WITH RECURSIVE s (subject, n) AS ("
	"(SELECT u.subject, 1 FROM kavach.usage_scope u WHERE u.scope = $1 AND u.subject > $2 ORDER BY u.subject LIMIT 1)"
	" UNION ALL "
	"SELECT (SELECT u.subject FROM kavach.usage_scope u WHERE u.scope = $1 AND u.subject > s.subject ORDER BY u.subject LIMIT 1), s.n + 1"
	"  FROM s WHERE s.subject IS NOT NULL AND s.n < $3),"
	" gone AS ("
	"DELETE FROM kavach.usage_scope WHERE ctid = ANY (ARRAY("
	"SELECT h.ctid FROM s CROSS JOIN LATERAL ("
	"SELECT u.ctid FROM kavach.usage_scope u"
	" WHERE u.scope = $1 AND u.subject = s.subject AND u.period = $4 AND u.start < $5 ORDER BY u.start) h)))"
	" SELECT max(s.subject) FROM s HAVING count(s.subject) = $3",
	.nargs = 5,
	.argtypes = {TEXTOID, TEXTOID, INT8OID, TEXTOID, TIMESTAMPTZOID},
};

/*
 * Deletes the hours of as many agents as "count", those after "after", that are
 * not read any more; returns who was the last of them, or NULL if there is no
 * other.
 */
char *
rollup_prune(const char *after, int count)
{
	OwnerRights owner;
	Datum		values[] = {
		CStringGetTextDatum(scopes[SCOPE_AGENT].name),
		CStringGetTextDatum(after),
		Int64GetDatum(count),
		CStringGetTextDatum(periods[PERIOD_HOUR].name),
		TimestampTzGetDatum(GetCurrentTimestamp() - KEPT_HOURS),
	};
	char	   *last = NULL;

	query_begin(&owner);
	query_avoid_scans();
	if (query_execute(&prune_hours, values, NULL) > 0)
		last = query_text(0, 1);
	query_end(&owner);
	return last;
}
