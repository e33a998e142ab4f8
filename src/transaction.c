/*-------------------------------------------------------------------------
 * transaction.c
 *		What the end of a transaction, or of a savepoint, does for kavach.
 *
 * Before the commit: a transaction that wrote the ledger, or changed agents or
 * policies (a crash must not undo a revocation), commits durably, whatever
 * synchronous_commit the session has; and none that kavach has a share in can
 * be prepared, as its charges live in this backend.  After it, or
 * after an abort: charges are settled (counter.c) and changed agents and
 * policies made known (catalog.c); nothing there can fail.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* A row that the log is told about if it is rolled back. */
typedef struct WrittenRow
{
	slist_node	node;			/* in written_rows, newest first */
	int			level;
	char	   *text;
} WrittenRow;

static bool force_sync_commit = true;
static bool log_rolled_back = false;

static bool wrote_ledger = false;
static slist_head written_rows = SLIST_STATIC_INIT(written_rows);

/* ---- noting what a transaction does ---- */

void
transaction_wrote_ledger(const LedgerRow *row)
{
	MemoryContext context;
	WrittenRow *written;

	wrote_ledger = true;
	if (!log_rolled_back)
		return;
	context = MemoryContextSwitchTo(TopTransactionContext);
	written = palloc(sizeof(WrittenRow));
	written->level = GetCurrentTransactionNestLevel();
	written->text = psprintf("%s of agent \"%s\": %s, %lld tokens",
							 DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&row->id))),
							 row->agent_id, row->code, (long long) row->tokens_cost.value);
	slist_push_head(&written_rows, &written->node);
	MemoryContextSwitchTo(context);
}

/* ---- the ends ---- */

static void
commit_durably(void)
{
	if ((wrote_ledger || catalog_has_changed()) &&
		force_sync_commit && synchronous_commit < SYNCHRONOUS_COMMIT_REMOTE_FLUSH)
		(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

static void
refuse_prepare(void)
{
	if (wrote_ledger || catalog_has_changed() || partition_has_attached())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has called kavach"),
				 errdetail("What it charges, or changes about agents, permissions, policies and months, takes effect when this session commits."),
				 errhint("Use COMMIT, or call kavach in a transaction of its own.")));
}

/* Tells the log of rows from a nest level on that are rolled back. */
static void
log_lost_rows(int level)
{
	while (!slist_is_empty(&written_rows))
	{
		WrittenRow *row = slist_head_element(WrittenRow, node, &written_rows);

		if (row->level < level)
			break;
		slist_pop_head_node(&written_rows);
		ereport(LOG, (errmsg("ledger row rolled back: %s", row->text)));
	}
}

/* The rows of a savepoint that ends belong to the level above; the newest are the deepest. */
static void
pass_rows_up(int level)
{
	slist_iter	iter;

	slist_foreach(iter, &written_rows)
	{
		WrittenRow *row = slist_container(WrittenRow, node, iter.cur);

		if (row->level < level)
			break;
		row->level = level - 1;
	}
}

static void
forget(void)
{
	wrote_ledger = false;
	slist_init(&written_rows);
}

static void
at_transaction_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			commit_durably();
			break;
		case XACT_EVENT_PRE_PREPARE:
			refuse_prepare();
			break;
		case XACT_EVENT_PREPARE:
			/* its calls were repeated ones; it keeps their locks */
			lock_end_transaction();
			break;
		case XACT_EVENT_COMMIT:
			partition_end_transaction(true);
			counter_end_transaction(true);
			catalog_end_transaction(true);
			lock_end_transaction();
			forget();
			break;
		case XACT_EVENT_ABORT:
			partition_end_transaction(false);
			counter_end_transaction(false);
			catalog_end_transaction(false);
			lock_end_transaction();
			log_lost_rows(0);
			forget();
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
			counter_end_subtransaction(true, level);
			pass_rows_up(level);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			counter_end_subtransaction(false, level);
			log_lost_rows(level);
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
	DefineCustomBoolVariable("kavach.log_rolled_back",
							 "Writes ledger rows that are rolled back into the server log.",
							 NULL,
							 &log_rolled_back,
							 false,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
	RegisterXactCallback(at_transaction_event, NULL);
	RegisterSubXactCallback(at_subtransaction_event, NULL);
}
