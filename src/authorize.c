/*-------------------------------------------------------------------------
 * authorize.c
 *		kavach_authorize: decides, charges and records a call.
 *
 * authorize() below is the pipeline; it stops at the first refusal, and
 * whatever the outcome, one ledger row says so.  A refusal is an answer, not
 * an error; bad input is an error and writes nothing.
 *
 * The caller's transaction owns the decision: where it rolls back, charge and
 * row go with it.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

ENTRY_POINT(kavach_authorize, 9, 9);
ENTRY_POINT(kavach_check_budget, 2, 7);

/* What the caller asked. */
typedef struct Call
{
	const char *agent_id;
	const char *action;
	const char *resource;
	OptionalInt64 tokens_cost;
	Jsonb	   *arguments;
	inet	   *ip;
	const char *request_id;
	Jsonb	   *metadata;
	OptionalInt64 min_tokens;
	TimestampTz ts;
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

	int64		permission_id;	/* for the ledger; 0 for none */
} Decision;

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
	decision->reason = reason;
	decision->granted.given = true;
	decision->granted.value = 0;
}

static void
tell_remaining(Decision *decision, Budget *budget)
{
	decision->tokens_remaining = budget_remaining(budget, MEASURE_TOKENS);
	decision->calls_remaining = budget_remaining(budget, MEASURE_CALLS);
}

/* ---- 1. the agent: known, active, not expired ---- */

static bool
agent_passes(const char *agent_id, const Agent *agent, TimestampTz ts, Decision *decision)
{
	if (agent == NULL)
		refuse(decision, "denied", "agent_not_found",
			   psprintf("there is no such agent; to create it: SELECT kavach_create_agent(%s, user_id => '...')",
						quote_literal_cstr(agent_id)));
	else if (agent->revoked)
		refuse(decision, "denied", "agent_revoked",
			   psprintf("the agent is revoked%s%s; to restore it: SELECT kavach_restore_agent(%s)",
						agent->status_reason ? ": " : "",
						agent->status_reason ? agent->status_reason : "",
						quote_literal_cstr(agent_id)));
	else if (agent->expires && ts >= agent->expires_at)
		refuse(decision, "denied", "agent_expired",
			   psprintf("the agent expired at %s; to extend it: SELECT kavach_update_agent(%s, '{\"expires_at\": null}')",
						format_utc(agent->expires_at), quote_literal_cstr(agent_id)));
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
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("request_id \"%s\" was used for another call", call->request_id),
				 errdetail("The argument %s is not the same.", other),
				 errhint("A retry repeats the call as it was; a new call needs a new request_id.")));
}

static bool
is_retry(const Call *call, const Profile *profile, Decision *decision)
{
	LedgerRow  *first;
	Budget		budget;
	Subject		subject = agent_subject(&profile->agent);

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
	decision->granted = first->tokens_cost;
	budget_prepare(&budget, profile->limits, profile->nlimits, &subject, call->ts);
	budget_peek(&budget);
	tell_remaining(decision, &budget);
	return true;
}

/* ---- 3. permission ---- */

static bool
permission_passes(const Call *call, const Profile *profile, PermissionVerdict *verdict, Decision *decision)
{
	PermissionRequest request = {
		.action = call->action,
		.resource = call->resource,
		.arguments = call->arguments,
		.ip = call->ip,
		.ts = call->ts,
	};

	*verdict = permission_check(profile, &request);
	if (verdict->ncandidates == 0)
		refuse(decision, "denied", verdict->code, verdict->reason);
	return decision->result == NULL;
}

/* ---- 4. budget: the rate per hour, then the budgets ---- */

/* What was decided under the counters' locks, where nothing is put into words. */
typedef struct Charge
{
	const Candidate *taken;		/* NULL: every candidate's rate is used up */
	const Candidate *soonest;	/* then the one that has room first */
	TimestampTz rate_retry_at;
	BudgetVerdict verdict;
} Charge;

static void
open_counters(CounterSet *counters, const Call *call, const Subject *subject, PermissionVerdict *permission)
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
	counter_open(counters, subject, call->ts, rated, nrated);
}

/*
 * When a candidate has room: now (DT_NOBEGIN), or at the first mark of five
 * minutes at which enough of its calls have left the hour.
 */
static TimestampTz
room_at(const CounterSet *counters, const Candidate *candidate)
{
	int64		calls[RATE_WINDOWS];
	int64		sum = 0;
	TimestampTz mark = period_start(PERIOD_RATE, counters->ts); /* the current window */

	if (candidate->rate < 0)
		return DT_NOBEGIN;
	counter_rate(counters, candidate->rate, calls);
	for (int i = 0; i < RATE_WINDOWS; i++)
		sum += calls[i];
	if (sum < candidate->max_calls_per_hour)
		return DT_NOBEGIN;
	for (int i = 0; i < RATE_WINDOWS && sum >= candidate->max_calls_per_hour; i++)
	{
		sum -= calls[i];
		mark += RATE_WINDOW;
	}
	return mark;
}

/* Takes the first candidate whose rate per hour has room. */
static void
take_candidate(const CounterSet *counters, const PermissionVerdict *permission, Charge *charge)
{
	charge->taken = NULL;
	charge->rate_retry_at = DT_NOEND;
	for (int i = 0; i < permission->ncandidates && charge->taken == NULL; i++)
	{
		TimestampTz room = room_at(counters, &permission->candidates[i]);

		if (room == DT_NOBEGIN)
			charge->taken = &permission->candidates[i];
		else if (room < charge->rate_retry_at)
		{
			charge->soonest = &permission->candidates[i];
			charge->rate_retry_at = room;
		}
	}
}

/* Checks rate and budgets, then charges them, all or none. */
static Charge
charge_counters(const Call *call, CounterSet *counters, const PermissionVerdict *permission, Budget *budget)
{
	Charge		charge = {0};
	bool		taken = true;

	take_candidate(counters, permission, &charge);
	if (charge.taken != NULL)
	{
		budget_read(budget, counters);
		charge.verdict = budget_check(budget, call->tokens_cost, call->min_tokens);
		if (charge.verdict.admitted)
			taken = counter_charge(counters, charge.verdict.granted.value, 1, charge.taken->rate);
	}
	counter_close(counters);
	if (!taken)
		counter_refuse_overflow();
	return charge;
}

static void
refuse_rate(const Charge *charge, Decision *decision)
{
	Assert(charge->soonest != NULL);	/* there was a candidate */
	decision->retry_at = charge->rate_retry_at;
	refuse(decision, "rate_limited", "rate_limited",
		   psprintf("permission %lld allows %lld calls per hour, and they are used up; retry from %s on",
					(long long) charge->soonest->permission_id,
					(long long) charge->soonest->max_calls_per_hour,
					format_utc(charge->rate_retry_at)));
}

/* Puts a budget's verdict into the answer. */
static void
apply_verdict(const Call *call, const Budget *budget, const BudgetVerdict *verdict, Decision *decision)
{
	char	   *reason = budget_reason(budget, verdict, call->tokens_cost, call->min_tokens);

	if (verdict->refusal != NULL)
	{
		refuse(decision, refusal_result(verdict->refusal->action), "budget_exceeded", reason);
		decision->policy_id = verdict->refusal->policy_id;
		decision->retry_at = verdict->retry_at;
	}
	else if (verdict->pending != NULL)
	{
		refuse(decision, "rate_limited", "budget_pending", reason);
		decision->policy_id = verdict->pending->policy_id;
		decision->retry_at = verdict->retry_at;
	}
	else
	{
		decision->result = "allowed";
		decision->code = verdict->warning ? "budget_warning" : "allowed";
		decision->reason = reason;
		decision->policy_id = verdict->warning ? verdict->warning->policy_id : NULL;
		decision->granted = verdict->granted;
	}
}

static void
decide_by_budget(const Call *call, const Profile *profile, PermissionVerdict *permission, Decision *decision)
{
	Subject		subject = agent_subject(&profile->agent);
	Budget		budget;
	CounterSet	counters;
	Charge		charge;

	budget_prepare(&budget, profile->limits, profile->nlimits, &subject, call->ts);
	open_counters(&counters, call, &subject, permission);
	charge = charge_counters(call, &counters, permission, &budget);
	if (charge.taken == NULL)
	{
		refuse_rate(&charge, decision);
		return;
	}

	apply_verdict(call, &budget, &charge.verdict, decision);
	if (charge.verdict.admitted)
	{
		decision->permission_id = charge.taken->permission_id;
		budget_charge(&budget, decision->granted.value, 1);
	}
	else if (charge.verdict.refusal != NULL && charge.verdict.refusal->action == ACTION_REVOKE)
		catalog_revoke_agent(call->agent_id,
							 psprintf("policy %s", charge.verdict.refusal->policy_id), call->ts);
	tell_remaining(decision, &budget);
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
	const Agent *agent;
	PermissionVerdict permission;

	/* before anything is looked up, as it may wait */
	if (call->request_id != NULL)
		ledger_lock_request(call->agent_id, call->request_id);
	profile = catalog_profile(call->agent_id);
	agent = profile ? &profile->agent : NULL;

	if (agent_passes(call->agent_id, agent, call->ts, &decision))
	{
		if (is_retry(call, profile, &decision))
			return decision;
		if (permission_passes(call, profile, &permission, &decision))
			decide_by_budget(call, profile, &permission, &decision);
	}
	write_ledger(call, agent, &decision);
	return decision;
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

	if (call.min_tokens.given &&
		(!call.tokens_cost.given || call.min_tokens.value < 1 || call.min_tokens.value > call.tokens_cost.value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_tokens must be from 1 to tokens_cost"),
				 errhint("tokens_cost is what the call would like, min_tokens what it can do with.")));
	return call;
}

/* SQL: kavach_authorize(...) */
static Datum
kavach_authorize_checked(PG_FUNCTION_ARGS)
{
	Call		call = read_call(fcinfo);
	TupleDesc	desc = answer_desc(fcinfo);
	Decision	decision;
	Datum		values[9];
	bool		nulls[9] = {false};

	PreventCommandIfReadOnly("kavach_authorize()");
	PreventCommandIfParallelMode("kavach_authorize()");
	counter_require();
	ledger_begin();

	decision = authorize(&call);

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
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* What authorize would say of agent and budgets, without locks and charges. */
static Decision
advise(const Call *call)
{
	Decision	decision = {.retry_at = DT_NOEND};
	const Profile *profile = catalog_profile(call->agent_id);

	if (agent_passes(call->agent_id, profile ? &profile->agent : NULL, call->ts, &decision))
	{
		Subject		subject = agent_subject(&profile->agent);
		Budget		budget;
		BudgetVerdict verdict;

		budget_prepare(&budget, profile->limits, profile->nlimits, &subject, call->ts);
		budget_peek(&budget);
		verdict = budget_check(&budget, call->tokens_cost, call->min_tokens);
		apply_verdict(call, &budget, &verdict, &decision);
		tell_remaining(&decision, &budget);
	}
	return decision;
}

/* SQL: kavach_check_budget(...) */
static Datum
kavach_check_budget_checked(PG_FUNCTION_ARGS)
{
	Call		call = {
		.agent_id = required_id_arg(fcinfo, 0, "agent_id"),
		.tokens_cost = count_arg(fcinfo, 1, "tokens_cost"),
		.ts = clock_now(),
	};
	TupleDesc	desc = answer_desc(fcinfo);
	Decision	decision;
	Datum		values[7];
	bool		nulls[7] = {false};

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
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
