/*-------------------------------------------------------------------------
 * guard.c
 *		What nobody may change: the rows of the ledger.
 *
 * The triggers are ENABLE ALWAYS, so that session_replication_role and
 * logical replication do not switch them off, and spare no one: a correction
 * is a new row.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "commands/trigger.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(kavach_refuse_change);

/* Trigger: refuses UPDATE, DELETE and TRUNCATE. */
Datum
kavach_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("kavach.refuse_change() must be called as a trigger")));
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the ledger is append-only"),
			 errdetail("Rows of \"%s\" are never changed or removed.",
					   RelationGetRelationName(trigger->tg_relation)),
			 errhint("Correct a bill with kavach_adjust().")));
}
