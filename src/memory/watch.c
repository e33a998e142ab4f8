/*-------------------------------------------------------------------------
 * watch.c
 *		The triggers that note what is changed about agents and policies.
 *
 * They are ENABLE ALWAYS; BEFORE each row, so that a statement's own changes are
 * noted when they can be seen, and as logical replication fires no others; and
 * on TRUNCATE.  What is noted, and what comes of it, is in change.c: another
 * source of changes would call that as these do.
 *
 * An agent and its permissions are about that agent, a policy is about its
 * subject, or about everybody, a baseline about its own.  A limit is about
 * whom its policy is about.  That policy is locked: were it given to another
 * subject meanwhile, the limit would go with it, and nobody would note for whom.
 * Where it cannot be seen (it is there later, or gone already) the limit may be
 * about anybody.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "memory/change.h"
#include "server/argument.h"
#include "server/query.h"

ENTRY_POINT(kavach_note_change, 0, 0);

static Statement lock_policy = {
	.sql = "SELECT scope, subject FROM kavach.budget_policy WHERE policy_id = $1 FOR SHARE",
	.nargs = 1,
	.argtypes = {TEXTOID},
};

static bool
has_column(TupleDesc desc, const char *name)
{
	return SPI_fnumber(desc, name) > 0;
}

/* A column's value, or NULL. */
static char *
text_of(HeapTuple tuple, TupleDesc desc, const char *name)
{
	int			column = SPI_fnumber(desc, name);
	bool		isnull;
	Datum		value;

	if (column <= 0 || SPI_gettypeid(desc, column) != TEXTOID)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.note_change() must be called for a table with a column %s of type text", name)));
	value = SPI_getbinval(tuple, desc, column, &isnull);
	return isnull ? NULL : TextDatumGetCString(value);
}

static void
note_agent(HeapTuple tuple, TupleDesc desc)
{
	char	   *agent_id = text_of(tuple, desc, "agent_id");

	if (agent_id != NULL)
		change_note(SCOPE_AGENT, agent_id);
}

/* Of a policy: everybody, where it names nobody. */
static void
note_subject(const char *scope, const char *subject)
{
	if (subject == NULL)
		change_note(SCOPE_ALL, NULL);
	else
		change_note(scope_named(scope), subject);
}

static void
note_policy(HeapTuple tuple, TupleDesc desc)
{
	note_subject(text_of(tuple, desc, "scope"), text_of(tuple, desc, "subject"));
}

/* Whatever its policy's scope is. */
static void
note_baseline(HeapTuple tuple, TupleDesc desc)
{
	char	   *subject = text_of(tuple, desc, "subject");

	if (subject == NULL)
		change_note(SCOPE_ALL, NULL);
	else
		for (ScopeKind scope = SCOPE_AGENT; scope < SCOPE_ALL; scope++)
			change_note(scope, subject);
}

static void
note_limit(HeapTuple tuple, TupleDesc desc)
{
	char	   *policy_id = text_of(tuple, desc, "policy_id");
	OwnerRights owner;
	Datum		values[] = {policy_id ? CStringGetTextDatum(policy_id) : (Datum) 0};

	if (policy_id == NULL)
		return;
	query_begin(&owner);
	query_avoid_scans();
	if (query_execute(&lock_policy, values, NULL) == 0)
		change_note_everything();
	else
		note_subject(query_text(0, 1), query_text(0, 2));
	query_end(&owner);
}

/* What is to be noted of a row, by what the table is about and has. */
static void
note_row(const char *what, HeapTuple tuple, TupleDesc desc)
{
	if (strcmp(what, "agent") == 0)
		note_agent(tuple, desc);
	else if (has_column(desc, "scope"))
		note_policy(tuple, desc);
	else if (has_column(desc, "subject"))
		note_baseline(tuple, desc);
	else
		note_limit(tuple, desc);
}

/*
 * Trigger: notes a change of an agent or its permissions (argument 'agent') or
 * of a policy, its limits or baselines (argument 'policy').
 */
static Datum
kavach_note_change_checked(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	const char *what;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.note_change() must be called as a trigger with one argument")));
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		change_note_everything();
		return PointerGetDatum(NULL);
	}

	desc = RelationGetDescr(trigger->tg_relation);
	what = trigger->tg_trigger->tgargs[0];
	note_row(what, trigger->tg_trigtuple, desc);
	if (!TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		return PointerGetDatum(trigger->tg_trigtuple);
	note_row(what, trigger->tg_newtuple, desc);
	return PointerGetDatum(trigger->tg_newtuple);
}
