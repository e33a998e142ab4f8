/*-------------------------------------------------------------------------
 * vocabulary.c
 *		What scopes, measures, actions and results are called in tables and answers.
 *
 * SQL asks here, too, so that a name is written once.  Windows are in clock.c,
 * with what bounds them.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "server/argument.h"
#include "server/clock.h"

/* Those with ids come first: SQL hands in an id for each, in this order. */
#define NUM_IDS		SCOPE_ALL

ENTRY_POINT(kavach_scope_has_id, 1, 0);
ENTRY_POINT(kavach_of_scope, 1 + NUM_IDS, 0);
ENTRY_POINT(kavach_policy_scope, NUM_IDS + 2, 0);
ENTRY_POINT(kavach_limit_keys, 0, 3);

const ScopeInfo scopes[NUM_COUNTED_SCOPES] = {
	[SCOPE_AGENT] = {"agent", "agent_id", true},
	[SCOPE_USER] = {"user", "user_id", false},
	[SCOPE_TENANT] = {"tenant", "tenant_id", false},
	[SCOPE_ALL] = {"all", NULL, false},
	[SCOPE_PERMISSION] = {"permission", NULL, false},
};

const MeasureInfo measures[NUM_MEASURES] = {
	[MEASURE_TOKENS] = {"tokens", "tokens_cost"},
	[MEASURE_CALLS] = {"calls", "calls"},
};

const char *const action_names[NUM_ACTIONS] = {
	[ACTION_WARN] = "warn",
	[ACTION_THROTTLE] = "throttle",
	[ACTION_BLOCK] = "block",
	[ACTION_REVOKE] = "revoke",
};

const char *const result_names[NUM_RESULTS] = {"allowed", "denied", "rate_limited"};

ScopeKind
scope_named(const char *name)
{
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (strcmp(name, scopes[scope].name) == 0)
			return scope;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized scope \"%s\"", name)));
	return 0;					/* keep compiler quiet */
}

static int
unrecognized_kind(const char *name)
{
	elog(ERROR, "unrecognized kind \"%s\" in a budget policy", name);
	return 0;					/* keep compiler quiet */
}

/* Of a name that a CHECK constraint admits, as the next one. */
MeasureKind
measure_named(const char *name)
{
	for (int measure = 0; measure < NUM_MEASURES; measure++)
		if (strcmp(name, measures[measure].name) == 0)
			return measure;
	return unrecognized_kind(name);
}

PolicyAction
action_named(const char *name)
{
	for (int action = 0; action < NUM_ACTIONS; action++)
		if (strcmp(name, action_names[action]) == 0)
			return action;
	return unrecognized_kind(name);
}

/* ---- for SQL ---- */

/* The scope that the first argument names, or NUM_SCOPES: reports ask for each row. */
static int
scope_arg(FunctionCallInfo fcinfo)
{
	const text *name = PG_GETARG_TEXT_PP(0);
	Size		length = VARSIZE_ANY_EXHDR(name);
	int			scope = 0;

	while (scope < NUM_SCOPES &&
		   (strlen(scopes[scope].name) != length ||
			memcmp(scopes[scope].name, VARDATA_ANY(name), length) != 0))
		scope++;
	return scope;
}

/* SQL: kavach.scope_has_id(scope), which is not NULL; NULL where there is no such scope */
static Datum
kavach_scope_has_id_checked(PG_FUNCTION_ARGS)
{
	int			scope = scope_arg(fcinfo);

	if (scope == NUM_SCOPES)
		PG_RETURN_NULL();
	PG_RETURN_BOOL(scopes[scope].column != NULL);
}

/* SQL: kavach.of_scope(scope, agent_id, user_id, tenant_id) */
static Datum
kavach_of_scope_checked(PG_FUNCTION_ARGS)
{
	int			scope = PG_ARGISNULL(0) ? NUM_SCOPES : scope_arg(fcinfo);

	if (scope >= NUM_IDS || PG_ARGISNULL(1 + scope))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(PG_GETARG_DATUM(1 + scope));
}

/* "agent, user and tenant": the scopes with ids */
static char *
list_scopes(const char *quote, const char *conjunction)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int scope = 0; scope < NUM_IDS; scope++)
		appendStringInfo(&list, "%s%s%s%s",
						 scope == 0 ? "" : scope < NUM_IDS - 1 ? ", " : conjunction,
						 quote, scopes[scope].name, quote);
	return list.data;
}

static ScopeKind
each_named(const char *name)
{
	for (int scope = 0; scope < NUM_IDS; scope++)
		if (strcmp(name, scopes[scope].name) == 0)
			return scope;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized kind of subject \"%s\"", name),
			 errdetail("Valid values of each are %s.", list_scopes("", " and "))));
	return 0;					/* keep compiler quiet */
}

/* SQL: kavach.policy_scope(agent_id, user_id, tenant_id, each, all_agents) */
static Datum
kavach_policy_scope_checked(PG_FUNCTION_ARGS)
{
	bool		is_each = !PG_ARGISNULL(NUM_IDS);
	bool		is_all = !PG_ARGISNULL(NUM_IDS + 1) && PG_GETARG_BOOL(NUM_IDS + 1);
	int			given = is_each + is_all;
	ScopeKind	scope = SCOPE_ALL;

	for (int i = 0; i < NUM_IDS; i++)
	{
		if (PG_ARGISNULL(i))
			continue;
		scope = i;
		given++;
	}
	if (given != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a policy needs exactly one scope"),
				 errdetail("%d were given.", given),
				 errhint("Give one of agent_id, user_id, tenant_id, each (%s) or all_agents => true.",
						 list_scopes("'", " or "))));
	if (is_each)
		scope = each_named(text_to_cstring(PG_GETARG_TEXT_PP(NUM_IDS)));
	PG_RETURN_TEXT_P(cstring_to_text(scopes[scope].name));
}

/* SQL: kavach.limit_keys() */
static Datum
kavach_limit_keys_checked(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int measure = 0; measure < NUM_MEASURES; measure++)
		for (int period = 0; period < NUM_PERIODS; period++)
		{
			char	   *key = psprintf("max_%s_%s%s", measures[measure].argument,
									   periods[period].length == FOR_EVER ? "" : "per_",
									   periods[period].name);
			Datum		values[3] = {
				CStringGetTextDatum(key),
				CStringGetTextDatum(measures[measure].name),
				CStringGetTextDatum(periods[period].name),
			};
			bool		nulls[3] = {false};

			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		}
	return (Datum) 0;
}
