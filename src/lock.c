/*-------------------------------------------------------------------------
 * lock.c
 *		Heavyweight locks of our own.
 *
 * They are LOCKTAG_USERLOCK, so that they never meet the application's
 * advisory locks, and ordinary otherwise: cancel, lock_timeout and the deadlock
 * detector work, and pg_locks shows them (locktype userlock; database, hash
 * high, hash low, class).  They last to the end of the transaction, unless
 * given back earlier.
 *
 * Order, within one call: request, authorization, then the loads of counters
 * from all to agent and of permissions' rates (given back at once), then
 * revoke, then partition.  A
 * single call cannot deadlock; transactions of several calls that take them in
 * opposite orders end in a detected deadlock (40P01).
 *
 * Ids are hashed to 64 bits: two that collide wait for each other without
 * need, and nothing worse.
 *-------------------------------------------------------------------------
 */
#include "kavach.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/resowner.h"

static LOCKTAG
lock_tag(int class, const char *id)
{
	LOCKTAG		tag;
	uint64		hash = id ? hash_bytes_extended((const unsigned char *) id, strlen(id), 0) : 0;

	tag.locktag_field1 = MyDatabaseId;
	tag.locktag_field2 = (uint32) (hash >> 32);
	tag.locktag_field3 = (uint32) hash;
	tag.locktag_field4 = class;
	tag.locktag_type = LOCKTAG_USERLOCK;
	tag.locktag_lockmethodid = USER_LOCKMETHOD;
	return tag;
}

/*
 * Makes the (sub)transaction the owner of the locks that follow, rather than
 * the query, and returns who was.  What a cursor has locked is given back where
 * it fails in a savepoint, while the rows and charges of its earlier fetches
 * stay.  An error needs no clean-up: the end of the (sub)transaction does it.
 */
static ResourceOwner
own_by_transaction(void)
{
	ResourceOwner saved = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	return saved;
}

/* Locks a relation to the end of the transaction. */
void
lock_relation(Oid relid, LOCKMODE mode)
{
	ResourceOwner saved = own_by_transaction();

	LockRelationOid(relid, mode);
	CurrentResourceOwner = saved;
}

/* Waits for the lock on (class, id); NULL stands for the one of its class. */
void
lock_acquire(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);
	ResourceOwner saved = own_by_transaction();

	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	CurrentResourceOwner = saved;
}

/* Takes the lock if it is free; otherwise returns false at once. */
bool
lock_try(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);
	ResourceOwner saved = own_by_transaction();
	bool		taken = LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;

	CurrentResourceOwner = saved;
	return taken;
}

/* Gives a lock back before the transaction ends. */
void
lock_release(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);
	ResourceOwner saved = own_by_transaction();

	(void) LockRelease(&tag, ExclusiveLock, false);
	CurrentResourceOwner = saved;
}
