/*-------------------------------------------------------------------------
 * kavach.c
 *		Module entry point: defines the settings and wires the files together.
 *
 * The map:
 *
 *	authorize.c		kavach_authorize and kavach_check_budget: the pipeline
 *	usage.c			kavach_record_usage and kavach_adjust: what was spent
 *	permission.c	resource patterns, actions, constraints
 *	budget.c		policies and usage to a decision
 *	counter.c		how usage is counted: locks, and sums over the ledger
 *	ledger.c		how rows are written and found; partitions, UUIDv7
 *	catalog.c		agents, permissions and policies, looked up
 *	guard.c			what nobody may change
 *	query.c			SQL with the owner's rights, in the latest snapshot
 *	lock.c			heavyweight locks of our own
 *	clock.c			the time, UTC windows
 *	argument.c		what callers hand in
 *	compat.h		what differs between versions of PostgreSQL
 *
 * Only counter.c knows how usage is counted, and only ledger.c how a row gets
 * into the ledger.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "utils/guc.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	clock_define_settings();
	ledger_define_settings();
	MarkGUCPrefixReserved("kavach");
}
