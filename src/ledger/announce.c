/*-------------------------------------------------------------------------
 * announce.c
 *		Makes the ledger's new partitions known to all sessions.
 *
 * ATTACH locks the parent in a way that hinders nobody, so that a backend may
 * take in the invalidation that it sends just while it makes its list of
 * partitions (in RelationBuildPartitionDesc, a syscache miss on a partition
 * opens pg_class), and then keeps a list without the new one: rows that are
 * committed stay out of sight until the parent's next invalidation.  (Tried, on
 * PostgreSQL 15, and seen under load at the first calls of a month.)  So a
 * counter in shared memory is advanced at the commit of each ATTACH, before
 * the usage counters are let go, and who finds it advanced makes list and plans
 * anew (announce_refresh).  For sessions that only run reports, the worker
 * invalidates the parent once more when it has committed, and the backend that
 * had it attached with its next row.
 *-------------------------------------------------------------------------
 */
#include "ledger/announce.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/shmem.h"
#include "utils/inval.h"
#include "utils/plancache.h"
#include "utils/relcache.h"

#include "server/query.h"

#define NUM_SLOTS	64
#define SLOT		(MyDatabaseId % NUM_SLOTS)

/* By slot of database. */
typedef struct AnnounceShared
{
	pg_atomic_uint64 generations[NUM_SLOTS];	/* of attached partitions */
} AnnounceShared;

static AnnounceShared *shared = NULL;
static uint64 seen_generation = 0;	/* that list and plans were made at */
static bool attached = false;	/* by this transaction */
static bool announce_again = false; /* an ATTACH that has committed */
static bool announcing = false; /* with this transaction's commit */

Size
announce_shmem_size(void)
{
	return MAXALIGN(sizeof(AnnounceShared));
}

/* Called with AddinShmemInitLock held. */
void
announce_shmem_startup(void)
{
	bool		found;

	shared = ShmemInitStruct("kavach partitions", sizeof(AnnounceShared), &found);
	for (int i = 0; i < NUM_SLOTS && !found; i++)
		pg_atomic_init_u64(&shared->generations[i], 0);
}

/* Makes sure that what others have attached and committed is seen. */
void
announce_refresh(Oid ledger)
{
	uint64		now;

	if (shared == NULL)
		return;
	now = pg_atomic_read_u64(&shared->generations[SLOT]);
	if (now == seen_generation)
		return;
	seen_generation = now;
	pg_read_barrier();
	RelationCacheInvalidateEntry(ledger);
	ResetPlanCache();
}

/* This transaction has attached a partition, which is others' at its commit. */
void
announce_attached(void)
{
	attached = true;
}

bool
announce_has_attached(void)
{
	return attached;
}

/* A worker has, for this backend, and has committed. */
void
announce_again_later(void)
{
	announce_again = true;
}

/* With a row: to sessions that read the ledger without calling us, and missed it. */
void
announce_with_commit(Oid ledger)
{
	if (!announce_again)
		return;
	CacheInvalidateRelcacheByRelid(ledger);
	announcing = true;
}

/* In a worker, when its partitions are committed. */
void
announce_ledger(Oid ledger)
{
	if (find_ledger() == ledger)
		CacheInvalidateRelcacheByRelid(ledger);
}

/* At the end of the transaction, before its counters are let go: nothing may fail. */
void
announce_end_transaction(bool commit)
{
	if (announcing && commit)
		announce_again = false;
	announcing = false;
	if (attached && commit)
	{
		announce_again = true;
		if (shared != NULL)
			pg_atomic_fetch_add_u64(&shared->generations[SLOT], 1);
	}
	attached = false;
}
