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
 * The server's lock table is everybody's, and has room for max_locks_per_transaction
 * a session.  So a transaction keeps half of that at most of the locks that it
 * takes for each request, authorization and revocation (lock_hold).  Those beyond
 * are given back when the call ends.  Who asks for the same then finds the lock
 * free and the row not committed yet; the unique indexes of the ledger make that
 * caller wait, and fail where the row stays (ledger_append).  They know only their
 * own month's rows: so the transaction also marks the month (lock_mark), and who
 * looks into other months waits until nobody does (lock_wait), if any is marked at
 * all (lock_is_marked).
 *
 * Order, within one call: request, authorization, month (each after what it is
 * about), then the loads of counters from all to agent and of permissions' rates
 * (given back at once), then revoke, then partition.  A single call cannot deadlock; transactions of several calls that take them in
 * opposite orders end in a detected deadlock (40P01).
 *
 * Ids are hashed to 64 bits: two that collide wait for each other without
 * need, and nothing worse.
 *-------------------------------------------------------------------------
 */
#include "server/lock.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/resowner.h"

#include "server/query.h"

/* How many locks of lock_hold this transaction keeps; a savepoint's count on. */
static int	held = 0;

/* What lock_hold has taken beyond them in this call. */
static LOCKTAG passing[4];
static int	npassing = 0;

static LOCKTAG
number_tag(int class, uint64 number)
{
	LOCKTAG		tag;

	tag.locktag_field1 = MyDatabaseId;
	tag.locktag_field2 = (uint32) (number >> 32);
	tag.locktag_field3 = (uint32) number;
	tag.locktag_field4 = class;
	tag.locktag_type = LOCKTAG_USERLOCK;
	tag.locktag_lockmethodid = USER_LOCKMETHOD;
	return tag;
}

static LOCKTAG
lock_tag(int class, const char *id)
{
	return number_tag(class, id ? hash_bytes_extended((const unsigned char *) id, strlen(id), 0) : 0);
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

static LockAcquireResult
take(const LOCKTAG *tag, LOCKMODE mode, bool dont_wait)
{
	ResourceOwner saved = own_by_transaction();
	LockAcquireResult result = LockAcquire(tag, mode, false, dont_wait);

	CurrentResourceOwner = saved;
	return result;
}

static void
give_back(const LOCKTAG *tag, LOCKMODE mode)
{
	ResourceOwner saved = own_by_transaction();

	(void) LockRelease(tag, mode, false);
	CurrentResourceOwner = saved;
}

/* Locks a relation to the end of the transaction. */
void
lock_relation(Oid relid, LOCKMODE mode)
{
	ResourceOwner saved = own_by_transaction();

	LockRelationOid(relid, mode);
	CurrentResourceOwner = saved;
}

/* Gives such a lock back once, by who has done nothing that it protects. */
void
unlock_relation(Oid relid, LOCKMODE mode)
{
	ResourceOwner saved = own_by_transaction();

	UnlockRelationOid(relid, mode);
	CurrentResourceOwner = saved;
}

/*
 * Locks the ledger to the end of the transaction, so that it is one and the
 * same throughout.
 */
Oid
lock_ledger(LOCKMODE mode)
{
	for (;;)
	{
		Oid			ledger = ledger_oid();

		lock_relation(ledger, mode);
		if (ledger == ledger_oid())
			return ledger;
		/* dropped, and made anew: the lock on what was is no harm */
	}
}

/* Waits for the lock on (class, id); NULL stands for the one of its class. */
void
lock_acquire(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	(void) take(&tag, ExclusiveLock, false);
}

/* Takes the lock if it is free; otherwise returns false at once. */
bool
lock_try(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	return take(&tag, ExclusiveLock, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Gives a lock back before the transaction ends. */
void
lock_release(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	give_back(&tag, ExclusiveLock);
}

/* ---- locks that are kept, as far as there is room ---- */

/*
 * Waits for the lock on (class, id).  Returns whether it is kept to the end of
 * the transaction, or else to that of the call only.
 */
bool
lock_hold(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);
	bool		is_new = take(&tag, ExclusiveLock, false) != LOCKACQUIRE_ALREADY_HELD;

	if (is_new && held >= max_locks_per_xact / 2 && npassing < (int) lengthof(passing))
	{
		passing[npassing++] = tag;
		return false;
	}
	held += is_new;
	return true;
}

/* Marks (class, id) to the end of the transaction, beside others who do. */
void
lock_mark(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	(void) take(&tag, RowExclusiveLock, false);
}

/* Whether somebody else marks (class, id), or may. */
bool
lock_is_marked(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	if (take(&tag, ShareLock, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	give_back(&tag, ShareLock);
	return false;
}

/* Waits until nobody else marks (class, id). */
void
lock_wait(int class, const char *id)
{
	LOCKTAG		tag = lock_tag(class, id);

	(void) take(&tag, ShareLock, false);
	give_back(&tag, ShareLock);
}

/* ---- locks on numbers, which pg_locks shows ---- */

/* Waits for the lock on (class, number), to the end of the (sub)transaction. */
void
lock_number(int class, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = number_tag(class, number);

	(void) take(&tag, mode, false);
}

void
unlock_number(int class, int64 number, LOCKMODE mode)
{
	LOCKTAG		tag = number_tag(class, number);

	give_back(&tag, mode);
}

/* Whether another transaction that has not ended holds (class, number), in any mode. */
bool
lock_is_held(int class, int64 number)
{
	LOCKTAG		tag = number_tag(class, number);
	int			count;

	pfree(GetLockConflicts(&tag, AccessExclusiveLock, &count));
	return count > 0;
}

/* Before the first lock of a call: what an earlier one left behind, failing, is gone. */
void
lock_begin_call(void)
{
	npassing = 0;
}

/* Once a call's row is written: gives back the locks that there is no room for. */
void
lock_end_call(void)
{
	while (npassing > 0)
		give_back(&passing[--npassing], ExclusiveLock);
}

/* At the end of the transaction, which gives all of them back, or passes them on as it is prepared: nothing may fail. */
void
lock_end_transaction(void)
{
	held = 0;
	npassing = 0;
}
