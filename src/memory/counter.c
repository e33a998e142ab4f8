/*-------------------------------------------------------------------------
 * counter.c
 *		The table of counters: usage of subjects in their windows, and rates of
 *		permissions, in shared memory.
 *
 * Purpose: answer "does this charge fit?" without waiting for another
 * caller's commit.  The ledger is the truth; an entry is a cache of it.
 *
 * Layout: a fixed-size hash table, made at start, with an entry for each
 * subject of a ledger of a database.  In it are its windows, two of each period:
 * mostly this one and the one before.  A window is found by its start, so that
 * nothing rolls over and no job resets anything.  One that nobody has pinned
 * gives its slot to another.  Where clocks differ so much that more are in use
 * at a time, they are in spare entries beside the first, which go with their last
 * pin; what there is of total, and how new the subject's rows are, is in the first.
 * A window that begins after the newest row and charge of its subject is known to
 * be empty, and is not loaded.
 *
 * An id is kept as it is, up to 37 bytes; of a longer one, 5 bytes and its
 * SHA-256.
 *
 * Locks: to add or remove an entry, or to change any of its fields, hold its
 * partition's lock exclusively; to look one up or read it, shared will do.
 * Several only in order of partition.  All entries of one subject are in one
 * partition.  Under the locks: no SQL, no allocation, no error, no wait but for
 * another such lock.  A pinned entry stays where it is without a lock, and
 * what is loaded of its pinned windows stays so.
 *
 * Pins: from before a row that changes a window is written until the callback of
 * its (sub)transaction has run, entry and window are pinned (charge.c).  So
 * whenever a window is read from the ledger (load.c), no open transaction holds a
 * row for it: a load counts every row once.
 *
 * What memory does not know of: an entry knows the last batch (batch.c) that rows
 * may be in which calls have written since it is there, and when it goes, that is
 * noted for those of the same hash.  So whoever reads a window that is not here
 * need not look at rows of later batches, but for those that no call has written.
 * That is noted at the end of each transaction that has charged the subject, while
 * the entry is pinned, with the number that is current by then: none of its rows
 * has a later one.  Who has read the rows before that has them pinned himself, or
 * finds them loaded; and what refunds went to, and was not here, is noted before
 * it is doubted, under the same lock (charge.c).
 *
 * Eviction goes round the partitions, by a hand that remembers where it stood,
 * and round the entries of each, oldest first: one that was pinned since the
 * hand came by last is spared once.
 *
 * Invariant: of a loaded window, used is the sum of the committed rows of its
 * key, but for transactions that are just between the visibility of their
 * commit and their callback; used + pending never falls short of that sum.
 *
 * Failure: a crash loses only the cache.  With every entry pinned a call fails
 * (53200), and never admits.
 *-------------------------------------------------------------------------
 */
#include "memory/counter.h"

#include "common/cryptohash.h"
#include "common/hashfn.h"
#include "common/sha2.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "server/compat.h"

#define MAX_SPARES	255

/* Entries that have gone are told apart by so many hashes, each within a partition. */
#define NUM_TRACES			4096
#define TRACE_OF(hash)		((hash) % NUM_TRACES)

typedef struct CounterShared
{
	pg_atomic_uint64 loads;
	pg_atomic_uint64 evictions;
	pg_atomic_uint64 refusals;
	pg_atomic_uint32 hand;		/* the partition that eviction looks at next */
	dlist_head	partitions[NUM_PARTITIONS]; /* of their entries */
	int64		traces[NUM_TRACES]; /* the last batch that rows of subjects
									 * whose entries have gone may be in;
									 * under the partition's lock */
} CounterShared;

static int	max_counters = 131072;

static CounterShared *shared = NULL;
static HTAB *entries = NULL;
static LWLockPadded *partition_locks = NULL;

StaticAssertDecl(sizeof(CounterKey) == 48, "a key has no padding");
StaticAssertDecl(NUM_SLOTS <= 8, "a slot has a bit in a byte");
StaticAssertDecl(NUM_TRACES % NUM_PARTITIONS == 0, "a trace is of one partition");
StaticAssertDecl(RATE_RING >= RATE_WINDOWS, "the ring holds all windows of a rate");
StaticAssertDecl((RATE_RING & (RATE_RING - 1)) == 0, "a window's place in the ring is its last bits");

/* ---- start ---- */

void
counter_define_settings(void)
{
	DefineCustomIntVariable("kavach.max_counters",
							"Sets of how many agents, users, tenants and rates usage is kept in memory.",
							"A bound of memory, not of subjects: those that no transaction uses make room for others, and are read from the ledger again.",
							&max_counters,
							131072, 16, INT_MAX / 2,
							PGC_POSTMASTER,
							0,
							NULL, NULL, NULL);
}

Size
counter_shmem_size(void)
{
	return add_size(MAXALIGN(sizeof(CounterShared)),
					hash_estimate_size(max_counters, sizeof(CounterEntry)));
}

void
counter_request_locks(void)
{
	RequestNamedLWLockTranche("kavach_counters", NUM_PARTITIONS);
}

static uint32
hash_key(const void *key, Size size)
{
	return counter_hash(key);
}

/* Called with AddinShmemInitLock held. */
void
counter_shmem_startup(void)
{
	HASHCTL		info = {0};
	bool		found;

	shared = ShmemInitStruct("kavach counters", sizeof(CounterShared), &found);
	if (!found)
	{
		pg_atomic_init_u64(&shared->loads, 0);
		pg_atomic_init_u64(&shared->evictions, 0);
		pg_atomic_init_u64(&shared->refusals, 0);
		pg_atomic_init_u32(&shared->hand, 0);
		for (int i = 0; i < NUM_PARTITIONS; i++)
			dlist_init(&shared->partitions[i]);
		memset(shared->traces, 0, sizeof(shared->traces));
	}
	info.keysize = sizeof(CounterKey);
	info.entrysize = sizeof(CounterEntry);
	info.hash = hash_key;
	info.num_partitions = NUM_PARTITIONS;
	entries = compat_shmem_init_hash("kavach counter entries", max_counters, &info,
									 HASH_ELEM | HASH_FUNCTION | HASH_PARTITION | HASH_FIXED_SIZE);
	partition_locks = GetNamedLWLockTranche("kavach_counters");
}

void
counter_warn_if_small(void)
{
	if (max_counters < MaxConnections * 8)
		ereport(LOG,
				(errmsg("kavach.max_counters is low for this max_connections"),
				 errdetail("It is %d; %d are needed for every connection to have a call under way.",
						   max_counters, MaxConnections * 8),
				 errhint("Calls that find no room fail with SQLSTATE 53200.")));
}

/* Whether there are counters: kavach is preloaded. */
bool
counter_is_there(void)
{
	return entries != NULL;
}

void
counter_require(void)
{
	if (entries == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("kavach must be loaded at server start"),
				 errdetail("Budgets are counted in shared memory."),
				 errhint("Add shared_preload_libraries = 'kavach' to postgresql.conf and restart the server.")));
}

/* How many entries one transaction may pin, so that it leaves room for others. */
int
counter_share(void)
{
	return Max(max_counters / 4, 256);
}

/* ---- keys ---- */

/* What of a long id is kept: enough to tell it from all others, and to recognize it. */
static void
digest_id(char *to, const char *id, int length)
{
	const int	clear = COUNTER_ID_BYTES - PG_SHA256_DIGEST_LENGTH;
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);

	if (context == NULL || pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) id, length) < 0 ||
		pg_cryptohash_final(context, (uint8 *) to + clear, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute the digest of an id: %s", pg_cryptohash_error(context));
	pg_cryptohash_free(context);
	memcpy(to, id, clear);
}

void
counter_make_key(CounterKey *key, Oid ledger, const Subject *subject)
{
	int			length = subject->id ? strlen(subject->id) : 0;

	memset(key, 0, sizeof(CounterKey));
	key->database = MyDatabaseId;
	key->ledger = ledger;
	key->scope = subject->scope;
	key->id_length = length;
	if (length > COUNTER_ID_BYTES)
		digest_id(key->id, subject->id, length);
	else if (length > 0)
		memcpy(key->id, subject->id, length);
}

/* The low bits, which select the partition, are the same for spare entries. */
uint32
counter_hash(const CounterKey *key)
{
	uint32		hash = hash_combine(hash_bytes((const unsigned char *) key->id, Min(key->id_length, COUNTER_ID_BYTES)),
									murmurhash32(key->ledger ^ (key->database << 8) ^ key->scope));

	return key->spare == 0 ? hash : hash ^ (murmurhash32(key->spare) & ~(uint32) (NUM_PARTITIONS - 1));
}

/* The id of a key; of one that is kept as a digest, its first characters and dots. */
char *
counter_id(const CounterKey *key)
{
	const int	clear = COUNTER_ID_BYTES - PG_SHA256_DIGEST_LENGTH;

	if (key->id_length <= COUNTER_ID_BYTES)
		return pnstrdup(key->id, key->id_length);
	return psprintf("%.*s...", pg_mbcliplen(key->id, clear, clear - 1), key->id);
}

/* ---- partitions' locks ---- */

void
counter_lock(uint64 partitions, LWLockMode mode)
{
	for (; partitions != 0; partitions &= partitions - 1)
		LWLockAcquire(&partition_locks[pg_rightmost_one_pos64(partitions)].lock, mode);
}

void
counter_unlock(uint64 partitions)
{
	for (; partitions != 0; partitions &= partitions - 1)
		LWLockRelease(&partition_locks[pg_rightmost_one_pos64(partitions)].lock);
}

/* ---- entries come and go ---- */

CounterEntry *
counter_find(const CounterKey *key, uint32 hash)
{
	return hash_search_with_hash_value(entries, key, hash, HASH_FIND, NULL);
}

static void
clear_slot(CounterEntry *entry, int slot)
{
	entry->windows.slots[slot].start = NO_WINDOW;
	entry->windows.loaded &= ~SLOT_BIT(slot);
	entry->windows.doubtful &= ~SLOT_BIT(slot);
}

/* Finds or makes the entry of a key; NULL when there is no room. */
CounterEntry *
counter_enter(const CounterKey *key, uint32 hash)
{
	bool		found;
	CounterEntry *entry = hash_search_with_hash_value(entries, key, hash, HASH_ENTER_NULL, &found);

	if (entry == NULL || found)
		return entry;
	memset((char *) entry + sizeof(CounterKey), 0, sizeof(CounterEntry) - sizeof(CounterKey));
	if (key->scope != SCOPE_PERMISSION)
	{
		entry->windows.newest_row = DT_NOEND;	/* unknown */
		entry->windows.newest_charge = DT_NOBEGIN;
		for (int slot = 0; slot < NUM_SLOTS; slot++)
			entry->windows.slots[slot].start = NO_WINDOW;
	}
	dlist_push_tail(&shared->partitions[PARTITION_OF(hash)], &entry->node);
	return entry;
}

bool
counter_is_rate(const CounterEntry *entry)
{
	return entry->key.scope == SCOPE_PERMISSION;
}

static CounterEntry *
find_spare(CounterEntry *first, int spare)
{
	CounterKey	key = first->key;

	if (spare == 0)
		return first;
	key.spare = spare;
	return counter_find(&key, counter_hash(&key));
}

/* A spare entry has gone: its first one has no more than up to the last that is there. */
static void
count_spares(const CounterKey *gone)
{
	CounterKey	key = *gone;
	CounterEntry *first;

	key.spare = 0;
	first = counter_find(&key, counter_hash(&key));
	while (first->windows.spares > 0 && find_spare(first, first->windows.spares) == NULL)
		first->windows.spares--;
}

static int64
last_batch_of(const CounterEntry *entry)
{
	return entry->last_batch == ANY_BATCH ? PG_INT64_MAX : entry->last_batch;
}

/* Remembers up to which batch the ledger may have rows of an entry that goes.  Its first one knows of a spare one's. */
static void
leave_trace(const CounterEntry *entry)
{
	int64	   *trace = &shared->traces[TRACE_OF(counter_hash(&entry->key))];

	if (!counter_is_rate(entry) && entry->key.spare == 0)
		*trace = Max(*trace, last_batch_of(entry));
}

static void
leave(CounterEntry *entry)
{
	CounterKey	key = entry->key;

	leave_trace(entry);
	dlist_delete(&entry->node);
	hash_search(entries, &key, HASH_REMOVE, NULL);
	if (key.spare > 0)
		count_spares(&key);
}

/* Whether an entry that nobody has pinned can be removed. */
static bool
is_alone(const CounterEntry *entry)
{
	return counter_is_rate(entry) || entry->windows.spares == 0;
}

/* Removes up to "wanted" entries of a partition; returns how many. */
static int
evict_from(int partition, int wanted)
{
	int			evicted = 0;
	dlist_head *list = &shared->partitions[partition];
	dlist_node *last;

	LWLockAcquire(&partition_locks[partition].lock, LW_EXCLUSIVE);
	last = dlist_is_empty(list) ? NULL : dlist_tail_node(list);
	while (last != NULL && evicted < wanted)
	{
		CounterEntry *entry = dlist_head_element(CounterEntry, node, list);

		if (&entry->node == last)
			last = NULL;		/* once round */
		if (entry->pins == 0 && !entry->touched && is_alone(entry))
		{
			leave(entry);
			evicted++;
			continue;
		}
		if (entry->pins == 0)
			entry->touched = false;
		dlist_delete(&entry->node);
		dlist_push_tail(list, &entry->node);
	}
	LWLockRelease(&partition_locks[partition].lock);
	return evicted;
}

/*
 * Removes entries that nobody has pinned, and that nobody has since the hand
 * came by last.  Twice round at most; returns how many.
 */
static int
evict(void)
{
	int			wanted = Max(1, max_counters / 1024);
	int			evicted = 0;

	for (int i = 0; i < 2 * NUM_PARTITIONS && evicted < wanted; i++)
	{
		int			partition = pg_atomic_fetch_add_u32(&shared->hand, 1) % NUM_PARTITIONS;

		evicted += evict_from(partition, wanted - evicted);
	}
	pg_atomic_fetch_add_u64(&shared->evictions, evicted);
	return evicted;
}

/* Makes room for another entry.  No locks are held. */
void
counter_make_room(void)
{
	CHECK_FOR_INTERRUPTS();
	if (evict() > 0)
		return;
	pg_atomic_fetch_add_u64(&shared->refusals, 1);
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("no room for another usage counter"),
			 errdetail("All %d are in use by open transactions; a call uses %d, and one for each permission with a rate per hour.",
					   max_counters, NUM_SCOPES),
			 errhint("Retry, shorten transactions, or increase kavach.max_counters.")));
}

/* ---- windows of a subject; its partition's lock is held ---- */

static int
slot_of(const CounterEntry *entry, PeriodKind period, TimestampTz start)
{
	for (int slot = FIRST_SLOT(period); slot <= LAST_SLOT(period); slot++)
		if (entry->windows.slots[slot].start == start)
			return slot;
	return -1;
}

/* The slot that a new window can have: an empty one, or the oldest that nobody has pinned; or -1. */
static int
free_slot(const CounterEntry *entry, PeriodKind period)
{
	const Window *slots = entry->windows.slots;
	int			best = -1;

	for (int slot = FIRST_SLOT(period); slot <= LAST_SLOT(period); slot++)
	{
		if (slots[slot].start == NO_WINDOW)
			return slot;
		if (entry->windows.users[slot] == 0 && (best < 0 || slots[slot].start < slots[best].start))
			best = slot;
	}
	return best;
}

/* Where a window is: in the first entry of its subject, or a spare one; false where it is not. */
bool
counter_find_window(CounterEntry *first, PeriodKind period, TimestampTz start, WindowPlace *place)
{
	for (int spare = 0; spare <= first->windows.spares; spare++)
	{
		place->entry = find_spare(first, spare);
		place->slot = place->entry ? slot_of(place->entry, period, start) : -1;
		if (place->slot >= 0)
			return true;
	}
	return false;
}

/* A spare entry; NULL when there is no room. */
static CounterEntry *
enter_spare(CounterEntry *first, int spare)
{
	CounterKey	key = first->key;
	CounterEntry *entry;

	key.spare = spare;
	entry = counter_enter(&key, counter_hash(&key));
	if (entry != NULL)
		first->windows.spares = Max(first->windows.spares, spare);
	return entry;
}

/* A place for a window that has none; false when there is no room (entry NULL), or no more spare entry. */
static bool
make_place(CounterEntry *first, PeriodKind period, WindowPlace *place)
{
	for (int spare = 0; spare <= MAX_SPARES; spare++)
	{
		place->entry = spare == 0 ? first : enter_spare(first, spare);
		if (place->entry == NULL)
			return false;
		place->slot = free_slot(place->entry, period);
		if (place->slot >= 0)
			return true;
	}
	return false;
}

/* Whether a window begins after all that is there of its subject. */
bool
counter_is_later(const CounterEntry *first, TimestampTz start)
{
	return start > first->windows.newest_row && start > first->windows.newest_charge;
}

/* Finds or makes a window; false as make_place.  The caller pins it at once, or tidies up. */
bool
counter_enter_window(CounterEntry *first, PeriodKind period, TimestampTz start, WindowPlace *place)
{
	Window	   *window;

	if (counter_find_window(first, period, start, place))
		return true;
	if (!make_place(first, period, place))
		return false;
	clear_slot(place->entry, place->slot);
	window = &place->entry->windows.slots[place->slot];
	memset(window, 0, sizeof(Window));
	window->start = start;
	if (counter_is_later(first, start))
		place->entry->windows.loaded |= SLOT_BIT(place->slot);
	return true;
}

bool
counter_is_loaded(WindowPlace place)
{
	return (place.entry->windows.loaded & SLOT_BIT(place.slot)) != 0;
}

/* Gives a window that is not loaded its sum. */
void
counter_install(WindowPlace place, const Usage *usage)
{
	if (counter_is_loaded(place))
		return;
	memcpy(place.entry->windows.slots[place.slot].used, usage->used, sizeof(Amounts));
	place.entry->windows.loaded |= SLOT_BIT(place.slot);
}

/* A refund may be missing from a window: it goes with its last pin. */
void
counter_doubt(WindowPlace place)
{
	if (place.entry->windows.users[place.slot] == 0)
		clear_slot(place.entry, place.slot);
	else
		place.entry->windows.doubtful |= SLOT_BIT(place.slot);
}

static bool
is_empty(const CounterEntry *entry)
{
	for (int slot = 0; slot < NUM_SLOTS; slot++)
		if (entry->windows.slots[slot].start != NO_WINDOW)
			return false;
	return true;
}

/* Removes what nobody has pinned and nobody needs of an entry: it may be gone then. */
void
counter_tidy(CounterEntry *entry)
{
	if (counter_is_rate(entry))
	{
		if (entry->pins == 0 && (!entry->rate.loaded || entry->rate.outdated))
			leave(entry);
		return;
	}
	for (int slot = 0; slot < NUM_SLOTS; slot++)
		if (entry->windows.users[slot] == 0 &&
			(!(entry->windows.loaded & SLOT_BIT(slot)) || (entry->windows.doubtful & SLOT_BIT(slot))))
			clear_slot(entry, slot);
	if (entry->pins == 0 && is_alone(entry) && (entry->key.spare > 0 || is_empty(entry)))
		leave(entry);
}

/*
 * Takes a pin off an entry, and off some of its windows.  What nobody needs
 * then goes: the entry may be gone.
 */
void
counter_unpin(CounterEntry *entry, int slots)
{
	entry->pins--;
	for (int slot = 0; slot < NUM_SLOTS; slot++)
		if (slots & SLOT_BIT(slot))
			entry->windows.users[slot]--;
	counter_tidy(entry);
}

/* ---- what memory does not know of; the partition's lock is held ---- */

/* A call's rows of a subject are in batches up to one.  After a commit, too. */
void
counter_note_rows(CounterEntry *first, int64 batch)
{
	first->last_batch = Max(first->last_batch, Min(batch, ANY_BATCH));
}

/* The last batch that calls may have written rows of a subject in which are not in memory; first: NULL if it has no entry. */
int64
counter_last_batch(const CounterEntry *first, uint32 hash)
{
	int64		trace = shared->traces[TRACE_OF(hash)];

	return first ? Max(trace, last_batch_of(first)) : trace;
}

void
counter_note_load(void)
{
	pg_atomic_fetch_add_u64(&shared->loads, 1);
}

/* ---- for operators ---- */

CounterStats
counter_stats(void)
{
	CounterStats stats = {
		.loads = pg_atomic_read_u64(&shared->loads),
		.evictions = pg_atomic_read_u64(&shared->evictions),
		.refusals = pg_atomic_read_u64(&shared->refusals),
	};

	return stats;
}

static bool
is_of(const CounterEntry *entry, Oid ledger)
{
	return entry->key.database == MyDatabaseId && entry->key.ledger == ledger;
}

/* Drops the entries of a ledger, which nobody has pinned; returns how many. */
long
counter_drop_all(Oid ledger)
{
	long		dropped = 0;

	for (int partition = 0; partition < NUM_PARTITIONS; partition++)
	{
		dlist_mutable_iter iter;

		LWLockAcquire(&partition_locks[partition].lock, LW_EXCLUSIVE);
		dlist_foreach_modify(iter, &shared->partitions[partition])
		{
			CounterEntry *entry = dlist_container(CounterEntry, node, iter.cur);

			if (!is_of(entry, ledger))
				continue;
			Assert(entry->pins == 0 && entry->key.spare == 0);
			leave(entry);
			dropped++;
		}
		LWLockRelease(&partition_locks[partition].lock);
	}
	return dropped;
}

/* Adds a partition's entries of a ledger to the copies, of which there are "count". */
static CounterEntry *
copy_partition(int partition, Oid ledger, CounterEntry *copies, long *count, long *room)
{
	LWLock	   *lock = &partition_locks[partition].lock;
	long		more;
	dlist_iter	iter;

	do
	{
		more = 0;
		LWLockAcquire(lock, LW_SHARED);
		dlist_foreach(iter, &shared->partitions[partition])
		{
			CounterEntry *entry = dlist_container(CounterEntry, node, iter.cur);

			if (!is_of(entry, ledger))
				continue;
			if (*count + more < *room)
				copies[*count + more] = *entry;
			more++;
		}
		LWLockRelease(lock);
		if (*count + more <= *room)
			break;
		*room = (*count + more) * 2;
		copies = repalloc_huge(copies, sizeof(CounterEntry) * *room);
	} while (true);
	*count += more;
	return copies;
}

/* Copies of a ledger's entries: those of a partition, and so of a subject, are of one moment. */
CounterEntry *
counter_copy_all(Oid ledger, long *count)
{
	long		room = 1024;
	CounterEntry *copies = palloc(sizeof(CounterEntry) * room);

	*count = 0;
	for (int partition = 0; partition < NUM_PARTITIONS; partition++)
	{
		CHECK_FOR_INTERRUPTS();
		copies = copy_partition(partition, ledger, copies, count, &room);
	}
	return copies;
}
