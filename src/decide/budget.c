/*-------------------------------------------------------------------------
 * budget.c
 *		From policies and usage to a decision.
 *
 * A limit is about a subject's usage in a window.  All limits that bind a call
 * are looked at, so that a warning never hides a refusal; of those that
 * refuse, the severest action names the answer, then the narrowest scope, the
 * longest window, the policy_id.
 *
 * budget_read, budget_check and budget_used_up run under the counters' locks:
 * they only compute.  What people read is put into words afterwards.
 *-------------------------------------------------------------------------
 */
#include "decide/budget.h"

#include "common/int.h"
#include "utils/builtins.h"

#include "decide/words.h"
#include "memory/catalog.h"
#include "memory/charge.h"
#include "memory/peek.h"
#include "server/clock.h"

static void
add_subject(SubjectList *list, ScopeKind scope, const char *id)
{
	list->subjects[list->count].scope = scope;
	list->subjects[list->count].id = id;
	list->count++;
}

/* Whom a call of an agent charges. */
SubjectList
budget_subjects(const char *agent_id, const char *user_id, const char *tenant_id)
{
	SubjectList list = {0};

	add_subject(&list, SCOPE_AGENT, agent_id);
	if (user_id != NULL)
		add_subject(&list, SCOPE_USER, user_id);
	if (tenant_id != NULL)
		add_subject(&list, SCOPE_TENANT, tenant_id);
	add_subject(&list, SCOPE_ALL, NULL);
	return list;
}

/* Which of them a limit is about: there is one of each scope. */
static int
subject_of(const SubjectList *list, ScopeKind scope)
{
	for (int i = 0; i < list->count; i++)
		if (list->subjects[i].scope == scope)
			return i;
	elog(ERROR, "a limit is about a %s, of which the call has none", scopes[scope].name);
	return 0;					/* keep compiler quiet */
}

const char *
refusal_result(PolicyAction action)
{
	return action == ACTION_THROTTLE ? "rate_limited" : "denied";
}

/* ---- reading ---- */

/* A budget that binds a call, from its limits; how they stand is not known yet. */
void
budget_prepare(Budget *budget, const BudgetLimit *limits, int nlimits,
			   const SubjectList *subjects, TimestampTz ts)
{
	budget->subjects = *subjects;
	budget->ts = ts;
	budget->nlimits = nlimits;
	budget->limits = palloc(sizeof(BudgetLimit) * Max(nlimits, 1));
	memcpy(budget->limits, limits, sizeof(BudgetLimit) * nlimits);
	for (int i = 0; i < nlimits; i++)
	{
		BudgetLimit *limit = &budget->limits[i];

		limit->subject = subject_of(subjects, limit->scope);
		limit->window_end = period_end(limit->period, ts);
		limit->baseline_applies = limit->has_baseline &&
			limit->baseline_start == period_start(limit->period, ts);
	}
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
		return limit->usage > 0 ? PG_INT64_MAX : 0;
	return Max(rest, 0);
}

static void
stand(BudgetLimit *limit, const Usage *usage)
{
	limit->usage = usage->used[limit->measure];
	limit->pending = usage->pending[limit->measure];
	limit->used = counted(limit);
}

/* How the limits stand by the counters of the call, which are locked. */
void
budget_read(Budget *budget, const CounterSet *counters)
{
	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit *limit = &budget->limits[i];
		Usage		usage = charge_usage(counters, limit->subject, limit->period);

		stand(limit, &usage);
	}
}

/* How the limits stand as of now: advice, not a decision. */
void
budget_peek(Budget *budget)
{
	int			wanted[MAX_SUBJECTS] = {0};
	Usage		usage[MAX_SUBJECTS][NUM_PERIODS];

	for (int i = 0; i < budget->nlimits; i++)
		wanted[budget->limits[i].subject] |= PERIOD_BIT(budget->limits[i].period);
	peek_usage(&budget->subjects, budget->ts, wanted, usage);
	for (int i = 0; i < budget->nlimits; i++)
		stand(&budget->limits[i], &usage[budget->limits[i].subject][budget->limits[i].period]);
}

/* ---- deciding ---- */

/*
 * Whether the limit has room for "cost" more tokens (0: none asked for), or
 * for one more call, beside what is pending in other transactions or as if
 * that were not there.  Nothing can overflow: pending is never negative.
 */
static bool
has_room(const BudgetLimit *limit, int64 cost, bool beside_pending)
{
	int64		left;

	if (pg_sub_s64_overflow(limit->amount, limit->used, &left))
		return true;			/* used is far below 0 */
	if (beside_pending && pg_sub_s64_overflow(left, limit->pending, &left))
		return false;
	if (limit->measure == MEASURE_CALLS)
		cost = 1;
	return cost == 0 ? left > 0 : cost <= left;
}

/* What is left under a limit, never below 0. */
static int64
left_under(const BudgetLimit *limit)
{
	int64		left;

	if (pg_sub_s64_overflow(limit->amount, limit->used, &left))
		left = PG_INT64_MAX;
	if (pg_sub_s64_overflow(left, limit->pending, &left))
		left = 0;
	return Max(left, 0);
}

/* Of two limits with equal action, whether a names the answer rather than b. */
static bool
is_closer(const BudgetLimit *a, const BudgetLimit *b)
{
	int			order;

	if (b == NULL)
		return true;
	if (a->scope != b->scope)
		return a->scope < b->scope;
	if (a->period != b->period)
		return a->period > b->period;
	order = strcmp(a->policy_id, b->policy_id);
	return order != 0 ? order < 0 : a->measure < b->measure;
}

/* Whether a names the answer rather than b: the severest, then the closest. */
static bool
precedes(const BudgetLimit *a, const BudgetLimit *b)
{
	if (b == NULL || a->action != b->action)
		return b == NULL || a->action > b->action;
	return is_closer(a, b);
}

/* Whether the limit can never hold the cost, however empty its window. */
static bool
exceeds_alone(const BudgetLimit *limit, int64 cost)
{
	if (limit->measure == MEASURE_CALLS || cost == 0)
		return limit->amount == 0;
	return cost > limit->amount;
}

/*
 * Decides.  cost: what is asked for; min_tokens: what would do, so that the
 * grant may be less.  Nothing is charged yet.
 */
BudgetVerdict
budget_check(Budget *budget, OptionalInt64 cost, OptionalInt64 min_tokens)
{
	BudgetVerdict verdict = {
		.granted = cost,
		.retry_at = DT_NOBEGIN,
	};
	int64		need = min_tokens.given ? min_tokens.value : cost.value;

	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN)
			continue;
		if (!has_room(limit, need, false))
		{
			if (precedes(limit, verdict.refusal))
				verdict.refusal = limit;
			verdict.retry_at = Max(verdict.retry_at,
								   exceeds_alone(limit, need) ? DT_NOEND : limit->window_end);
		}
		else if (!has_room(limit, need, true))
		{
			if (is_closer(limit, verdict.pending))
				verdict.pending = limit;
		}
		else if (min_tokens.given && limit->measure == MEASURE_TOKENS)
			verdict.granted.value = Min(verdict.granted.value, left_under(limit));
	}
	if (verdict.refusal != NULL)
		verdict.pending = NULL;
	else if (verdict.pending != NULL)
		verdict.retry_at = budget->ts + USECS_PER_SEC;
	verdict.admitted = verdict.refusal == NULL && verdict.pending == NULL;

	for (int i = 0; i < budget->nlimits && verdict.admitted; i++)
	{
		BudgetLimit *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN && !has_room(limit, verdict.granted.value, true) &&
			is_closer(limit, verdict.warning))
			verdict.warning = limit;
	}
	return verdict;
}

/*
 * Counts a charge in, for the figures that the answer gives.
 */
void
budget_charge(Budget *budget, const Amounts amounts)
{
	for (int i = 0; i < budget->nlimits; i++)
	{
		BudgetLimit *limit = &budget->limits[i];

		limit->usage += amounts[limit->measure];
		limit->used = counted(limit);
	}
}

/* The limit that is used up, warnings included, or NULL. */
BudgetLimit *
budget_used_up(Budget *budget)
{
	BudgetLimit *result = NULL;

	for (int i = 0; i < budget->nlimits; i++)
		if (!has_room(&budget->limits[i], budget->limits[i].measure == MEASURE_CALLS, true) &&
			precedes(&budget->limits[i], result))
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
		BudgetLimit *limit = &budget->limits[i];

		if (limit->action == ACTION_WARN || limit->measure != measure)
			continue;
		result.value = result.given ? Min(result.value, left_under(limit)) : left_under(limit);
		result.given = true;
	}
	return result;
}

/* ---- in words ---- */

/* "user "alice"", "all agents" */
static const char *
subject_in_words(const Budget *budget, const BudgetLimit *limit)
{
	const char *id = budget->subjects.subjects[limit->subject].id;

	return id ? psprintf("%s \"%s\"", scopes[limit->scope].name, id) : "all agents";
}

/* Of a limit of 0 there is nothing to be used up. */
static bool
allows_nothing(const BudgetLimit *limit)
{
	return limit->amount == 0 && limit->used >= 0;
}

static const char *
unit_of(const BudgetLimit *limit)
{
	if (limit->measure == MEASURE_TOKENS)
		return plural(limit->amount, "token", "tokens");
	return plural(limit->amount, "call", "calls");
}

/* "policy pol_x: 4900 of 5000 tokens used this month by user "alice"" */
static char *
standing(const Budget *budget, const BudgetLimit *limit)
{
	if (allows_nothing(limit))
		return psprintf("policy %s: the limit is 0 %s %s for %s",
						limit->policy_id, unit_of(limit), periods[limit->period].phrase,
						subject_in_words(budget, limit));
	return psprintf("policy %s: %lld of %lld %s used %s by %s",
					limit->policy_id, (long long) limit->used, (long long) limit->amount,
					unit_of(limit), periods[limit->period].phrase, subject_in_words(budget, limit));
}

/* ", 900 more do not fit" */
static const char *
excess(const BudgetLimit *limit, int64 cost)
{
	if (allows_nothing(limit))
		return "";
	if (limit->measure == MEASURE_CALLS)
		return ", one more call does not fit";
	if (cost == 0)
		return ", nothing is left";
	if (exceeds_alone(limit, cost))
		return psprintf(", %lld more never fit", (long long) cost);
	return psprintf(", %lld more %s not fit", (long long) cost, plural(cost, "does", "do"));
}

/* What does not fit, and what to do about it. */
static char *
refusal_reason(const Budget *budget, const BudgetVerdict *verdict, int64 cost, bool advice)
{
	const BudgetLimit *limit = verdict->refusal;
	const char *next;

	if (limit->action == ACTION_REVOKE)
		next = psprintf("%s; kavach_restore_agent() restores it",
						advice ? "such a call revokes the agent" : "the agent is revoked now");
	else if (exceeds_alone(limit, cost))
		next = "kavach_update_policy() raises the limit";
	else if (verdict->retry_at == DT_NOEND)
		next = "kavach_update_policy() raises the limit, kavach_reset_policy() forgives what is used";
	else
		next = psprintf("retry from %s on, or see kavach_update_policy() and kavach_reset_policy()",
						format_utc(verdict->retry_at));
	return psprintf("%s%s; %s", standing(budget, limit), excess(limit, cost), next);
}

static char *
admission_reason(const Budget *budget, const BudgetVerdict *verdict, OptionalInt64 cost)
{
	char	   *partly = NULL;

	if (verdict->granted.given && verdict->granted.value < cost.value)
		partly = psprintf("%lld of %lld tokens granted",
						  (long long) verdict->granted.value, (long long) cost.value);
	if (verdict->warning == NULL)
		return partly;
	return psprintf("%s%s%s, and this call passes the limit",
					partly ? partly : "", partly ? "; " : "", standing(budget, verdict->warning));
}

/*
 * A sentence for people on a verdict, before its charge is counted in; may be
 * NULL.  advice: whether the call is not made, but asked about.
 */
char *
budget_reason(const Budget *budget, const BudgetVerdict *verdict, OptionalInt64 cost, OptionalInt64 min_tokens,
			  bool advice)
{
	if (verdict->refusal != NULL)
		return refusal_reason(budget, verdict, min_tokens.given ? min_tokens.value : cost.value, advice);
	if (verdict->pending != NULL)
		return psprintf("%s, and %lld more %s pending in open transactions; retry in a second",
						standing(budget, verdict->pending), (long long) verdict->pending->pending,
						plural(verdict->pending->pending, "is", "are"));
	return admission_reason(budget, verdict, cost);
}
