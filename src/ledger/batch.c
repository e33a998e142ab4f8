/*-------------------------------------------------------------------------
 * batch.c
 *		Batches of the ledger: which one a row belongs to, and when it is closed.
 *
 * Rows commit out of order, so that "all up to some time" is never a safe cut.
 * A batch is: each row has the number that was current when it was written, and
 * its (sub)transaction a lock on that number until it ends (batch_register).
 * The lock manager is the register: once the current number has moved on, and
 * nobody holds the lock on one, every row of that is committed and visible, or
 * gone, since locks are given back after a commit is visible.  Nobody queues for
 * the lock, so that nobody waits.
 *
 * A caller reads the current number, locks it, and reads again: if it has moved
 * meanwhile, the next one is taken.  Having locked the former, too, does no
 * harm.  So who moves it on first, and then finds a number without a lock, knows
 * that no row can get it any more.
 *
 * Batches are closed in the order in which they finish.  Closing is one
 * transaction, for all that are ready: rollups (rollup.c) and kavach.tail, which
 * says what is not in them, change together.  Whoever reads rollups and the rows
 * of the tail in one snapshot sees each row once.  As closers take turns
 * (LOCK_CLOSE), each sees the tail that the one before has left.
 *
 * Numbers come from a sequence, gaps do not matter.  The current one is in shared
 * memory, a slot for each database; a slot that is new begins with a new number,
 * so that those which a crash or a restore has left open have no holder.
 * Where there is no slot (no preload, or a thousand databases), each
 * registration draws a number of its own; the lock on LOCK_DRAW keeps who closes
 * from looking between the drawing and the lock.
 *
 * What closes batches is the database's worker (rounds.c).  Who registers has it
 * started where there is none: he has set "used" before he looks for it, and it
 * gives up its post before it looks at "used" for the last time, so that one of
 * them sees the other (batch_leave_post).
 *-------------------------------------------------------------------------
 */
#include "ledger/batch.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "ledger/rollup.h"
#include "ledger/worker.h"
#include "server/argument.h"
#include "server/compat.h"
#include "server/lock.h"
#include "server/query.h"
#include "server/straight.h"

#define NUM_SLOTS	1024

/* Of a database; "ledger" is written last, and read first. */
typedef struct BatchSlot
{
	Oid			database;		/* InvalidOid: free */
	Oid			ledger;
	pg_atomic_uint64 current;
	pg_atomic_uint64 first;		/* the first number since the server's start */
	pg_atomic_uint64 by_hand;	/* the last that a row put in by hand has got */
	pg_atomic_uint32 used;		/* whether anybody has registered for it */
	WorkerPost	worker;
} BatchSlot;

typedef struct BatchShared
{
	BatchSlot	slots[NUM_SLOTS];
} BatchShared;

static BatchShared *shared = NULL;
static LWLock *slots_lock = NULL;	/* who takes a slot, or moves a number on */
static BatchSlot *own_slot = NULL;	/* of this database */

ENTRY_POINT(kavach_current_batch, 0, 0);
ENTRY_POINT(kavach_close_batches, 0, 0);

/* ---- shared memory ---- */

Size
batch_shmem_size(void)
{
	return MAXALIGN(sizeof(BatchShared));
}

void
batch_request_locks(void)
{
	RequestNamedLWLockTranche("kavach_batch", 1);
}

/* Called with AddinShmemInitLock held. */
void
batch_shmem_startup(void)
{
	bool		found;

	shared = ShmemInitStruct("kavach batches", sizeof(BatchShared), &found);
	slots_lock = &GetNamedLWLockTranche("kavach_batch")[0].lock;
	if (found)
		return;
	memset(shared, 0, sizeof(BatchShared));
	for (int i = 0; i < NUM_SLOTS; i++)
	{
		pg_atomic_init_u64(&shared->slots[i].current, 0);
		pg_atomic_init_u64(&shared->slots[i].first, 0);
		pg_atomic_init_u64(&shared->slots[i].by_hand, 0);
		pg_atomic_init_u32(&shared->slots[i].used, 0);
		worker_init_post(&shared->slots[i].worker);
	}
}

/* ---- numbers ---- */

static int64
draw_number(void)
{
	Oid			sequence = get_relname_relid("batch_number", get_namespace_oid("kavach", false));

	if (!OidIsValid(sequence))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the sequence kavach.batch_number does not exist"),
				 errhint("Library and extension are of different versions: ALTER EXTENSION kavach UPDATE.")));
	return nextval_internal(sequence, false);
}

/* This database's slot, or the first free one; NULL where there is none. */
static BatchSlot *
find_slot(void)
{
	for (int i = 0; i < NUM_SLOTS; i++)
		if (shared->slots[i].database == MyDatabaseId || !OidIsValid(shared->slots[i].database))
			return &shared->slots[i];
	return NULL;
}

/*
 * Gives the ledger of this database a slot, unless somebody just has.  One that
 * another ledger had is free: it has been dropped, or that is yet to commit, and
 * whoever was there first has locked it.
 */
static BatchSlot *
take_slot(Oid ledger)
{
	int64		number = draw_number();
	BatchSlot  *slot;

	LWLockAcquire(slots_lock, LW_EXCLUSIVE);
	slot = find_slot();
	if (slot != NULL && (slot->database != MyDatabaseId || slot->ledger != ledger))
	{
		slot->database = MyDatabaseId;
		pg_atomic_write_u64(&slot->current, number);
		pg_atomic_write_u64(&slot->first, number);
		pg_atomic_write_u64(&slot->by_hand, 0);
		pg_atomic_write_u32(&slot->used, 1);	/* what was left open before */
		pg_write_barrier();
		slot->ledger = ledger;
	}
	LWLockRelease(slots_lock);
	return slot;
}

static BatchSlot *
slot_of(Oid ledger)
{
	if (shared == NULL)
		return NULL;
	if (own_slot == NULL || own_slot->ledger != ledger)
		own_slot = take_slot(ledger);
	return own_slot;
}

/* Draws a number, and locks it before anybody who closes can look at it. */
static int64
register_own(void)
{
	int64		number;

	lock_number(LOCK_DRAW, 0, ShareLock);
	number = draw_number();
	lock_number(LOCK_BATCH, number, ShareLock);
	unlock_number(LOCK_DRAW, 0, ShareLock);
	return number;
}

/*
 * The batch that rows written now belong to.  It stays open until this
 * (sub)transaction ends.
 */
int64
batch_register(Oid ledger)
{
	BatchSlot  *slot = slot_of(ledger);
	int64		number;

	if (slot == NULL)
		return register_own();
	do
	{
		number = pg_atomic_read_u64(&slot->current);
		lock_number(LOCK_BATCH, number, ShareLock);
		pg_memory_barrier();
	} while (number != (int64) pg_atomic_read_u64(&slot->current));
	pg_read_barrier();			/* "used" as it is since that number came */
	if (pg_atomic_read_u32(&slot->used) == 0)
	{
		pg_atomic_write_u32(&slot->used, 1);
		pg_memory_barrier();	/* before the worker is looked for */
	}
	worker_ensure(&slot->worker);
	return number;
}

/* The ledger's slot, if it has one.  Allocates nothing. */
static BatchSlot *
known_slot(Oid ledger)
{
	if (shared == NULL)
		return NULL;
	if (own_slot == NULL)
	{
		BatchSlot  *slot = find_slot();

		if (slot == NULL || slot->database != MyDatabaseId)
			return NULL;
		own_slot = slot;
	}
	return own_slot->ledger == ledger ? own_slot : NULL;
}

/*
 * The number that rows get now, no less than that of any row that has been
 * written; PG_INT64_MAX where that is not known.  Allocates nothing.
 */
int64
batch_current(Oid ledger)
{
	BatchSlot  *slot = known_slot(ledger);

	return slot ? (int64) pg_atomic_read_u64(&slot->current) : PG_INT64_MAX;
}

static void
raise_number(pg_atomic_uint64 *number, uint64 to)
{
	uint64		now = pg_atomic_read_u64(number);

	while (now < to && !pg_atomic_compare_exchange_u64(number, &now, to))
		;
}

/* There may be rows that were put in by hand so far, whatever their numbers. */
void
batch_note_rows(Oid ledger)
{
	BatchSlot  *slot = known_slot(ledger);

	if (slot != NULL)
		raise_number(&slot->by_hand, pg_atomic_read_u64(&slot->current));
}

/*
 * The last batch that may have rows which calls on this server have not written:
 * it is from before the server's start, or a row was put in by hand; PG_INT64_MAX
 * where that is not known.  A tail that goes on beyond the current number is not
 * of this server.
 */
int64
batch_last_of_others(Oid ledger, const BatchTail *tail)
{
	BatchSlot  *slot = known_slot(ledger);

	if (slot == NULL || tail->high >= (int64) pg_atomic_read_u64(&slot->current))
		return PG_INT64_MAX;
	return Max((int64) pg_atomic_read_u64(&slot->first) - 1, (int64) pg_atomic_read_u64(&slot->by_hand));
}

/* SQL: kavach.current_batch(), for rows that calls do not write */
static Datum
kavach_current_batch_checked(PG_FUNCTION_ARGS)
{
	Oid			ledger = ledger_oid();
	int64		number = batch_register(ledger);
	BatchSlot  *slot = known_slot(ledger);

	if (slot != NULL)
		raise_number(&slot->by_hand, number);
	PG_RETURN_INT64(number);
}

/* ---- closing ---- */

/*
 * Moves the current number on, if somebody has used it, and returns it: what
 * comes before can get no registration any more.
 */
static int64
move_on(Oid ledger)
{
	BatchSlot  *slot = slot_of(ledger);
	int64		number;

	if (slot == NULL)
	{
		lock_number(LOCK_DRAW, 0, ExclusiveLock);
		number = draw_number();
		unlock_number(LOCK_DRAW, 0, ExclusiveLock);
		return number;
	}
	if (pg_atomic_read_u32(&slot->used) == 0)
		return pg_atomic_read_u64(&slot->current);
	number = draw_number();
	pg_atomic_write_u32(&slot->used, 0);
	pg_write_barrier();
	pg_atomic_write_u64(&slot->current, number);
	pg_memory_barrier();
	return number;
}

static Statement read_tail = {
	.sql = "SELECT high, open FROM kavach.tail",
};

static Statement write_tail = {
	.sql = "INSERT INTO kavach.tail (high, open) VALUES ($1, $2)"
	" ON CONFLICT (singleton) DO UPDATE SET high = excluded.high, open = excluded.open",
	.nargs = 2,
	.argtypes = {INT8OID, INT8ARRAYOID},
};

/* Where there is none yet: rows of before there were batches have number 0. */
static const BatchTail no_tail = {-1, 0, NULL};

enum
{
	TAIL_SINGLETON,
	TAIL_HIGH,
	TAIL_OPEN
};

static StraightTable tail_table = {
	.name = "kavach.tail",
	.nkeys = 1,
	.ncolumns = 3,
	.columns = {
		[TAIL_SINGLETON] = {"singleton", BOOLOID},
		[TAIL_HIGH] = {"high", INT8OID},
		[TAIL_OPEN] = {"open", INT8ARRAYOID},
	},
};

static BatchTail
make_tail(int64 high, Datum open)
{
	BatchTail	tail = {.high = high};
	Datum	   *numbers;

	deconstruct_array(DatumGetArrayTypeP(open), INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &numbers, NULL, &tail.nopen);
	tail.open = palloc(sizeof(int64) * Max(tail.nopen, 1));
	for (int i = 0; i < tail.nopen; i++)
		tail.open[i] = DatumGetInt64(numbers[i]);
	return tail;
}

/* What a query for the tail has found. */
static BatchTail
selected_tail(uint64 nrows)
{
	bool		isnull;

	return nrows == 0 ? no_tail : make_tail(query_int64(0, 1).value, query_datum(0, 2, &isnull));
}

static BatchTail
scan_tail(void)
{
	TupleTableSlot *slot = table_slot_create(tail_table.table, NULL);
	IndexScanDesc scan = compat_index_beginscan(tail_table.table, tail_table.index, GetActiveSnapshot(), 1);
	ScanKeyData key;
	BatchTail	tail = no_tail;
	bool		isnull;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(true));
	index_rescan(scan, &key, 1, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, slot))
		tail = make_tail(DatumGetInt64(slot_getattr(slot, tail_table.attnums[TAIL_HIGH], &isnull)),
						 slot_getattr(slot, tail_table.attnums[TAIL_OPEN], &isnull));
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return tail;
}

/* The tail in the active snapshot.  Where the extension is yet to be updated, there is no such table. */
BatchTail
batch_tail(void)
{
	BatchTail	tail;
	OwnerRights owner;

	if (straight_open(&tail_table))
	{
		tail = scan_tail();
		straight_close(&tail_table);
		return tail;
	}
	if (!OidIsValid(tail_table.relid))
		return no_tail;
	query_begin(&owner);
	tail = selected_tail(query_select_in(GetActiveSnapshot(), &read_tail, NULL, NULL));
	query_end(&owner);
	return tail;
}

static void
save_tail(const BatchTail *tail)
{
	Datum	   *numbers = palloc(sizeof(Datum) * Max(tail->nopen, 1));
	Datum		values[2];

	for (int i = 0; i < tail->nopen; i++)
		numbers[i] = Int64GetDatum(tail->open[i]);
	values[0] = Int64GetDatum(tail->high);
	values[1] = PointerGetDatum(construct_array(numbers, tail->nopen, INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
												TYPALIGN_DOUBLE));
	(void) query_execute(&write_tail, values, NULL);
}

/*
 * Divides the batches that are not in the rollups into those that nobody can
 * add to, and those that are left.  "next" is the current one.  From the newest
 * on: who holds several has them all until he ends, so that what is open of his
 * is not older than what is closed.
 */
static void
divide(const BatchTail *tail, int64 next, BatchTail *left, int64 **ready, int *nready)
{
	int64		ncandidates = tail->nopen + (next - 1 - tail->high);
	int64	   *open = palloc_extended(sizeof(int64) * (ncandidates + 1), MCXT_ALLOC_HUGE);
	int64		first_open = ncandidates;

	*ready = palloc_extended(sizeof(int64) * (ncandidates + 1), MCXT_ALLOC_HUGE);
	*nready = 0;
	for (int64 i = ncandidates - 1; i >= 0; i--)
	{
		int64		number = i < tail->nopen ? tail->open[i] : tail->high + 1 + (i - tail->nopen);

		if (lock_is_held(LOCK_BATCH, number))
			open[--first_open] = number;
		else
			(*ready)[(*nready)++] = number;
	}
	left->high = next - 1;
	left->open = open + first_open;
	left->nopen = (int) (ncandidates - first_open);
}

/*
 * Opens the next batch and closes those that are ready, in the transaction that
 * is under way; returns how many rows they have, or -1 where there was none.
 * "left" is what is open after it, in the caller's memory.
 */
int64
batch_close_ready(Oid ledger, BatchTail *left)
{
	OwnerRights owner;
	BatchTail	tail;
	int64	   *ready;
	int			nready;
	int64		nrows = -1;

	lock_acquire(LOCK_CLOSE, NULL);
	query_begin(&owner);
	tail = selected_tail(query_select(&read_tail, NULL, NULL));
	divide(&tail, move_on(ledger), left, &ready, &nready);
	if (nready > 0)
	{
		nrows = rollup_fold(ready, nready);
		save_tail(left);
	}
	query_end(&owner);
	return nrows;
}

/* SQL: kavach.close_batches() */
static Datum
kavach_close_batches_checked(PG_FUNCTION_ARGS)
{
	BatchTail	left;
	int64		nrows;

	PreventCommandIfReadOnly("kavach.close_batches()");
	PreventCommandIfParallelMode("kavach.close_batches()");
	nrows = batch_close_ready(lock_ledger(RowExclusiveLock), &left);
	PG_RETURN_INT64(Max(nrows, 0));
}

/*
 * What there is to close in this database, where "left" is what its last closing
 * has left open: looked up outside of any transaction, so that who looks often
 * holds no snapshot.
 */
BatchOutlook
batch_outlook(const BatchTail *left)
{
	int64		current = pg_atomic_read_u64(&own_slot->current);

	if (pg_atomic_read_u32(&own_slot->used) != 0)
		return BATCH_READY;
	for (int i = 0; i < left->nopen; i++)
		if (!lock_is_held(LOCK_BATCH, left->open[i]))
			return BATCH_READY;
	/* of who has closed something by hand, and maybe failed */
	for (int64 number = left->high + 1; number < current; number++)
		if (!lock_is_held(LOCK_BATCH, number))
			return BATCH_READY;
	return left->nopen > 0 || left->high + 1 < current ? BATCH_HELD : BATCH_NONE;
}

/* ---- the worker's post ---- */

/* Of this database, in a transaction; NULL where there is no slot. */
WorkerPost *
batch_post(Oid ledger)
{
	BatchSlot  *slot = slot_of(ledger);

	return slot != NULL ? &slot->worker : NULL;
}

/* Of a database that has one. */
WorkerPost *
batch_find_post(Oid database)
{
	for (int i = 0; shared != NULL && i < NUM_SLOTS; i++)
		if (shared->slots[i].database == database)
			return &shared->slots[i].worker;
	return NULL;
}

/* Takes the post of this database, for its worker, unless somebody has it. */
bool
batch_take_post(WorkerPost *post)
{
	uint32		nobody = 0;

	return pg_atomic_compare_exchange_u32(&post->pid, &nobody, MyProcPid);
}

/*
 * Gives the post up, as there is nothing to be done; takes it again and returns
 * false if somebody has registered meanwhile, and has seen it taken.
 */
bool
batch_leave_post(WorkerPost *post)
{
	pg_atomic_write_u64(&post->next_start, 0);
	pg_atomic_write_u32(&post->pid, 0);
	pg_memory_barrier();
	return pg_atomic_read_u32(&own_slot->used) == 0 || !batch_take_post(post);
}
