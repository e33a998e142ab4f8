/*-------------------------------------------------------------------------
 * authorize.c
 *		kavach_authorize: decides, charges and records a call; and
 *		kavach_check_budget, which tells what it would decide.
 *
 * authorize() below is the pipeline; it stops at the first refusal, and
 * whatever the outcome, one ledger row says so.  A refusal is an answer, not
 * an error; bad input is an error and writes nothing.
 *
 * The caller's transaction owns the decision: where it rolls back, charge and
 * row go with it.
 *
 * advise() takes the same steps in the same order, but reads usage as advice:
 * it charges, writes and locks nothing, and revokes nobody.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

#include "decide/budget.h"
#include "decide/permission.h"
#include "decide/words.h"
#include "ledger/ledger.h"
#include "ledger/row.h"
#include "memory/catalog.h"
#include "memory/charge.h"
#include "memory/peek.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/errors.h"
#include "server/lock.h"

ENTRY_POINT(kavach_authorize, 9, 11);
ENTRY_POINT(kavach_check_budget, 7, 9);

/* What the caller asked. */
typedef struct Call
{
	const char *agent_id;
	const char *action;			/* NULL with resource: advice on agent and
								 * budgets alone */
	const char *resource;
	OptionalInt64 tokens_cost;
	Jsonb	   *arguments;
	inet	   *ip;
	const char *request_id;
	Jsonb	   *metadata;
	OptionalInt64 min_tokens;
	TimestampTz ts;
	bool		advice;			/* kavach_check_budget asks */
} Call;

/* What it is answered, in the order of the answer's columns. */
typedef struct Decision
{
	const char *result;			/* for the ledger; NULL until decided */
	const char *code;
	const char *reason;
	pg_uuid_t	audit_id;
	const char *policy_id;
	OptionalInt64 granted;		/* 0 when refused */
	OptionalInt64 tokens_remaining;
	OptionalInt64 calls_remaining;
	TimestampTz retry_at;		/* DT_NOEND for none */
	const char *policy_action;	/* of the policy that decided, or NULL */

	int64		permission_id;	/* for the ledger; 0 for none */
} Decision;

static SubjectList
subjects_of(const Agent *agent)
{
	return budget_subjects(agent->agent_id, agent->user_id, agent->tenant_id);
}

static bool
is_admitted(const Decision *decision)
{
	return strcmp(decision->result, "allowed") == 0;
}

static void
refuse(Decision *decision, const char *result, const char *code, const char *reason)
{
	decision->result = result;
	decision->code = code;
	decision->reason = clip_text(reason, MAX_REASON_BYTES);
	decision->granted.given = true;
	decision->granted.value = 0;
}

/* The status that a gateway in front of an HTTP service answers, by code and action. */
static int
http_status(const Decision *decision)
{
	if (is_admitted(decision))
		return 200;
	if (strcmp(decision->result, "rate_limited") == 0)
		return 429;
	if (strcmp(decision->code, "agent_not_found") == 0)
		return 401;
	if (decision->policy_action != NULL && strcmp(decision->policy_action, action_names[ACTION_BLOCK]) == 0)
		return 402;
	return 403;
}

/* ---- what is left ---- */

/* How many more calls the rates of the candidates admit together; not given where one has no rate. */
static OptionalInt64
rates_left(const PermissionVerdict *permission)
{
	OptionalInt64 left = {0};

	for (int i = 0; i < permission->ncandidates; i++)
	{
		const Candidate *candidate = &permission->candidates[i];

		left.given = candidate->max_calls_per_hour > 0;
		if (!left.given)
			break;
		left.value += candidate->left;
	}
	return left;
}

static OptionalInt64
least(OptionalInt64 a, OptionalInt64 b)
{
	if (!a.given || !b.given)
		return a.given ? a : b;
	return a.value <= b.value ? a : b;
}

static void
tell_remaining(Decision *decision, Budget *budget, const PermissionVerdict *permission)
{
	decision->tokens_remaining = budget_remaining(budget, MEASURE_TOKENS);
	decision->calls_remaining = least(budget_remaining(budget, MEASURE_CALLS), rates_left(permission));
}

/* ---- permission, and its rate per hour ---- */

static PermissionVerdict
check_permission(const Call *call, const Profile *profile)
{
	PermissionRequest request = {
		.action = call->action,
		.resource = call->resource,
		.arguments = call->arguments,
		.ip = call->ip,
		.ts = call->ts,
	};

	return permission_check(profile, &request);
}

/*
 * How a candidate's rate stands: what is left, and where nothing is, the first
 * mark of five minutes at which enough of its calls have left the hour.
 */
static void
set_room(Candidate *candidate, TimestampTz ts, const RateCalls calls)
{
	int64		sum = 0;
	TimestampTz mark = period_start(PERIOD_RATE, ts);	/* the current window */

	for (int i = 0; i < RATE_WINDOWS; i++)
		sum += calls[i];
	candidate->left = Max(candidate->max_calls_per_hour - sum, 0);
	candidate->room_at = DT_NOBEGIN;
	for (int i = 0; i < RATE_WINDOWS && sum >= candidate->max_calls_per_hour; i++)
	{
		sum -= calls[i];
		mark += RATE_WINDOW;
		candidate->room_at = mark;
	}
}

/* By the counters of the call, which are locked. */
static void
read_rates(const CounterSet *counters, PermissionVerdict *permission)
{
	for (int i = 0; i < permission->ncandidates; i++)
	{
		Candidate  *candidate = &permission->candidates[i];
		RateCalls	calls;

		candidate->room_at = DT_NOBEGIN;
		if (candidate->rate < 0)
			continue;
		charge_rate(counters, candidate->rate, calls);
		set_room(candidate, counters->ts, calls);
	}
}

/* As of now: advice, not a decision. */
static void
peek_rates(const Call *call, PermissionVerdict *permission)
{
	for (int i = 0; i < permission->ncandidates; i++)
	{
		Candidate  *candidate = &permission->candidates[i];
		RateCalls	calls;

		candidate->room_at = DT_NOBEGIN;
		if (candidate->max_calls_per_hour == 0)
			continue;
		peek_rate(call->agent_id, candidate->permission_id, call->ts, calls);
		set_room(candidate, call->ts, calls);
	}
}

/* The first candidate whose rate has room, or NULL. */
static Candidate *
first_with_room(const PermissionVerdict *permission)
{
	for (int i = 0; i < permission->ncandidates; i++)
		if (permission->candidates[i].room_at == DT_NOBEGIN)
			return &permission->candidates[i];
	return NULL;
}

/* ---- 1. the agent: known, active, not expired ---- */

static void
refuse_unknown(const char *agent_id, Decision *decision)
{
	refuse(decision, "denied", "agent_not_found",
		   psprintf("there is no such agent; to create it: SELECT kavach_create_agent(%s, user_id => '...')",
					quote_literal_cstr(agent_id)));
}

static bool
agent_passes(const Agent *agent, TimestampTz ts, Decision *decision)
{
	if (agent->revoked)
		refuse(decision, "denied", "agent_revoked",
			   psprintf("the agent is revoked%s%s; to restore it: SELECT kavach_restore_agent(%s)",
						agent->status_reason ? ": " : "",
						agent->status_reason ? clip_text(agent->status_reason, MAX_REASON_BYTES / 2) : "",
						quote_literal_cstr(agent->agent_id)));
	else if (agent->expires && ts >= agent->expires_at)
		refuse(decision, "denied", "agent_expired",
			   psprintf("the agent expired at %s; to extend it: SELECT kavach_update_agent(%s, '{\"expires_at\": null}')",
						format_utc(agent->expires_at), quote_literal_cstr(agent->agent_id)));
	return decision->result == NULL;
}

/* ---- 2. a retry: the first answer again ---- */

static bool
same_number(OptionalInt64 a, OptionalInt64 b)
{
	return a.given == b.given && (!a.given || a.value == b.value);
}

static bool
same_json(Jsonb *a, Jsonb *b)
{
	return (a == NULL || b == NULL) ? a == b : compareJsonbContainers(&a->root, &b->root) == 0;
}

static void
check_same_call(const Call *call, const LedgerRow *first)
{
	const char *other = NULL;

	if (!same_text(call->action, first->action))
		other = "action";
	else if (!same_text(call->resource, first->resource))
		other = "resource";
	else if (!same_number(call->tokens_cost, first->tokens_requested))
		other = "tokens_cost";
	else if (!same_json(call->arguments, first->arguments))
		other = "arguments";
	else if (!same_number(call->min_tokens, first->min_tokens))
		other = "min_tokens";
	if (other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_REQUEST_ID_REUSED),
				 errmsg("request_id \"%s\" was used for another call", call->request_id),
				 errdetail("The argument %s is not the same.", other),
				 errhint("A retry repeats the call as it was; a new call needs a new request_id.")));
}

static bool
is_retry(const Call *call, const Profile *profile, Decision *decision)
{
	LedgerRow  *first;
	Budget		budget;
	SubjectList subjects = subjects_of(&profile->agent);
	PermissionVerdict permission;

	if (call->request_id == NULL)
		return false;
	first = ledger_find_request(LEDGER_AUTHORIZE, call->agent_id, call->request_id, call->ts);
	if (first == NULL)
		return false;

	check_same_call(call, first);
	decision->result = first->result;
	decision->code = first->code;
	decision->reason = first->reason;
	decision->audit_id = first->id;
	decision->policy_id = first->policy_id;
	decision->policy_action = first->policy_id ? action_names[ACTION_WARN] : NULL;
	decision->granted = first->tokens_cost;
	budget_prepare(&budget, profile->limits, profile->nlimits, &subjects, call->ts);
	budget_peek(&budget);
	permission = check_permission(call, profile);
	peek_rates(call, &permission);
	tell_remaining(decision, &budget, &permission);
	return true;
}

/* ---- 3. permission ---- */

static bool
permission_passes(const Call *call, const Profile *profile, PermissionVerdict *verdict, Decision *decision)
{
	*verdict = check_permission(call, profile);
	if (verdict->ncandidates == 0)
	{
		refuse(decision, "denied", verdict->code, verdict->reason);
		decision->retry_at = verdict->opens_at;
	}
	return decision->result == NULL;
}

/* ---- 4. budget: the rate per hour, then the budgets ---- */

/* What was decided under the counters' locks, where nothing is put into words. */
typedef struct Charge
{
	Candidate  *taken;			/* NULL: every candidate's rate is used up */
	BudgetVerdict verdict;
	Amounts		amounts;		/* of a call that is admitted */
} Charge;

static void
open_counters(CounterSet *counters, const Call *call, const SubjectList *subjects, PermissionVerdict *permission)
{
	int64	   *rated = palloc(sizeof(int64) * permission->ncandidates);
	int			nrated = 0;

	for (int i = 0; i < permission->ncandidates; i++)
	{
		Candidate  *candidate = &permission->candidates[i];

		candidate->rate = candidate->max_calls_per_hour > 0 ? nrated : -1;
		if (candidate->rate >= 0)
			rated[nrated++] = candidate->permission_id;
	}
	charge_open(counters, subjects, call->ts, call->ts, rated, nrated);
}

/* Checks rate and budgets, then charges them, all or none. */
static Charge
charge_counters(const Call *call, CounterSet *counters, PermissionVerdict *permission, Budget *budget)
{
	Charge		charge = {0};
	bool		taken = true;

	read_rates(counters, permission);
	charge.taken = first_with_room(permission);
	if (charge.taken != NULL)
	{
		budget_read(budget, counters);
		charge.verdict = budget_check(budget, call->tokens_cost, call->min_tokens);
		charge.amounts[MEASURE_TOKENS] = charge.verdict.granted.value;
		charge.amounts[MEASURE_CALLS] = 1;
		if (charge.verdict.admitted)
			taken = charge_add(counters, charge.amounts, charge.taken->rate);
	}
	charge_close(counters);
	if (!taken)
		charge_refuse_overflow();
	return charge;
}

static void
refuse_rate(const PermissionVerdict *permission, Decision *decision)
{
	const Candidate *soonest = &permission->candidates[0];

	for (int i = 1; i < permission->ncandidates; i++)
		if (permission->candidates[i].room_at < soonest->room_at)
			soonest = &permission->candidates[i];
	decision->retry_at = Min(soonest->room_at, permission->opens_at);
	decision->calls_remaining = rates_left(permission);
	refuse(decision, "rate_limited", "rate_limited",
		   psprintf("permission %lld allows %lld %s per hour, and %s used up; retry from %s on",
					(long long) soonest->permission_id,
					(long long) soonest->max_calls_per_hour,
					plural(soonest->max_calls_per_hour, "call", "calls"),
					plural(soonest->max_calls_per_hour, "it is", "they are"),
					format_utc(decision->retry_at)));
}

/* Puts a budget's verdict into the answer. */
static void
apply_verdict(const Call *call, const Budget *budget, const BudgetVerdict *verdict, Decision *decision)
{
	char	   *reason = budget_reason(budget, verdict, call->tokens_cost, call->min_tokens, call->advice);
	const BudgetLimit *decisive = verdict->warning;

	if (verdict->refusal != NULL)
	{
		decisive = verdict->refusal;
		refuse(decision, refusal_result(decisive->action), "budget_exceeded", reason);
		decision->retry_at = verdict->retry_at;
	}
	else if (verdict->pending != NULL)
	{
		decisive = verdict->pending;
		refuse(decision, "rate_limited", "budget_pending", reason);
		decision->retry_at = verdict->retry_at;
	}
	else
	{
		decision->result = "allowed";
		decision->code = decisive ? "budget_warning" : "allowed";
		decision->reason = reason ? clip_text(reason, MAX_REASON_BYTES) : NULL;
		decision->granted = verdict->granted;
	}
	decision->policy_id = decisive ? decisive->policy_id : NULL;
	decision->policy_action = decisive ? action_names[decisive->action] : NULL;
}

static void
decide_by_budget(const Call *call, const Profile *profile, PermissionVerdict *permission, Decision *decision)
{
	SubjectList subjects = subjects_of(&profile->agent);
	Budget		budget;
	CounterSet	counters;
	Charge		charge;

	budget_prepare(&budget, profile->limits, profile->nlimits, &subjects, call->ts);
	open_counters(&counters, call, &subjects, permission);
	charge = charge_counters(call, &counters, permission, &budget);
	if (charge.taken == NULL)
	{
		refuse_rate(permission, decision);
		return;
	}

	apply_verdict(call, &budget, &charge.verdict, decision);
	if (charge.verdict.admitted)
	{
		decision->permission_id = charge.taken->permission_id;
		charge.taken->left--;
		budget_charge(&budget, charge.amounts);
	}
	else if (charge.verdict.refusal != NULL && charge.verdict.refusal->action == ACTION_REVOKE)
		catalog_revoke_agent(call->agent_id,
							 psprintf("policy %s", charge.verdict.refusal->policy_id), call->ts);
	tell_remaining(decision, &budget, permission);
}

/* What decide_by_budget would decide, without locks and charges. */
static void
advise_by_budget(const Call *call, const Profile *profile, PermissionVerdict *permission, Decision *decision)
{
	SubjectList subjects = subjects_of(&profile->agent);
	Budget		budget;
	BudgetVerdict verdict;

	peek_rates(call, permission);
	if (permission->ncandidates > 0 && first_with_room(permission) == NULL)
	{
		refuse_rate(permission, decision);
		return;
	}

	budget_prepare(&budget, profile->limits, profile->nlimits, &subjects, call->ts);
	budget_peek(&budget);
	verdict = budget_check(&budget, call->tokens_cost, call->min_tokens);
	apply_verdict(call, &budget, &verdict, decision);
	tell_remaining(decision, &budget, permission);
}

/* ---- 5. the ledger ---- */

static void
write_ledger(const Call *call, const Agent *agent, Decision *decision)
{
	LedgerRow	row = {
		.ts = call->ts,
		.kind = LEDGER_AUTHORIZE,
		.agent_id = call->agent_id,
		.user_id = agent ? agent->user_id : NULL,
		.tenant_id = agent ? agent->tenant_id : NULL,
		.action = call->action,
		.resource = call->resource,
		.arguments = call->arguments,
		.ip = call->ip,
		.result = decision->result,
		.code = decision->code,
		.reason = decision->reason,
		.permission_id = decision->permission_id,
		.policy_id = decision->policy_id,
		.tokens_requested = call->tokens_cost,
		.min_tokens = call->min_tokens,
		.tokens_cost = decision->granted,
		.request_id = call->request_id,
		.metadata = call->metadata,
	};

	ledger_append(&row);
	decision->audit_id = row.id;
}

/* ---- the pipeline ---- */

static Decision
authorize(const Call *call)
{
	Decision	decision = {.retry_at = DT_NOEND};
	const Profile *profile;
	PermissionVerdict permission;

	/* before anything is looked up, as it may wait */
	if (call->request_id != NULL)
		ledger_lock_request(call->agent_id, call->request_id, call->ts);
	profile = catalog_profile(call->agent_id);

	if (profile == NULL)
		refuse_unknown(call->agent_id, &decision);
	else if (agent_passes(&profile->agent, call->ts, &decision))
	{
		if (is_retry(call, profile, &decision))
			return decision;
		if (permission_passes(call, profile, &permission, &decision))
			decide_by_budget(call, profile, &permission, &decision);
	}
	write_ledger(call, profile ? &profile->agent : NULL, &decision);
	return decision;
}

static void
check_min_tokens(const Call *call)
{
	if (call->min_tokens.given &&
		(!call->tokens_cost.given || call->min_tokens.value < 1 || call->min_tokens.value > call->tokens_cost.value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_tokens must be from 1 to tokens_cost"),
				 errhint("tokens_cost is what the call would like, min_tokens what it can do with.")));
}

static Call
read_call(FunctionCallInfo fcinfo)
{
	Call		call = {
		.agent_id = required_id_arg(fcinfo, 0, "agent_id"),
		.action = required_id_arg(fcinfo, 1, "action"),
		.resource = required_text_arg(fcinfo, 2, "resource", MAX_RESOURCE_BYTES),
		.tokens_cost = count_arg(fcinfo, 3, "tokens_cost"),
		.arguments = object_arg(fcinfo, 4, "arguments"),
		.ip = PG_ARGISNULL(5) ? NULL : PG_GETARG_INET_P(5),
		.request_id = optional_id_arg(fcinfo, 6, "request_id"),
		.metadata = object_arg(fcinfo, 7, "metadata"),
		.min_tokens = count_arg(fcinfo, 8, "min_tokens"),
		.ts = clock_now(),
	};

	check_min_tokens(&call);
	return call;
}

/* SQL: kavach_authorize(...) */
static Datum
kavach_authorize_checked(PG_FUNCTION_ARGS)
{
	Call		call = read_call(fcinfo);
	TupleDesc	desc = answer_desc(fcinfo);
	Decision	decision;
	Datum		values[11];
	bool		nulls[11] = {false};

	PreventCommandIfReadOnly("kavach_authorize()");
	PreventCommandIfParallelMode("kavach_authorize()");
	counter_require();
	ledger_begin();

	decision = authorize(&call);
	lock_end_call();

	values[0] = BoolGetDatum(is_admitted(&decision));
	values[1] = CStringGetTextDatum(decision.code);
	values[2] = text_or_null(decision.reason, &nulls[2]);
	values[3] = UUIDPGetDatum(&decision.audit_id);
	values[4] = text_or_null(decision.policy_id, &nulls[4]);
	values[5] = number_or_null(decision.granted, &nulls[5]);
	values[6] = number_or_null(decision.tokens_remaining, &nulls[6]);
	values[7] = number_or_null(decision.calls_remaining, &nulls[7]);
	values[8] = TimestampTzGetDatum(decision.retry_at);
	nulls[8] = decision.retry_at == DT_NOEND;
	values[9] = text_or_null(decision.policy_action, &nulls[9]);
	values[10] = Int32GetDatum(http_status(&decision));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* What authorize would decide; without action and resource, of agent and budgets alone. */
static Decision
advise(const Call *call)
{
	Decision	decision = {.retry_at = DT_NOEND};
	const Profile *profile = catalog_profile(call->agent_id);
	PermissionVerdict permission = {0};

	if (profile == NULL)
		refuse_unknown(call->agent_id, &decision);
	else if (agent_passes(&profile->agent, call->ts, &decision) &&
			 (call->action == NULL || permission_passes(call, profile, &permission, &decision)))
		advise_by_budget(call, profile, &permission, &decision);
	return decision;
}

static Call
read_question(FunctionCallInfo fcinfo)
{
	Call		call = {
		.agent_id = required_id_arg(fcinfo, 0, "agent_id"),
		.tokens_cost = count_arg(fcinfo, 1, "tokens_cost"),
		.action = optional_id_arg(fcinfo, 2, "action"),
		.resource = PG_ARGISNULL(3) ? NULL : required_text_arg(fcinfo, 3, "resource", MAX_RESOURCE_BYTES),
		.arguments = object_arg(fcinfo, 4, "arguments"),
		.ip = PG_ARGISNULL(5) ? NULL : PG_GETARG_INET_P(5),
		.min_tokens = count_arg(fcinfo, 6, "min_tokens"),
		.ts = clock_now(),
		.advice = true,
	};

	check_min_tokens(&call);
	if ((call.action == NULL) != (call.resource == NULL) ||
		(call.action == NULL && (call.arguments != NULL || call.ip != NULL)))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be NULL", call.action == NULL ? "action" : "resource"),
				 errdetail("Permissions are looked at by action and resource; arguments and ip are for their constraints."),
				 errhint("Give both, or leave all four out to ask about the agent and its budgets alone.")));
	return call;
}

/* SQL: kavach_check_budget(...) */
static Datum
kavach_check_budget_checked(PG_FUNCTION_ARGS)
{
	Call		call = read_question(fcinfo);
	TupleDesc	desc = answer_desc(fcinfo);
	Decision	decision;
	Datum		values[9];
	bool		nulls[9] = {false};

	PreventCommandIfParallelMode("kavach_check_budget()");

	decision = advise(&call);

	values[0] = BoolGetDatum(is_admitted(&decision));
	values[1] = CStringGetTextDatum(decision.code);
	values[2] = text_or_null(decision.reason, &nulls[2]);
	values[3] = text_or_null(decision.policy_id, &nulls[3]);
	values[4] = number_or_null(decision.tokens_remaining, &nulls[4]);
	values[5] = number_or_null(decision.calls_remaining, &nulls[5]);
	values[6] = TimestampTzGetDatum(decision.retry_at);
	nulls[6] = decision.retry_at == DT_NOEND;
	values[7] = text_or_null(decision.policy_action, &nulls[7]);
	values[8] = Int32GetDatum(http_status(&decision));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
