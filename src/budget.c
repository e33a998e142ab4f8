/*-------------------------------------------------------------------------
 * budget.c
 *		From policies and usage to a decision.
 *
 * A limit is about a subject's usage in a window.  All limits that bind a call
 * are looked at, so that a warning never hides a refusal; of those that
 * refuse, the severest action names the answer, then the narrowest scope, the
 * longest window, the policy_id.
 *
 * Whoever decides reads the limits again once he holds the scopes' locks, so
 * that a limit that committed meanwhile binds him (counter.c has the locks).
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "common/int.h"
#include "utils/builtins.h"

Subject
agent_subject(const Agent *agent)
{
	Subject		subject = {{agent->agent_id, agent->user_id, agent->tenant_id, NULL}};

	return subject;
}

const char *
refusal_result(PolicyAction action)
{
	return action == ACTION_THROTTLE ? "rate_limited" : "denied";
}

/* ---- reading ---- */

static int
limited_scopes(const Budget *budget)
{
	int			scopes_bound = 0;

	for (int i = 0; i < budget->nlimits; i++)
		scopes_bound |= SCOPE_BIT(budget->limits[i].scope);
	return scopes_bound;
}

/*
 * What counts against a limit: what a reset forgave does not, in the window
 * that was reset.  Without a reset a refund may bring it below 0.
 */
static int64
counted(const BudgetLimit *limit)
{
	int64		rest;

	if (!limit->baseline_applies)
		return limit->usage;
	if (pg_sub_s64_overflow(limit->usage, limit->baseline, &rest))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("bigint out of range")));
	return Max(rest, 0);
}

/* Fills in how the limits of one scope stand, with one look at its usage. */
static void
read_scope(Budget *budget, ScopeKind scope)
{
	Usage		usage[NUM_PERIODS];
	PeriodKind	longest = PERIOD_HOUR;

	for (int i = 0; i < budget->nlimits; i++)
		if (budget->limits[i].scope == scope)
			longest = Max(longest, budget->limits[i].period);

	counter_read(scope, budget->subject.ids[scope], budget->ts, longest, usage);
	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit	   *limit = &budget->limits[i];

		if (limit->scope != scope)
			continue;
		limit->baseline_applies = limit->has_baseline &&
			limit->baseline_start == period_start(limit->period, budget->ts);
		limit->usage = usage[limit->period].used[limit->measure];
		limit->used = counted(limit);
		limit->window_end = period_end(limit->period, budget->ts);
	}
}

static void
read_usage(Budget *budget)
{
	int			bound = limited_scopes(budget);

	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (bound & SCOPE_BIT(scope))
			read_scope(budget, scope);
}

/* The budget as of now, without a lock: advice, not a decision. */
void
budget_read(Budget *budget, const Subject *subject, TimestampTz ts)
{
	budget->subject = *subject;
	budget->ts = ts;
	budget->limits = catalog_limits(subject, &budget->nlimits);
	read_usage(budget);
}

/*
 * The budget, with the locks that keep it as it is until the transaction ends.
 * lock_agent: the agent's scope is locked too, for a rate per hour.
 */
void
budget_lock_and_read(Budget *budget, const Subject *subject, TimestampTz ts, bool lock_agent)
{
	int			agent = lock_agent ? SCOPE_BIT(SCOPE_AGENT) : 0;
	int			needed;

	budget->subject = *subject;
	budget->ts = ts;
	budget->limits = catalog_limits(subject, &budget->nlimits);
	needed = agent | limited_scopes(budget);
	for (;;)
	{
		int			locked = needed;

		counter_lock(subject, locked);
		budget->limits = catalog_limits(subject, &budget->nlimits);
		needed = agent | limited_scopes(budget);
		if ((needed & ~locked) == 0)
			break;
		counter_unlock(subject, locked);
	}
	read_usage(budget);
}

/* ---- deciding ---- */

/*
 * Whether the limit has room for "cost" more tokens (0: none asked for), or
 * for one more call.  Written so that nothing can overflow.
 */
static bool
has_room(const BudgetLimit *limit, int64 cost)
{
	int64		left;

	if (limit->measure == MEASURE_CALLS)
		cost = 1;
	if (cost == 0)
		return limit->used < limit->amount;
	return pg_sub_s64_overflow(limit->amount, limit->used, &left) || cost <= left;
}

/* What is left under a limit, never below 0. */
static int64
left_under(const BudgetLimit *limit)
{
	int64		left;

	if (pg_sub_s64_overflow(limit->amount, limit->used, &left))
		return PG_INT64_MAX;
	return Max(left, 0);
}

/* Whether a names an answer rather than b. */
static bool
precedes(const BudgetLimit *a, const BudgetLimit *b)
{
	int			order;

	if (b == NULL)
		return true;
	if (a->action != b->action)
		return a->action > b->action;
	if (a->scope != b->scope)
		return a->scope < b->scope;
	if (a->period != b->period)
		return a->period > b->period;
	order = strcmp(a->policy_id, b->policy_id);
	return order != 0 ? order < 0 : a->measure < b->measure;
}

/* Whether the limit can never hold the cost, however empty its window. */
static bool
exceeds_alone(const BudgetLimit *limit, int64 cost)
{
	if (limit->measure == MEASURE_CALLS || cost == 0)
		return limit->amount == 0;
	return cost > limit->amount;
}

static const char *
scope_phrase(const BudgetLimit *limit)
{
	return limit->scope == SCOPE_ALL ? "all agents" : psprintf("%s \"%s\"", scopes[limit->scope].name, limit->subject);
}

/* "policy pol_x: 4900 of 5000 tokens used this month by user "alice"" */
static char *
standing(const BudgetLimit *limit)
{
	return psprintf("policy %s: %lld of %lld %s used %s by %s",
					limit->policy_id, (long long) limit->used, (long long) limit->amount,
					limit->measure == MEASURE_TOKENS ? "tokens" : "calls",
					periods[limit->period].phrase, scope_phrase(limit));
}

/* What does not fit, and what to do about it. */
static char *
refusal_reason(const BudgetLimit *limit, int64 cost, TimestampTz retry_at)
{
	const char *excess;
	const char *next;

	if (limit->measure == MEASURE_CALLS)
		excess = "one more call does not fit";
	else if (cost == 0)
		excess = "nothing is left";
	else
		excess = psprintf("%lld more do not fit", (long long) cost);

	if (limit->action == ACTION_REVOKE)
		next = "the agent is revoked; kavach_restore_agent() restores it";
	else if (retry_at == DT_NOEND)
		next = "kavach_update_policy() raises the limit, kavach_reset_policy() forgives what is used";
	else
		next = psprintf("retry from %s on, or see kavach_update_policy() and kavach_reset_policy()",
						format_utc(retry_at));
	return psprintf("%s, %s; %s", standing(limit), excess, next);
}

static char *
admission_reason(const BudgetVerdict *verdict, OptionalInt64 cost)
{
	char	   *partly = NULL;

	if (verdict->granted.given && verdict->granted.value < cost.value)
		partly = psprintf("%lld of %lld tokens granted",
						  (long long) verdict->granted.value, (long long) cost.value);
	if (verdict->warning == NULL)
		return partly;
	return psprintf("%s%s%s, and this call passes the limit",
					partly ? partly : "", partly ? "; " : "", standing(verdict->warning));
}

/*
 * Decides.  cost: what is asked for; min_tokens: what would do, so that the
 * grant may be less.  Nothing is charged yet.
 */
BudgetVerdict
budget_check(Budget *budget, OptionalInt64 cost, OptionalInt64 min_tokens)
{
	BudgetVerdict verdict = {.granted = cost, .retry_at = DT_NOBEGIN};
	int64		need = min_tokens.given ? min_tokens.value : cost.value;

	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit	   *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN)
			continue;
		if (!has_room(limit, need))
		{
			if (precedes(limit, verdict.refusal))
				verdict.refusal = limit;
			verdict.retry_at = Max(verdict.retry_at,
								   exceeds_alone(limit, need) ? DT_NOEND : limit->window_end);
		}
		else if (min_tokens.given && limit->measure == MEASURE_TOKENS)
			verdict.granted.value = Min(verdict.granted.value, left_under(limit));
	}
	if (verdict.refusal != NULL)
	{
		verdict.reason = refusal_reason(verdict.refusal, need, verdict.retry_at);
		return verdict;
	}

	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit	   *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN && !has_room(limit, verdict.granted.value) &&
			precedes(limit, verdict.warning))
			verdict.warning = limit;
	}
	verdict.reason = admission_reason(&verdict, cost);
	return verdict;
}

/*
 * Counts a charge in, for the figures that the answer gives: the ledger row is
 * what charges.
 */
void
budget_charge(Budget *budget, int64 tokens, int64 calls)
{
	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit	   *limit = &budget->limits[i];

		if (pg_add_s64_overflow(limit->usage, limit->measure == MEASURE_TOKENS ? tokens : calls, &limit->usage))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("bigint out of range"),
					 errdetail("The usage of %s would pass what can be counted.", scope_phrase(limit))));
		limit->used = counted(limit);
	}
}

/* The limit that is used up, warnings included, or NULL. */
BudgetLimit *
budget_used_up(Budget *budget)
{
	BudgetLimit	   *result = NULL;

	for (int i = 0; i < budget->nlimits; i++)
		if (budget->limits[i].used >= budget->limits[i].amount && precedes(&budget->limits[i], result))
			result = &budget->limits[i];
	return result;
}

/* What is left under the tightest limit of a measure, warnings left out. */
OptionalInt64
budget_remaining(Budget *budget, MeasureKind measure)
{
	OptionalInt64 result = {0};

	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit	   *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN || limit->measure != measure)
			continue;
		result.value = result.given ? Min(result.value, left_under(limit)) : left_under(limit);
		result.given = true;
	}
	return result;
}
