/*-------------------------------------------------------------------------
 * usage.c
 *		kavach_record_usage and kavach_adjust: what was spent, and corrections.
 *
 * Tokens that are spent are gone, so that usage is recorded past a limit, for a
 * revoked agent, and for one that has been dropped since it was authorized.
 *
 * A usage row that settles an authorization charges the difference to that
 * authorization's user and tenant, and is booked when it is recorded: closed
 * months never change.  For limits, what it adds counts in the windows of now,
 * and what it gives back in those of the authorization (ledger_charged_at), or
 * whatever is released after the turn of an hour would be room in the next.
 *
 * Whatever may wait comes first, so that what is looked up afterwards is what
 * holds when the row is written: an agent may change hands meanwhile.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

#include "decide/budget.h"
#include "ledger/ledger.h"
#include "ledger/row.h"
#include "memory/catalog.h"
#include "memory/charge.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/errors.h"
#include "server/lock.h"

ENTRY_POINT(kavach_record_usage, 5, 6);
ENTRY_POINT(kavach_adjust, 4, 0);

/* What the caller reports. */
typedef struct Report
{
	const char *agent_id;
	int64		tokens;
	pg_uuid_t  *audit_id;
	const char *request_id;
	Jsonb	   *metadata;
	TimestampTz ts;
} Report;

/* What it is answered. */
typedef struct Receipt
{
	pg_uuid_t	usage_id;
	int64		charged;
	const char *code;
	const char *policy_id;
	OptionalInt64 tokens_remaining;
	OptionalInt64 calls_remaining;
} Receipt;

static bool
same_id(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return a != NULL && b != NULL && memcmp(a->data, b->data, UUID_LEN) == 0;
}

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static void
require_agent(const char *agent_id, const Profile *profile)
{
	if (profile == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("agent \"%s\" does not exist", agent_id),
				 errhint("Create it with kavach_create_agent().")));
}

/* ---- what was recorded before ---- */

static void
check_same_report(const Report *report, const LedgerRow *first)
{
	if (first->tokens_requested.value != report->tokens)
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_USAGE_DIFFERS),
				 errmsg("usage was recorded before with another figure"),
				 errdetail("Recorded were %lld tokens, reported are %lld now.",
						   (long long) first->tokens_requested.value, (long long) report->tokens),
				 errhint("A retry repeats the call as it was; correct a bill with kavach_adjust().")));
}

/* What a request_id stands for: the usage row with it, or else the authorization. */
typedef struct Requested
{
	LedgerRow  *usage;
	LedgerRow  *authorization;
} Requested;

static Requested
find_requested(const Report *report)
{
	static const LedgerKind kinds[] = {LEDGER_USAGE, LEDGER_AUTHORIZE};
	LedgerRow  *rows[lengthof(kinds)] = {NULL};
	Requested	requested;

	if (report->request_id != NULL)
	{
		ledger_lock_request(report->agent_id, report->request_id, report->ts);
		ledger_find_requests(kinds, report->audit_id == NULL ? 2 : 1,
							 report->agent_id, report->request_id, report->ts, rows);
	}
	requested.usage = rows[0];
	requested.authorization = rows[1];
	return requested;
}

static void
check_repeated(const Report *report, const LedgerRow *first)
{
	check_same_report(report, first);
	if (report->audit_id != NULL && !same_id(report->audit_id, first->settles))
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_REQUEST_ID_REUSED),
				 errmsg("request_id \"%s\" does not belong to audit_id %s",
						report->request_id, id_text(report->audit_id)),
				 errhint("One of the two is enough.")));
}

/* ---- the authorization to settle ---- */

static void
check_authorization(const Report *report, const LedgerRow *authorization)
{
	if (authorization == NULL || authorization->kind != LEDGER_AUTHORIZE)
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_UNKNOWN_AUTHORIZATION),
				 errmsg("there is no authorization %s", id_text(report->audit_id)),
				 errhint("Pass the audit_id that kavach_authorize() answered.")));
	if (strcmp(authorization->agent_id, report->agent_id) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_UNKNOWN_AUTHORIZATION),
				 errmsg("authorization %s is another agent's", id_text(report->audit_id)),
				 errhint("Pass the agent_id that it was made with.")));
	if (strcmp(authorization->result, "allowed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_REFUSED_AUTHORIZATION),
				 errmsg("authorization %s was refused", id_text(report->audit_id)),
				 errdetail("Its code is %s.", authorization->code),
				 errhint("Record usage that had no authorization without audit_id.")));
	if (report->request_id != NULL &&
		(authorization->request_id == NULL || strcmp(authorization->request_id, report->request_id) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_KAVACH_REQUEST_ID_REUSED),
				 errmsg("request_id \"%s\" does not belong to audit_id %s",
						report->request_id, id_text(report->audit_id)),
				 errhint("One of the two is enough.")));
}

/*
 * The authorization that the report is about, locked against other
 * settlements; NULL for usage that had none.  requested: the one that was made
 * with its request_id, or NULL.
 */
static LedgerRow *
find_authorization(Report *report, LedgerRow *requested)
{
	LedgerRow  *authorization = requested;

	if (requested != NULL)
		report->audit_id = &requested->id;
	if (report->audit_id == NULL)
		return NULL;

	ledger_lock_authorization(report->audit_id, report->ts);
	if (authorization == NULL)
		authorization = ledger_find(report->audit_id);
	check_authorization(report, authorization);
	return authorization;
}

static void
warn_if_undecided(const LedgerRow *authorization)
{
	if (authorization->own)
		ereport(WARNING,
				(errmsg("usage is recorded in the transaction that made its authorization"),
				 errdetail("The model was called before the decision was committed: were the transaction rolled back, the call would be neither decided nor billed."),
				 errhint("Use autocommit, or commit between kavach_authorize() and the model call.")));
}

/* ---- charging ---- */

static void
tell_remaining(Receipt *receipt, Budget *budget)
{
	receipt->tokens_remaining = budget_remaining(budget, MEASURE_TOKENS);
	receipt->calls_remaining = budget_remaining(budget, MEASURE_CALLS);
}

/*
 * The budget of the owner that a row is charged to: mostly the agent's present
 * one, whose limits are at hand.  profile: NULL where the agent is gone.
 */
static void
prepare_budget(Budget *budget, const Profile *profile, const LedgerRow *row, TimestampTz ts)
{
	SubjectList subjects = budget_subjects(row->agent_id, row->user_id, row->tenant_id);

	if (profile != NULL &&
		same_text(row->user_id, profile->agent.user_id) && same_text(row->tenant_id, profile->agent.tenant_id))
		budget_prepare(budget, profile->limits, profile->nlimits, &subjects, ts);
	else
	{
		int			nlimits;
		BudgetLimit *limits = catalog_limits(&subjects, &nlimits);

		budget_prepare(budget, limits, nlimits, &subjects, ts);
	}
}

/* The first answer again, but for what remains now. */
static Receipt
repeat_receipt(const Profile *profile, const LedgerRow *first, TimestampTz ts)
{
	Receipt		receipt = {
		.usage_id = first->id,
		.charged = first->tokens_cost.value,
		.code = first->code,
		.policy_id = first->policy_id,
	};
	Budget		budget;

	prepare_budget(&budget, profile, first, ts);
	budget_peek(&budget);
	tell_remaining(&receipt, &budget);
	return receipt;
}

/* Charges a row to its agent, user and tenant, and writes it. */
static Receipt
charge_row(const Profile *profile, LedgerRow *row)
{
	Receipt		receipt = {.charged = row->tokens_cost.value};
	const Amounts amounts = {[MEASURE_TOKENS] = receipt.charged};
	Budget		budget;
	CounterSet	counters;
	bool		taken;
	BudgetLimit *used_up;

	prepare_budget(&budget, profile, row, row->ts);
	charge_open(&counters, &budget.subjects, row->ts, ledger_charged_at(row), NULL, 0);
	taken = charge_add(&counters, amounts, -1);
	budget_read(&budget, &counters);
	charge_close(&counters);
	if (!taken)
		charge_refuse_overflow();

	used_up = budget_used_up(&budget);
	receipt.code = used_up ? "over_budget" : "recorded";
	receipt.policy_id = used_up ? used_up->policy_id : NULL;
	tell_remaining(&receipt, &budget);

	row->result = "allowed";
	row->code = receipt.code;
	row->policy_id = receipt.policy_id;
	ledger_append(row);
	receipt.usage_id = row->id;
	return receipt;
}

/* ---- recording ---- */

static Receipt
settle(const Profile *profile, const Report *report, const LedgerRow *authorization)
{
	LedgerRow  *first = ledger_find_settlement(&authorization->id);
	int64		released = authorization->tokens_cost.value;	/* or 0 */
	LedgerRow	row = {
		.ts = report->ts,
		.kind = LEDGER_USAGE,
		.agent_id = authorization->agent_id,
		.user_id = authorization->user_id,
		.tenant_id = authorization->tenant_id,
		.action = authorization->action,
		.resource = authorization->resource,
		.tokens_requested = {true, report->tokens},
		.tokens_released = {true, released},
		.tokens_cost = {true, report->tokens - released},
		.settles = unconstify(pg_uuid_t *, &authorization->id),
		.request_id = report->request_id,
		.metadata = report->metadata,
	};

	if (first != NULL)
	{
		check_same_report(report, first);
		return repeat_receipt(profile, first, report->ts);
	}
	warn_if_undecided(authorization);
	return charge_row(profile, &row);
}

/* Usage that no authorization was asked for. */
static Receipt
record_alone(const Profile *profile, const Report *report)
{
	LedgerRow	row = {
		.ts = report->ts,
		.kind = LEDGER_USAGE,
		.agent_id = report->agent_id,
		.tokens_requested = {true, report->tokens},
		.tokens_cost = {true, report->tokens},
		.request_id = report->request_id,
		.metadata = report->metadata,
	};

	require_agent(report->agent_id, profile);
	row.user_id = profile->agent.user_id;
	row.tenant_id = profile->agent.tenant_id;
	return charge_row(profile, &row);
}

static Receipt
record(Report *report)
{
	Requested	requested = find_requested(report);
	LedgerRow  *authorization = NULL;
	const Profile *profile;

	if (requested.usage != NULL)
		check_repeated(report, requested.usage);
	else
		authorization = find_authorization(report, requested.authorization);

	profile = catalog_profile(report->agent_id);
	if (requested.usage != NULL)
		return repeat_receipt(profile, requested.usage, report->ts);
	if (authorization != NULL)
		return settle(profile, report, authorization);
	return record_alone(profile, report);
}

/* SQL: kavach_record_usage(...) */
static Datum
kavach_record_usage_checked(PG_FUNCTION_ARGS)
{
	Report		report = {
		.agent_id = required_id_arg(fcinfo, 0, "agent_id"),
		.tokens = required_count_arg(fcinfo, 1, "tokens_cost"),
		.audit_id = PG_ARGISNULL(2) ? NULL : PG_GETARG_UUID_P(2),
		.request_id = optional_id_arg(fcinfo, 3, "request_id"),
		.metadata = object_arg(fcinfo, 4, "metadata"),
		.ts = clock_now(),
	};
	TupleDesc	desc = answer_desc(fcinfo);
	Receipt		receipt;
	Datum		values[6];
	bool		nulls[6] = {false};

	PreventCommandIfReadOnly("kavach_record_usage()");
	PreventCommandIfParallelMode("kavach_record_usage()");
	counter_require();
	ledger_begin();

	receipt = record(&report);
	lock_end_call();

	values[0] = UUIDPGetDatum(&receipt.usage_id);
	values[1] = Int64GetDatum(receipt.charged);
	values[2] = CStringGetTextDatum(receipt.code);
	values[3] = text_or_null(receipt.policy_id, &nulls[3]);
	values[4] = number_or_null(receipt.tokens_remaining, &nulls[4]);
	values[5] = number_or_null(receipt.calls_remaining, &nulls[5]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* The id of the adjustment that this request_id stands for, or of a new one. */
static pg_uuid_t
adjust(LedgerRow *row)
{
	const Profile *profile;
	LedgerRow  *first = NULL;

	if (row->request_id != NULL)
	{
		ledger_lock_request(row->agent_id, row->request_id, row->ts);
		first = ledger_find_request(LEDGER_ADJUSTMENT, row->agent_id, row->request_id, row->ts);
	}
	if (first != NULL)
	{
		if (first->tokens_cost.value != row->tokens_cost.value || !same_text(first->reason, row->reason))
			ereport(ERROR,
					(errcode(ERRCODE_KAVACH_REQUEST_ID_REUSED),
					 errmsg("request_id \"%s\" was used for another adjustment", row->request_id),
					 errdetail("Recorded were %lld tokens, with the reason \"%s\".",
							   (long long) first->tokens_cost.value, first->reason),
					 errhint("A retry repeats the call as it was; a new adjustment needs a new request_id.")));
		return first->id;
	}

	profile = catalog_profile(row->agent_id);
	require_agent(row->agent_id, profile);
	row->user_id = profile->agent.user_id;
	row->tenant_id = profile->agent.tenant_id;
	return charge_row(profile, row).usage_id;
}

/* SQL: kavach_adjust(agent_id, tokens, reason, request_id) */
static Datum
kavach_adjust_checked(PG_FUNCTION_ARGS)
{
	int64		tokens = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	LedgerRow	row = {
		.ts = clock_now(),
		.kind = LEDGER_ADJUSTMENT,
		.agent_id = required_id_arg(fcinfo, 0, "agent_id"),
		.reason = required_text_arg(fcinfo, 2, "reason", MAX_RESOURCE_BYTES),
		.tokens_requested = {true, tokens},
		.tokens_cost = {true, tokens},
		.request_id = optional_id_arg(fcinfo, 3, "request_id"),
	};

	PreventCommandIfReadOnly("kavach_adjust()");
	PreventCommandIfParallelMode("kavach_adjust()");
	counter_require();
	ledger_begin();
	if (tokens == 0)
		ereport(ERROR,
				(errcode(PG_ARGISNULL(1) ? ERRCODE_NULL_VALUE_NOT_ALLOWED : ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tokens must not be NULL or 0"),
				 errhint("A charge is positive, a credit negative.")));
	check_tokens(tokens, "tokens");

	*id = adjust(&row);
	lock_end_call();
	PG_RETURN_UUID_P(id);
}
