/*-------------------------------------------------------------------------
 * vocabulary.c
 *		What scopes, measures and actions are called in tables and answers.
 *
 * Windows are in clock.c, with what bounds them.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "server/argument.h"

const ScopeInfo scopes[NUM_COUNTED_SCOPES] = {
	[SCOPE_AGENT] = {"agent", "agent_id", true},
	[SCOPE_USER] = {"user", "user_id", false},
	[SCOPE_TENANT] = {"tenant", "tenant_id", false},
	[SCOPE_ALL] = {"all", NULL, false},
	[SCOPE_PERMISSION] = {"permission", NULL, false},
};

const char *const measure_names[NUM_MEASURES] = {
	[MEASURE_TOKENS] = "tokens",
	[MEASURE_CALLS] = "calls",
};

const char *const action_names[NUM_ACTIONS] = {
	[ACTION_WARN] = "warn",
	[ACTION_THROTTLE] = "throttle",
	[ACTION_BLOCK] = "block",
	[ACTION_REVOKE] = "revoke",
};

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

MeasureKind
measure_named(const char *name)
{
	return kind_of(name, measure_names, NUM_MEASURES);
}

PolicyAction
action_named(const char *name)
{
	return kind_of(name, action_names, NUM_ACTIONS);
}
