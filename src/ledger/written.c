/*-------------------------------------------------------------------------
 * written.c
 *		What this transaction has written into the ledger.
 *
 * Whether it has, for the end of the transaction to know; and each row, for the
 * server's log, where kavach.log_rolled_back asks for those that are lost to a
 * rollback.
 *-------------------------------------------------------------------------
 */
#include "ledger/written.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "ledger/row.h"

/* A row that the log is told about if it is rolled back. */
typedef struct WrittenRow
{
	slist_node	node;			/* in written_rows, newest first */
	int			level;
	char	   *text;
} WrittenRow;

static bool log_rolled_back = false;

static bool wrote = false;
static slist_head written_rows = SLIST_STATIC_INIT(written_rows);

void
written_define_settings(void)
{
	DefineCustomBoolVariable("kavach.log_rolled_back",
							 "Writes ledger rows that are rolled back into the server log.",
							 NULL,
							 &log_rolled_back,
							 false,
							 PGC_SUSET,
							 0,
							 NULL, NULL, NULL);
}

void
written_note(const LedgerRow *row)
{
	MemoryContext context;
	WrittenRow *written;

	wrote = true;
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

bool
written_any(void)
{
	return wrote;
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

void
written_end_subtransaction(bool commit, int level)
{
	if (commit)
		pass_rows_up(level);
	else
		log_lost_rows(level);
}

void
written_end_transaction(bool commit)
{
	if (!commit)
		log_lost_rows(0);
	wrote = false;
	slist_init(&written_rows);
}
