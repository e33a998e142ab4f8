/*-------------------------------------------------------------------------
 * transaction.c
 *		What the end of a transaction, or of a savepoint, does for kavach.
 *
 * Before the commit: a transaction that wrote the ledger, or changed agents or
 * policies (a crash must not undo a revocation), commits durably, whatever
 * synchronous_commit the session has; and none that kavach has a share in can
 * be prepared, as its charges live in this backend.  After it, or
 * after an abort: charges are settled (charge.c) and changed agents and
 * policies made known (change.c, which begins with that before the commit);
 * nothing there can fail.
 *-------------------------------------------------------------------------
 */
#include "transaction.h"

#include "access/xact.h"
#include "utils/guc.h"

#include "ledger/announce.h"
#include "ledger/written.h"
#include "memory/change.h"
#include "memory/charge.h"
#include "server/lock.h"

static bool force_sync_commit = true;

/* ---- the ends ---- */

static void
commit_durably(void)
{
	if ((written_any() || change_noted()) &&
		force_sync_commit && synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

static void
refuse_prepare(void)
{
	if (written_any() || change_noted() || announce_has_attached())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has called kavach"),
				 errdetail("What it charges, or changes about agents, permissions, policies and months, takes effect when this session commits."),
				 errhint("Use COMMIT, or call kavach in a transaction of its own.")));
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			commit_durably();
			change_before_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			refuse_prepare();
			break;
		case XACT_EVENT_PREPARE:
			/* its calls were repeated ones; it keeps their locks */
			lock_end_transaction();
			break;
		case XACT_EVENT_COMMIT:
			announce_end_transaction(true);
			charge_end_transaction(true);
			change_end_transaction(true);
			lock_end_transaction();
			written_end_transaction(true);
			break;
		case XACT_EVENT_ABORT:
			announce_end_transaction(false);
			charge_end_transaction(false);
			change_end_transaction(false);
			lock_end_transaction();
			written_end_transaction(false);
			break;
		default:
			break;
	}
}

static void
at_subtransaction_event(SubXactEvent event, SubTransactionId my_id, SubTransactionId parent_id, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	switch (event)
	{
		case SUBXACT_EVENT_COMMIT_SUB:
			charge_end_subtransaction(true, level);
			written_end_subtransaction(true, level);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			charge_end_subtransaction(false, level);
			written_end_subtransaction(false, level);
			break;
		default:
			break;
	}
}

void
transaction_define_settings(void)
{
	DefineCustomBoolVariable("kavach.force_sync_commit",
							 "Commits decisions, and changes of agents and policies, durably, whatever synchronous_commit says.",
							 "Off: a crash may lose decisions that were answered, and budgets with them, or a revocation.",
							 &force_sync_commit,
							 true,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_subtransaction_event, NULL);
}
