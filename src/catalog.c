/*-------------------------------------------------------------------------
 * catalog.c
 *		Agents, permissions and policies, looked up.
 *
 * Every lookup reads the latest snapshot, so that a change that has committed
 * anywhere is obeyed by the next call, also in a transaction already open.
 * Callers are between query_begin and query_end.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

static Statement find_agent = {
	.sql = "SELECT user_id, tenant_id, status = 'revoked', status_reason, expires_at"
	"  FROM kavach.agent WHERE agent_id = $1",
	.nargs = 1,
	.argtypes = {TEXTOID},
};

static Statement find_permissions = {
	.sql = "SELECT permission_id, resource, actions, constraints"
	"  FROM kavach.permission WHERE agent_id = $1 ORDER BY permission_id",
	.nargs = 1,
	.argtypes = {TEXTOID},
};

/* $1 agent, $2 user, $3 tenant: by scope, so that an index finds them */
static Statement find_limits = {
	.sql = "SELECT p.policy_id, p.scope, p.each, p.action, l.measure, l.period, l.amount,"
	"       b.period_start, b.usage"
	"  FROM (VALUES ('agent', $1), ('user', $2), ('tenant', $3), ('all', NULL)) AS s (scope, subject)"
	"  JOIN kavach.budget_policy p ON p.scope = s.scope"
	"   AND (p.subject = s.subject OR (p.subject IS NULL AND (s.subject IS NOT NULL OR s.scope = 'all')))"
	"  JOIN kavach.budget_limit l ON l.policy_id = p.policy_id"
	"  LEFT JOIN kavach.budget_baseline b"
	"    ON (b.policy_id, b.measure, b.period) = (l.policy_id, l.measure, l.period)"
	"   AND b.subject IS NOT DISTINCT FROM s.subject"
	" WHERE p.enabled",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TEXTOID},
};

static Statement revoke_agent = {
	.sql = "UPDATE kavach.agent SET status = 'revoked', status_reason = $2, status_changed_at = $3"
	" WHERE agent_id = $1 AND status <> 'revoked'",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, TIMESTAMPTZOID},
};

/* The agent, or NULL when there is none of that id. */
Agent *
catalog_agent(const char *agent_id)
{
	Datum		values[] = {CStringGetTextDatum(agent_id)};
	Agent	   *agent;
	Datum		expires_at;
	bool		isnull;

	if (query_select(&find_agent, values, NULL) == 0)
		return NULL;
	agent = palloc0(sizeof(Agent));
	agent->agent_id = pstrdup(agent_id);
	agent->user_id = query_text(0, 1);
	agent->tenant_id = query_text(0, 2);
	agent->revoked = DatumGetBool(query_datum(0, 3, &isnull));
	agent->status_reason = query_text(0, 4);
	expires_at = query_datum(0, 5, &isnull);
	agent->expires = !isnull;
	agent->expires_at = DatumGetTimestampTz(expires_at);
	return agent;
}

/* The permissions of an agent, in the order in which they are tried. */
Permission *
catalog_permissions(const char *agent_id, int *count)
{
	Datum		values[] = {CStringGetTextDatum(agent_id)};
	Permission *permissions;
	bool		isnull;

	*count = (int) query_select(&find_permissions, values, NULL);
	permissions = palloc(sizeof(Permission) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		permissions[i].permission_id = DatumGetInt64(query_datum(i, 1, &isnull));
		permissions[i].resource = query_text(i, 2);
		permissions[i].actions = DatumGetArrayTypeP(query_datum(i, 3, &isnull));
		permissions[i].constraints = DatumGetJsonbP(query_datum(i, 4, &isnull));
	}
	return permissions;
}

/* The index of a name that a CHECK constraint admits. */
static int
kind_of(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	elog(ERROR, "unrecognized kind \"%s\" in a budget policy", name);
	return 0;					/* keep compiler quiet */
}

/* Whether an "each" limit yields to one that names the subject. */
static bool
yields(const BudgetLimit *limit, const BudgetLimit *limits, int count)
{
	if (!limit->each)
		return false;
	for (int i = 0; i < count; i++)
		if (!limits[i].each &&
			limits[i].scope == limit->scope &&
			limits[i].measure == limit->measure &&
			limits[i].period == limit->period &&
			(limits[i].action == ACTION_WARN) == (limit->action == ACTION_WARN))
			return true;
	return false;
}

/*
 * The limits of enabled policies that bind the subject, without those that
 * yield.  used and window_end are left to budget.c.
 */
BudgetLimit *
catalog_limits(const Subject *subject, int *count)
{
	static const char *const actions[] = {"warn", "throttle", "block", "revoke"};
	static const char *const measures[] = {"tokens", "calls"};
	Datum		values[3];
	char		nulls[3];
	BudgetLimit	   *found;
	int			nfound,
				kept = 0;
	BudgetLimit	   *result;
	bool		isnull;

	for (int i = 0; i < 3; i++)
	{
		values[i] = text_or_null(subject->ids[i], &isnull);
		nulls[i] = isnull ? 'n' : ' ';
	}
	nfound = (int) query_select(&find_limits, values, nulls);
	found = palloc0(sizeof(BudgetLimit) * Max(nfound, 1));
	for (int i = 0; i < nfound; i++)
	{
		BudgetLimit	   *limit = &found[i];

		limit->policy_id = query_text(i, 1);
		limit->scope = scope_named(query_text(i, 2));
		limit->subject = subject->ids[limit->scope];
		limit->each = DatumGetBool(query_datum(i, 3, &isnull));
		limit->action = kind_of(query_text(i, 4), actions, lengthof(actions));
		limit->measure = kind_of(query_text(i, 5), measures, lengthof(measures));
		limit->period = period_named(query_text(i, 6));
		limit->amount = query_int64(i, 7).value;
		limit->baseline_start = DatumGetTimestampTz(query_datum(i, 8, &isnull));
		limit->has_baseline = !isnull;
		limit->baseline = query_int64(i, 9).value;
	}

	result = palloc(sizeof(BudgetLimit) * Max(nfound, 1));
	for (int i = 0; i < nfound; i++)
		if (!yields(&found[i], found, nfound))
			result[kept++] = found[i];
	*count = kept;
	return result;
}

/*
 * Revokes an agent for a budget.  Two refusals at once wait for each other
 * here, and the second finds nothing left to do.
 */
void
catalog_revoke_agent(const char *agent_id, const char *reason, TimestampTz ts)
{
	Datum		values[] = {CStringGetTextDatum(agent_id), CStringGetTextDatum(reason), TimestampTzGetDatum(ts)};

	lock_until_end(LOCK_REVOKE, agent_id, true);
	query_execute(&revoke_agent, values, NULL);
}
