/*-------------------------------------------------------------------------
 * permission.c
 *		Resource patterns, actions, and the constraints of a permission.
 *
 * What is stored was checked by kavach_check_permission when it was granted, and
 * is compiled when it is looked up (constraint.c).
 *
 * To add a constraint: what constraint.c asks for, and here a row in
 * constraint_rules, with how it is applied.
 *-------------------------------------------------------------------------
 */
#include "decide/permission.h"

#include "decide/words.h"
#include "memory/catalog.h"
#include "memory/constraint.h"
#include "server/argument.h"
#include "server/clock.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/builtins.h"

ENTRY_POINT(kavach_check_permission, 3, 0);

typedef struct ConstraintRule
{
	ConstraintKind kind;
	/* why it does not hold, or NULL where it does */
	char	   *(*refusal) (const Constraints *constraints, const PermissionRequest *request);
	/* when it holds again of itself; NULL where it never does */
	TimestampTz (*opens_at) (const Constraints *constraints, const PermissionRequest *request);
	const char *code;			/* when it does not hold */
} ConstraintRule;

static char *arguments_refusal(const Constraints *constraints, const PermissionRequest *request);
static char *time_refusal(const Constraints *constraints, const PermissionRequest *request);
static TimestampTz time_opens_at(const Constraints *constraints, const PermissionRequest *request);
static char *ip_refusal(const Constraints *constraints, const PermissionRequest *request);

/* In the order in which they are applied; a rate is for budget time. */
static const ConstraintRule constraint_rules[] = {
	{CONSTRAINT_ARGUMENTS, arguments_refusal, NULL, "argument_not_allowed"},
	{CONSTRAINT_TIME, time_refusal, time_opens_at, "outside_time_window"},
	{CONSTRAINT_IP, ip_refusal, NULL, "ip_not_allowed"},
};

#define MAX_LISTED	8

/* Strings as a reason shows them, the first few. */
static char *
listed(char **strings, int count)
{
	StringInfoData listed;

	initStringInfo(&listed);
	for (int i = 0; i < Min(count, MAX_LISTED); i++)
		appendStringInfo(&listed, "%s%s", i > 0 ? ", " : "", quote_text(strings[i]));
	if (count > MAX_LISTED)
		appendStringInfo(&listed, " and %d more", count - MAX_LISTED);
	return listed.data;
}

static char *
string_of(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* ---- allowed_arg_patterns ---- */

#define MAX_PATH_BYTES	200

static bool
matches_some_pattern(const JsonbValue *string, const Constraints *constraints)
{
	text	   *value = cstring_to_text_with_len(string->val.string.val, string->val.string.len);
	bool		matches = false;

	for (int i = 0; i < constraints->nglobs && !matches; i++)
	{
		CHECK_FOR_INTERRUPTS();
		matches = DatumGetBool(DirectFunctionCall2Coll(textlike, C_COLLATION_OID,
													   PointerGetDatum(value),
													   PointerGetDatum(constraints->patterns[i])));
	}
	pfree(value);
	return matches;
}

/* Where in the arguments a walk is: a step for each container that it is in. */
typedef struct Step
{
	struct Step *outer;
	JsonbValue	key;			/* in an object */
	int			index;			/* in an array, or -1 */
	bool		is_array;
} Step;

static Step *
step_in(Step *outer, bool is_array)
{
	Step	   *step = palloc(sizeof(Step));

	if (outer != NULL && outer->is_array)
		outer->index++;
	step->outer = outer;
	step->is_array = is_array;
	step->index = -1;
	return step;
}

static Step *
step_out(Step *step)
{
	Step	   *outer = step->outer;

	pfree(step);
	return outer;
}

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"

/* As a jsonpath has it: .to, ."reply-to", [3] */
static void
append_step(StringInfo path, const Step *step)
{
	char	   *key;

	if (step->is_array)
	{
		appendStringInfo(path, "[%d]", step->index);
		return;
	}
	key = string_of(&step->key);
	if (key[0] != '\0' && strchr(LETTERS, key[0]) != NULL && strspn(key, LETTERS "0123456789") == strlen(key))
		appendStringInfo(path, ".%s", clip_text(key, MAX_PATH_BYTES));
	else
		appendStringInfo(path, ".%s", quote_text(key));
}

/* "the argument $.mail.to[1] is "eve@evil.example"" */
static char *
argument_in_words(const Step *innermost, const JsonbValue *value)
{
	StringInfoData path;
	List	   *steps = NIL;
	ListCell   *cell;

	for (const Step *step = innermost; step != NULL; step = step->outer)
		steps = lcons(unconstify(Step *, step), steps);
	initStringInfo(&path);
	appendStringInfoChar(&path, '$');
	foreach(cell, steps)
		append_step(&path, lfirst(cell));
	return psprintf("the argument %s is %s", clip_text(path.data, MAX_PATH_BYTES), quote_text(string_of(value)));
}

/* The first string, however deep, that matches no pattern, in words; NULL where all match. */
static char *
find_stranger(Jsonb *arguments, const Constraints *constraints)
{
	JsonbIterator *iterator = JsonbIteratorInit(&arguments->root);
	JsonbValue	value;
	Step	   *step = step_in(NULL, false);

	JsonbIteratorNext(&iterator, &value, false);	/* the object's begin */
	while (step != NULL)
	{
		JsonbIteratorToken token = JsonbIteratorNext(&iterator, &value, false);

		if (token == WJB_KEY)
			step->key = value;
		else if (token == WJB_ELEM)
			step->index++;
		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvString &&
			!matches_some_pattern(&value, constraints))
			return argument_in_words(step, &value);

		if (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY)
			step = step_in(step, token == WJB_BEGIN_ARRAY);
		else if (token == WJB_END_OBJECT || token == WJB_END_ARRAY)
			step = step_out(step);
	}
	return NULL;
}

/* Every string in the arguments has to match a pattern. */
static char *
arguments_refusal(const Constraints *constraints, const PermissionRequest *request)
{
	char	   *stranger;

	if (request->arguments == NULL || JB_ROOT_COUNT(request->arguments) == 0)
		return psprintf("the call has no arguments, and allowed_arg_patterns (%s) asks for some",
						listed(constraints->globs, constraints->nglobs));
	stranger = find_stranger(request->arguments, constraints);
	if (stranger == NULL)
		return NULL;
	return psprintf("%s and matches none of allowed_arg_patterns (%s)",
					stranger, listed(constraints->globs, constraints->nglobs));
}

/* ---- time_window ---- */

/* From start on and before end; a window that ends before it starts crosses midnight. */
static bool
time_within(const Constraints *constraints, TimestampTz ts)
{
	TimeADT		opens = constraints->opens;
	TimeADT		closes = constraints->closes;
	TimeADT		now = ts - period_start(PERIOD_DAY, ts);

	return opens < closes ? (now >= opens && now < closes) : (now >= opens || now < closes);
}

/* The next start, today or tomorrow; days of UTC are all of the same length. */
static TimestampTz
time_opens_at(const Constraints *constraints, const PermissionRequest *request)
{
	TimestampTz opening = period_start(PERIOD_DAY, request->ts) + constraints->opens;

	return opening > request->ts ? opening : opening + USECS_PER_DAY;
}

static char *
time_refusal(const Constraints *constraints, const PermissionRequest *request)
{
	if (time_within(constraints, request->ts))
		return NULL;
	return psprintf("%s is outside of time_window (%s to %s UTC), which opens next at %s",
					format_utc(request->ts), constraints->opening, constraints->closing,
					format_utc(time_opens_at(constraints, request)));
}

/* ---- ip_allowlist ---- */

static bool
ip_listed(const Constraints *constraints, inet *ip)
{
	Datum		address = InetPGetDatum(plain_address(ip));

	for (int i = 0; i < constraints->nnetworks; i++)
		if (DatumGetBool(DirectFunctionCall2(network_subeq, address, InetPGetDatum(constraints->addresses[i]))))
			return true;
	return false;
}

static char *
ip_refusal(const Constraints *constraints, const PermissionRequest *request)
{
	if (request->ip == NULL)
		return psprintf("the call gives no ip, and ip_allowlist (%s) asks for one",
						listed(constraints->networks, constraints->nnetworks));
	if (ip_listed(constraints, request->ip))
		return NULL;
	return psprintf("the ip %s is in none of the networks of ip_allowlist (%s)",
					DatumGetCString(DirectFunctionCall1(inet_out, InetPGetDatum(request->ip))),
					listed(constraints->networks, constraints->nnetworks));
}

/* ---- patterns and actions ---- */

static bool
segment_is(const char *segment, int length, const char *text)
{
	return length == (int) strlen(text) && memcmp(segment, text, length) == 0;
}

/*
 * Segment by segment: * is one, whatever it holds; ** comes last (checked when
 * granted) and is all that is left, at least one; * alone is everything.
 */
static bool
resource_matches(const char *pattern, const char *resource)
{
	if (strcmp(pattern, "*") == 0)
		return true;
	for (;;)
	{
		int			plen = strcspn(pattern, ":");
		int			rlen = strcspn(resource, ":");

		if (segment_is(pattern, plen, "**"))
			return true;
		if (!segment_is(pattern, plen, "*") &&
			(plen != rlen || memcmp(pattern, resource, plen) != 0))
			return false;
		pattern += plen;
		resource += rlen;
		if (*pattern != *resource)
			return false;		/* one of them has ended */
		if (*pattern == '\0')
			return true;
		pattern++;
		resource++;
	}
}

static void
check_resource(const char *pattern)
{
	for (const char *segment = pattern;;)
	{
		int			length = strcspn(segment, ":");
		bool		last = segment[length] == '\0';

		if (memchr(segment, '*', length) != NULL &&
			!segment_is(segment, length, "*") &&
			!(last && segment_is(segment, length, "**")))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid resource pattern \"%s\"", pattern),
					 errdetail("A segment is literal or \"*\"; \"**\" can only be the last one."),
					 errhint("Write mcp:openai:* for one segment, or mcp:openai:** for any depth.")));
		if (last)
			return;
		segment += length + 1;
	}
}

static bool
action_listed(const Permission *permission, const char *action)
{
	if (permission->actions == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("actions must not contain NULL")));
	for (int i = 0; i < permission->nactions; i++)
		if (strcmp(permission->actions[i], "*") == 0 || strcmp(permission->actions[i], action) == 0)
			return true;
	return false;
}

static void
check_actions(ArrayType *actions)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(actions, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	if (count == 0 || ARR_NDIM(actions) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("actions must be a list of at least one action"),
				 errhint("Write ARRAY['execute'], or ARRAY['*'] for any action.")));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("actions must not contain NULL")));
		check_id(TextDatumGetCString(elements[i]), "action");
	}
}

/* SQL: kavach.check_permission(resource, actions, constraints) */
static Datum
kavach_check_permission_checked(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"resource", "actions", "constraints"};

	for (int i = 0; i < (int) lengthof(names); i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be NULL", names[i])));
	check_resource(required_text_arg(fcinfo, 0, names[0], MAX_RESOURCE_BYTES));
	check_actions(PG_GETARG_ARRAYTYPE_P(1));
	constraint_check(object_arg(fcinfo, 2, names[2]));
	PG_RETURN_BOOL(true);
}

/* ---- the decision ---- */

/* What of a matching permission does not hold. */
typedef struct Failure
{
	const ConstraintRule *rule; /* of the first; NULL: all hold */
	char	   *reason;
	TimestampTz opens_at;		/* when all hold by time alone, or DT_NOEND */
} Failure;

static Failure
find_failure(const Constraints *constraints, const PermissionRequest *request)
{
	Failure		failure = {.opens_at = DT_NOBEGIN};

	if (constraints == NULL)
		return failure;
	for (int i = 0; i < (int) lengthof(constraint_rules) && failure.opens_at != DT_NOEND; i++)
	{
		const ConstraintRule *rule = &constraint_rules[i];
		char	   *reason = NULL;

		if (constraint_read(constraints, rule->kind))
			reason = rule->refusal(constraints, request);
		if (reason == NULL)
			continue;
		if (failure.rule == NULL)
		{
			failure.rule = rule;
			failure.reason = reason;
		}
		failure.opens_at = rule->opens_at ? Max(failure.opens_at, rule->opens_at(constraints, request)) : DT_NOEND;
	}
	return failure;
}

static int64
max_calls_per_hour(const Constraints *constraints)
{
	return constraint_read(constraints, CONSTRAINT_RATE) ? constraints->max_calls_per_hour : 0;
}

static char *
denied_reason(const char *agent_id, const PermissionRequest *request, int npermissions)
{
	char	   *grant = psprintf("SELECT kavach_grant_permission(%s, %s, ARRAY[%s])",
								 quote_literal_cstr(agent_id),
								 quote_literal_cstr(request->resource),
								 quote_literal_cstr(request->action));

	if (npermissions == 0)
		return psprintf("the agent has no permission at all; to grant one: %s", grant);
	if (npermissions == 1)
		return psprintf("the agent's only permission does not allow this action on this resource; to allow it: %s",
						grant);
	return psprintf("none of the agent's %d permissions allows this action on this resource; to allow it: %s",
					npermissions, grant);
}

/*
 * The permissions that match and whose constraints hold, but for the rate per
 * hour, which is looked at when budgets are.  If none is left, the first
 * matching one says why.
 */
PermissionVerdict
permission_check(const Profile *profile, const PermissionRequest *request)
{
	PermissionVerdict verdict = {.opens_at = DT_NOEND};
	int			count = profile->npermissions;

	verdict.candidates = palloc(sizeof(Candidate) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		const Permission *permission = &profile->permissions[i];
		Failure		failure;

		if (!resource_matches(permission->resource, request->resource) ||
			!action_listed(permission, request->action))
			continue;
		failure = find_failure(permission->constraints, request);
		if (failure.rule == NULL)
		{
			Candidate  *candidate = &verdict.candidates[verdict.ncandidates++];

			candidate->permission_id = permission->permission_id;
			candidate->max_calls_per_hour = max_calls_per_hour(permission->constraints);
			continue;
		}
		verdict.opens_at = Min(verdict.opens_at, failure.opens_at);
		if (verdict.code == NULL)
		{
			verdict.code = failure.rule->code;
			verdict.reason = psprintf("permission %lld: %s",
									  (long long) permission->permission_id, failure.reason);
		}
	}
	if (verdict.ncandidates == 0 && verdict.code == NULL)
	{
		verdict.code = "permission_denied";
		verdict.reason = denied_reason(profile->agent.agent_id, request, count);
	}
	return verdict;
}
