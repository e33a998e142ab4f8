/*-------------------------------------------------------------------------
 * kavach.c
 *		Module entry point: defines the settings and wires the files together.
 *
 * The map.  Calls go down, from floor to floor, or aside:
 *
 *	transaction.c	what the end of a transaction does
 *
 *	decide/
 *	authorize.c		kavach_authorize and kavach_check_budget: the pipeline
 *	usage.c			kavach_record_usage and kavach_adjust: what was spent
 *	permission.c	resource patterns, actions, how constraints are applied
 *	budget.c		policies and usage to a decision
 *	words.c			how texts and numbers read in a reason
 *
 *	memory/
 *	charge.c		what a call charges to counters, and its transaction has charged
 *	peek.c			how usage stands, for advice
 *	load.c			reads usage that is not in memory from the ledger
 *	rate.c			the rate per hour of a permission
 *	counter.c		the table of counters: windows of subjects, eviction
 *	inspect.c		what operators see of them
 *	catalog.c		agents, permissions and policies, looked up
 *	constraint.c	the constraints of a permission, checked and compiled
 *	cache.c			what was looked up, once for all sessions
 *	flat.c			what is cached, as one stretch of bytes
 *	change.c		when what is cached is no longer good
 *	watch.c			the triggers that note it
 *
 *	ledger/
 *	tally.c			usage, summed up from the ledger: what counters are loaded from
 *	scan.c			the rows that count, by batch or by agent
 *	ledger.c		how rows are written and found; UUIDv7
 *	insert.c		the way of a row straight into its partition
 *	lookup.c		the way straight to a row, by a unique index of its month
 *	place.c			what is known of a partition: its columns and indexes
 *	months.c		has the partition of a month there when it is needed
 *	batch.c			which batch a row belongs to, and when it is closed
 *	rollup.c		folds closed batches into the rollups
 *	rounds.c		what the background worker of a database does
 *	worker.c		how it is started, and the one that makes a month's partition
 *	retention.c		who has months taken out of the ledger, and put back
 *	takeout.c		how a month is taken out of it
 *	takeback.c		how an archived one is put back
 *	dropped.c		months whose rows the ledger has no more
 *	partition.c		how partitions are found and made
 *	announce.c		makes new ones known to all sessions
 *	row.c			a row and its columns
 *	written.c		what this transaction has written
 *	guard.c			what nobody may change or remove
 *
 *	server/
 *	query.c			SQL with the owner's rights, in the latest snapshot
 *	find.c			rows of kavach's own tables, straight by their indexes
 *	index.c			what indexes are good for who goes straight to them
 *	straight.c		tables of kavach's own, opened for scans of an index
 *	lock.c			heavyweight locks of our own
 *	clock.c			the time, UTC windows
 *	argument.c		what callers hand in
 *	report.c		what a usage report is grouped by
 *	upgrade.c		what scripts of ALTER EXTENSION UPDATE need of C
 *	errors.h		SQLSTATEs of kavach's own
 *	compat.h		what differs between versions of PostgreSQL
 *
 *	vocabulary.c	what scopes, measures and actions are called
 *
 * Only memory/ and tally.c know how usage is counted, and only ledger.c and
 * insert.c how a row gets into the ledger.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "ledger/announce.h"
#include "ledger/batch.h"
#include "ledger/guard.h"
#include "ledger/ledger.h"
#include "ledger/retention.h"
#include "ledger/rounds.h"
#include "ledger/written.h"
#include "memory/cache.h"
#include "memory/change.h"
#include "memory/counter.h"
#include "server/clock.h"
#include "server/query.h"
#include "transaction.h"

PG_MODULE_MAGIC;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

void		_PG_init(void);

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(add_size(counter_shmem_size(),
									add_size(change_shmem_size(), announce_shmem_size())));
	RequestAddinShmemSpace(add_size(cache_shmem_size(), batch_shmem_size()));
	counter_request_locks();
	cache_request_locks();
	batch_request_locks();
}

static void
startup_shmem(void)
{
	if (previous_shmem_startup)
		previous_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	counter_shmem_startup();
	change_shmem_startup();
	cache_shmem_startup();
	announce_shmem_startup();
	batch_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
	if (!IsUnderPostmaster)
		counter_warn_if_small();
}

/*
 * Without preload there is no shared memory: reports, exports and restores
 * work, and whoever needs the counters says what is missing.
 */
void
_PG_init(void)
{
	clock_define_settings();
	ledger_define_settings();
	rounds_define_settings();
	retention_define_settings();
	written_define_settings();
	transaction_define_settings();
	guard_install();
	query_before_each(announce_refresh);
	if (process_shared_preload_libraries_in_progress)
	{
		counter_define_settings();
		cache_define_settings();
		rounds_install();
		previous_shmem_request = shmem_request_hook;
		shmem_request_hook = request_shmem;
		previous_shmem_startup = shmem_startup_hook;
		shmem_startup_hook = startup_shmem;
	}
	MarkGUCPrefixReserved("kavach");
}
