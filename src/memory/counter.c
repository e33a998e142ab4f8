/*-------------------------------------------------------------------------
 * counter.c
 *		Usage of every scope in its current windows, in shared memory.
 *
 * Purpose: answer "does this charge fit?" without waiting for another
 * caller's commit.  The ledger is the truth; an entry is a cache of it.
 *
 * Layout: a fixed-size hash table, made at start.  A key is database, ledger,
 * scope, id, period and the window's start: nothing rolls over, and no job
 * resets anything.  All windows of one subject share a partition of the table
 * (the low bits of their hash are the subject's), so that a call takes one
 * lock for each of its subjects: agent, user, tenant, all, and a permission
 * that has a rate per hour.
 *
 * Locks: to add or remove an entry, or to change any of its fields, hold its
 * partition's lock exclusively; to look one up or read it, shared will do.
 * Several only in order of partition.  Under them: no SQL, no allocation, no
 * error, no wait but for another such lock.  A pinned entry stays where it is
 * without a lock, and once loaded it stays loaded.
 *
 * Charges: a call that changes a counter first pins it, once per nest level of
 * its transaction, and reads what is missing from the ledger (tally.c).  It
 * then decides and charges under the locks of all its entries at once, all or
 * nothing.  Increases go into pending; the transaction callbacks turn pending
 * into used at commit, once the commit is visible, and drop it at abort.
 * Decreases (refunds) reach the shared entry at commit only, or one that rolls
 * back would have let another overspend; the transaction itself counts them
 * at once (OwnCharge).
 *
 * Pins: from before a row that changes a key is written until the callback of
 * its (sub)transaction has run, the key's entry is pinned, and a pinned entry
 * is never evicted.  So whenever an entry is read from the ledger, no open
 * transaction holds a row for it: a load counts every row once.  An entry is
 * made and pinned as "not loaded" first, then loaded under a heavyweight lock
 * on its subject, with a snapshot taken after that lock was granted.  Who only
 * looks (counter_peek) pins until it has looked.  A transaction may pin a quarter
 * of all entries at most, so that it leaves room for others.
 *
 * Earlier windows: what a settlement gives back counts in the windows of its
 * authorization.  One that has ended by now is pinned, but not loaded for this:
 * nobody charges it any more, unless clocks differ or step back.  Where somebody
 * does load it meanwhile, nobody can tell at commit whether his snapshot had the
 * row.  So the refund is not added, which errs on the safe side, and the entry
 * goes when its last pin does, to be loaded anew.
 *
 * Eviction goes round the partitions, by a hand that remembers where it stood,
 * and round the entries of each, oldest first: one that was pinned since the
 * hand came by last is spared once.
 *
 * Invariant: of a loaded entry, used is the sum of the committed rows of its
 * key, but for transactions that are just between the visibility of their
 * commit and their callback; used + pending never falls short of that sum.
 *
 * Failure: an abort returns its pending charges; after a commit nothing here
 * can fail or allocates; a crash loses only the cache.  With every entry
 * pinned a call fails (53200), and never admits.
 *-------------------------------------------------------------------------
 */
#include "memory/counter.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "ledger/tally.h"
#include "server/argument.h"
#include "server/clock.h"
#include "server/compat.h"
#include "server/lock.h"
#include "server/query.h"

#define NUM_PARTITIONS		64
#define PARTITION_OF(hash)	((hash) % NUM_PARTITIONS)

/* Hashed and compared up to id_length; see key_bytes. */
typedef struct CounterKey
{
	TimestampTz window_start;
	Oid			database;
	Oid			ledger;
	uint8		scope;
	uint8		period;
	uint8		id_length;
	char		id[MAX_ID_BYTES];	/* not terminated */
} CounterKey;

typedef struct CounterEntry
{
	CounterKey	key;			/* first */
	dlist_node	node;			/* in its partition's list */
	bool		loaded;			/* whether used is the ledger's sum */
	bool		doubtful;		/* used may lack a refund */
	bool		touched;		/* pinned since eviction last came by */
	int32		pins;			/* of all transactions' nest levels */
	int64		used[NUM_MEASURES]; /* committed */
	int64		pending[NUM_MEASURES];	/* open increases, never < 0 */
} CounterEntry;

/* What this transaction has charged to an entry in one of its nest levels: a pin. */
typedef struct OwnCharge OwnCharge;

struct OwnCharge
{
	dlist_node	node;			/* in own_charges, outer levels first */
	CounterEntry *entry;
	uint32		hash;			/* of the entry's key */
	int			level;
	OwnCharge  *outer;			/* the same entry, in an outer level */
	int64		increases[NUM_MEASURES];
	int64		net[NUM_MEASURES];
	int64		unloaded[NUM_MEASURES]; /* of net, before it was loaded */
};

/* The innermost OwnCharge of each entry. */
typedef struct OwnEntry
{
	const CounterKey *key;		/* in the entry, which is pinned */
	OwnCharge  *innermost;
	uint32		hash;
	char		status;
} OwnEntry;

typedef struct CounterShared
{
	pg_atomic_uint64 loads;
	pg_atomic_uint64 evictions;
	pg_atomic_uint64 refusals;
	pg_atomic_uint32 hand;		/* the partition that eviction looks at next */
	dlist_head	partitions[NUM_PARTITIONS]; /* of their entries */
} CounterShared;

static int	max_counters = 65536;

static CounterShared *shared = NULL;
static HTAB *entries = NULL;
static LWLockPadded *partition_locks = NULL;

static dlist_head own_charges = DLIST_STATIC_INIT(own_charges);
static dlist_head free_charges = DLIST_STATIC_INIT(free_charges);
static int	num_free_charges = 0;

/* Whether this transaction has given back in an earlier window that was not loaded. */
static bool refunded_unloaded = false;

ENTRY_POINT(kavach_current_usage, 4, 3);
ENTRY_POINT(kavach_counters, 0, 9);
ENTRY_POINT(kavach_counter_stats, 0, 3);
ENTRY_POINT(kavach_reload_counters, 0, 0);

/* ---- keys ---- */

static Size
key_bytes(const CounterKey *key)
{
	return offsetof(CounterKey, id) + key->id_length;
}

static int
compare_keys(const void *a, const void *b, Size size)
{
	Size		a_bytes = key_bytes(a);

	return a_bytes != key_bytes(b) ? 1 : memcmp(a, b, a_bytes);
}

static void *
copy_key(void *to, const void *from, Size size)
{
	return memcpy(to, from, key_bytes(from));
}

/* Of what all windows of a subject have in common. */
static uint32
hash_subject(Oid database, Oid ledger, ScopeKind scope, const char *id, int id_length)
{
	return hash_combine(hash_bytes((const unsigned char *) id, id_length),
						murmurhash32(ledger ^ (database << 8) ^ scope));
}

/* The low bits, which select the partition, depend on the subject alone. */
static uint32
hash_window(uint32 subject, const CounterKey *key)
{
	uint32		window = (uint32) (key->window_start / USECS_PER_MINUTE) * NUM_COUNTED_PERIODS + key->period;

	return (hash_combine(subject, murmurhash32(window)) & ~(uint32) (NUM_PARTITIONS - 1)) |
		(subject & (NUM_PARTITIONS - 1));
}

static uint32
hash_key(const void *key, Size size)
{
	const CounterKey *k = key;

	return hash_window(hash_subject(k->database, k->ledger, k->scope, k->id, k->id_length), k);
}

static void
make_key(CounterKey *key, Oid ledger, ScopeKind scope, const char *id,
		 PeriodKind period, TimestampTz window_start)
{
	key->window_start = window_start;
	key->database = MyDatabaseId;
	key->ledger = ledger;
	key->scope = scope;
	key->period = period;
	key->id_length = id ? strlen(id) : 0;
	memcpy(key->id, id ? id : "", key->id_length);
}

/* A counter of a call. */
struct Counter
{
	OwnCharge  *charge;			/* this nest level's; NULL until pinned */
	bool		pinned_here;	/* by this call: there was none before */
	bool		earlier;		/* a window that has ended */
	bool		takes_refund;	/* takes charges unless earlier */
	uint32		hash;
	CounterKey	key;
};

/* The low bits of a counter's hash are its subject's: not for a table of few subjects. */
static uint32
own_hash_of(uint32 hash)
{
	return pg_rotate_right32(hash, 6);
}

#define SH_PREFIX		own
#define SH_ELEMENT_TYPE OwnEntry
#define SH_KEY_TYPE		const CounterKey *
#define SH_KEY			key
#define SH_HASH_KEY(tb, key)	own_hash_of(hash_key(key, 0))
#define SH_EQUAL(tb, a, b)		(compare_keys(a, b, 0) == 0)
#define SH_STORE_HASH
/* It never grows by itself: make_own_room. */
#define SH_GROW_MAX_DIB		PG_INT32_MAX
#define SH_GROW_MAX_MOVE	PG_INT32_MAX
#define SH_GET_HASH(tb, a)		(a)->hash
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static own_hash *own_entries = NULL;
static MemoryContext own_context = NULL;	/* of own_entries */

/* ---- start ---- */

void
counter_define_settings(void)
{
	DefineCustomIntVariable("kavach.max_counters",
							"Sets how many usage counters are kept in memory.",
							"A bound of memory, not of subjects: counters that no transaction uses make room for others, and are read from the ledger again.",
							&max_counters,
							65536, 64, INT_MAX / 2,
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
	}
	info.keysize = sizeof(CounterKey);
	info.entrysize = sizeof(CounterEntry);
	info.hash = hash_key;
	info.match = compare_keys;
	info.keycopy = copy_key;
	info.num_partitions = NUM_PARTITIONS;
	entries = compat_shmem_init_hash("kavach counter entries", max_counters, &info,
									 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_KEYCOPY |
									 HASH_PARTITION | HASH_FIXED_SIZE);
	partition_locks = GetNamedLWLockTranche("kavach_counters");
}

void
counter_warn_if_small(void)
{
	if (max_counters < MaxConnections * 32)
		ereport(LOG,
				(errmsg("kavach.max_counters is low for this max_connections"),
				 errdetail("It is %d; %d are needed for every connection to have a call under way.",
						   max_counters, MaxConnections * 32),
				 errhint("Calls that find no room fail with SQLSTATE 53200.")));
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

/* ---- partitions' locks ---- */

static void
lock_partitions(uint64 mask, LWLockMode mode)
{
	while (mask != 0)
	{
		int			partition = pg_rightmost_one_pos64(mask);

		LWLockAcquire(&partition_locks[partition].lock, mode);
		mask &= mask - 1;
	}
}

static void
unlock_partitions(uint64 mask)
{
	while (mask != 0)
	{
		int			partition = pg_rightmost_one_pos64(mask);

		LWLockRelease(&partition_locks[partition].lock);
		mask &= mask - 1;
	}
}

/* ---- entries come and go ---- */

/* Finds or makes the entry of a key, not loaded yet; NULL when there is no room. */
static CounterEntry *
enter(const CounterKey *key, uint32 hash)
{
	bool		found;
	CounterEntry *entry = hash_search_with_hash_value(entries, key, hash, HASH_ENTER_NULL, &found);

	if (entry != NULL && !found)
	{
		memset((char *) entry + offsetof(CounterEntry, loaded), 0,
			   sizeof(CounterEntry) - offsetof(CounterEntry, loaded));
		dlist_push_tail(&shared->partitions[PARTITION_OF(hash)], &entry->node);
	}
	return entry;
}

static void
leave(CounterEntry *entry)
{
	dlist_delete(&entry->node);
	hash_search(entries, &entry->key, HASH_REMOVE, NULL);
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
		if (entry->pins == 0 && !entry->touched)
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
 * Makes room: removes entries that nobody has pinned, and that nobody has since
 * the hand came by last.  Twice round at most; returns how many.
 */
static int
evict(void)
{
	int			wanted = Max(1, max_counters / 64);
	int			evicted = 0;

	for (int i = 0; i < 2 * NUM_PARTITIONS && evicted < wanted; i++)
	{
		int			partition = pg_atomic_fetch_add_u32(&shared->hand, 1) % NUM_PARTITIONS;

		evicted += evict_from(partition, wanted - evicted);
	}
	pg_atomic_fetch_add_u64(&shared->evictions, evicted);
	return evicted;
}

static void
make_room(void)
{
	CHECK_FOR_INTERRUPTS();
	if (evict() > 0)
		return;
	pg_atomic_fetch_add_u64(&shared->refusals, 1);
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("no room for another usage counter"),
			 errdetail("All %d are in use by open transactions; a call uses %d, and %d for each permission with a rate per hour.",
					   max_counters, NUM_SCOPES * NUM_PERIODS, RATE_WINDOWS),
			 errhint("Retry, shorten transactions, or increase kavach.max_counters.")));
}

/* ---- pins and own charges ---- */

/*
 * Makes own_entries large enough for so many more.  A new table is filled aside
 * and takes the old one's place when it is whole: an error in between (out of
 * memory) leaves the old one, which the abort needs.
 */
static void
make_own_room(int count)
{
	MemoryContext context;
	own_hash   *table;

	if (own_entries != NULL && own_entries->members + count < own_entries->grow_threshold)
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "kavach own counters", ALLOCSET_SMALL_SIZES);
	table = own_create(context, Max(32, 2 * (count + (own_entries ? own_entries->members : 0))), NULL);
	if (own_entries != NULL)
	{
		own_iterator iterator;
		OwnEntry   *old;

		own_start_iterate(own_entries, &iterator);
		while ((old = own_iterate(own_entries, &iterator)) != NULL)
		{
			bool		found;

			own_insert_hash(table, old->key, old->hash, &found)->innermost = old->innermost;
		}
		MemoryContextDelete(own_context);
	}
	MemoryContextSetParent(context, TopMemoryContext);
	own_context = context;
	own_entries = table;
}

/*
 * Reserves what pinning "count" entries needs, so that it cannot fail once a
 * shared pin is taken, nor allocate under the counters' locks.
 */
static void
reserve_charges(int count)
{
	make_own_room(count);
	while (num_free_charges < count)
	{
		OwnCharge  *charge = MemoryContextAlloc(TopMemoryContext, sizeof(OwnCharge));

		dlist_push_tail(&free_charges, &charge->node);
		num_free_charges++;
	}
}

/* Takes a charge off the transaction's list. */
static void
free_charge(OwnCharge *charge)
{
	dlist_delete(&charge->node);
	dlist_push_head(&free_charges, &charge->node);
	num_free_charges++;
}

static OwnCharge *
own_charge(const CounterKey *key, uint32 hash)
{
	OwnEntry   *own;

	if (dlist_is_empty(&own_charges))
		return NULL;
	own = own_lookup_hash(own_entries, key, own_hash_of(hash));
	return own ? own->innermost : NULL;
}

/* Pins an entry for this nest level.  Its partition's lock is held. */
static OwnCharge *
pin(CounterEntry *entry, uint32 hash, OwnCharge *outer, int level)
{
	OwnCharge  *charge = dlist_container(OwnCharge, node, dlist_pop_head_node(&free_charges));
	OwnEntry   *own;
	bool		found;

	num_free_charges--;
	own = own_insert_hash(own_entries, &entry->key, own_hash_of(hash), &found);
	own->innermost = charge;
	charge->entry = entry;
	charge->hash = hash;
	charge->level = level;
	charge->outer = outer;
	memset(charge->increases, 0, sizeof(charge->increases));
	memset(charge->net, 0, sizeof(charge->net));
	memset(charge->unloaded, 0, sizeof(charge->unloaded));
	dlist_push_tail(&own_charges, &charge->node);
	entry->pins++;
	entry->touched = true;
	return charge;
}

/* Takes a charge away from those of its entry, whose next outer one comes to the fore. */
static void
detach_charge(OwnCharge *charge)
{
	OwnEntry   *own = own_lookup_hash(own_entries, &charge->entry->key, own_hash_of(charge->hash));

	if (charge->outer != NULL)
		own->innermost = charge->outer;
	else
		own_delete_item(own_entries, own);
}

/* The entry may be gone afterwards.  Its partition's lock is held. */
static void
unpin(CounterEntry *entry)
{
	entry->pins--;
	if (entry->pins == 0 && (!entry->loaded || entry->doubtful))
		leave(entry);
}

/* Gives a pin back before the transaction ends.  Its partition's lock is held. */
static void
drop_pin(OwnCharge *charge)
{
	detach_charge(charge);
	unpin(charge->entry);
	free_charge(charge);
}

/* subject: its hash, the same for all of its windows */
static Counter *
add_counter(CounterSet *set, uint32 subject, ScopeKind scope, const char *id,
			PeriodKind period, TimestampTz window_start)
{
	Counter    *counter = &set->counters[set->count];

	memset(counter, 0, offsetof(Counter, key));
	make_key(&counter->key, set->ledger, scope, id, period, window_start);
	counter->hash = hash_window(subject, &counter->key);
	set->count++;
	set->partitions |= UINT64CONST(1) << PARTITION_OF(counter->hash);
	return counter;
}

/* id: NULL for all agents */
static uint32
hash_of_subject(Oid ledger, ScopeKind scope, const char *id)
{
	return hash_subject(MyDatabaseId, ledger, scope, id ? id : "", id ? strlen(id) : 0);
}

/* The windows of ts; a refund counts in those that are the same at refund_ts. */
static void
add_subject(CounterSet *set, ScopeKind scope)
{
	const char *id = set->subject.ids[scope];
	uint32		hash = hash_of_subject(set->ledger, scope, id);

	set->first[scope] = set->count;
	for (int period = 0; period < NUM_PERIODS; period++)
	{
		TimestampTz start = period_start(period, set->ts);
		Counter    *counter = add_counter(set, hash, scope, id, period, start);

		counter->takes_refund = set->refund_ts >= start;
	}
}

/* The windows of refund_ts that have ended by ts. */
static void
add_earlier_windows(CounterSet *set, ScopeKind scope)
{
	const char *id = set->subject.ids[scope];
	uint32		hash = hash_of_subject(set->ledger, scope, id);

	for (int period = 0; period < NUM_PERIODS; period++)
	{
		Counter    *counter;

		if (set->counters[set->first[scope] + period].takes_refund)
			continue;
		counter = add_counter(set, hash, scope, id, period, period_start(period, set->refund_ts));
		counter->takes_refund = true;
		counter->earlier = true;
	}
}

/* All windows of the rate of a permission; each call is charged to the current one. */
static void
add_rate(CounterSet *set, int64 permission_id)
{
	CounterRate *rate = &set->rates[set->nrates++];
	uint32		hash;

	rate->permission_id = permission_id;
	rate->id = psprintf("%lld", (long long) permission_id);
	rate->first = set->count;
	hash = hash_of_subject(set->ledger, SCOPE_PERMISSION, rate->id);
	for (int window = 0; window < RATE_WINDOWS; window++)
		add_counter(set, hash, SCOPE_PERMISSION, rate->id, PERIOD_RATE,
					period_start(PERIOD_RATE, set->ts) + (window - CURRENT_RATE_WINDOW) * RATE_WINDOW);
}

/*
 * Pins every counter of the set that this nest level has not pinned, under the
 * locks of the set.  Returns false when the table is full; those pinned by
 * then stay so, and belong to the transaction.
 */
static bool
pin_set(CounterSet *set)
{
	int			level = GetCurrentTransactionNestLevel();

	for (int i = 0; i < set->count; i++)
	{
		Counter    *counter = &set->counters[i];
		OwnCharge  *own = own_charge(&counter->key, counter->hash);

		if (own == NULL || own->level != level)
		{
			CounterEntry *entry;

			entry = own ? own->entry : enter(&counter->key, counter->hash);
			if (entry == NULL)
				return false;
			own = pin(entry, counter->hash, own, level);
			counter->pinned_here = true;
		}
		counter->charge = own;
	}
	return true;
}

/* Gives back the pins that pin_set has taken, of counters that were not charged. */
static void
unpin_set(CounterSet *set)
{
	lock_partitions(set->partitions, LW_EXCLUSIVE);
	for (int i = 0; i < set->count; i++)
		if (set->counters[i].pinned_here)
			drop_pin(set->counters[i].charge);
	unlock_partitions(set->partitions);
}

/* Refuses a transaction more than its share of the counters. */
static void
check_share(const CounterSet *set)
{
	int			share = Max(max_counters / 4, 1024);
	int			count = own_entries->members;

	if (count + set->count <= share)
		return;
	for (int i = 0; i < set->count; i++)
		if (own_charge(&set->counters[i].key, set->counters[i].hash) == NULL)
			count++;
	if (count > share)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the transaction calls kavach for too many agents"),
				 errdetail("It holds %d usage counters; one transaction may hold %d, at %d for each agent, user and tenant, and %d for each permission with a rate per hour.",
						   (int) own_entries->members, share, NUM_PERIODS, RATE_WINDOWS),
				 errhint("Commit more often, or increase kavach.max_counters.")));
}

/* ---- loading ---- */

static bool
lacks(const CounterSet *set, int first, int count)
{
	for (int i = first; i < first + count; i++)
		if (!set->counters[i].earlier && !set->counters[i].charge->entry->loaded)
			return true;
	return false;
}

static void
install(const CounterSet *set, int first, int count, const Usage *usage)
{
	uint64		mask = UINT64CONST(1) << PARTITION_OF(set->counters[first].hash);

	lock_partitions(mask, LW_EXCLUSIVE);
	for (int i = 0; i < count; i++)
	{
		CounterEntry *entry = set->counters[first + i].charge->entry;

		if (entry->loaded)
			continue;
		memcpy(entry->used, usage[i].used, sizeof(entry->used));
		entry->loaded = true;
	}
	unlock_partitions(mask);
	pg_atomic_fetch_add_u64(&shared->loads, 1);
}

/* The longest window that a scope lacks, or -1: the shorter ones are read with it. */
static int
longest_lacking(const CounterSet *set, ScopeKind scope)
{
	int			period = (set->first[scope] < 0) ? -1 : PERIOD_TOTAL;

	while (period >= 0 && !lacks(set, set->first[scope] + period, 1))
		period--;
	return period;
}

/*
 * Loads what is missing, subject by subject: a heavyweight lock each, from all
 * to agent, then a look whether another has been faster, then the ledger, once.
 * A lock whose subject another has loaded is given back before that.
 */
static void
load_set(CounterSet *set)
{
	int			longest[NUM_SCOPES];
	Usage		usage[NUM_SCOPES][NUM_PERIODS];

	for (int scope = SCOPE_ALL; scope >= SCOPE_AGENT; scope--)
	{
		longest[scope] = longest_lacking(set, scope);
		if (longest[scope] < 0)
			continue;
		lock_acquire(LOCK_LOAD + scope, set->subject.ids[scope]);
		longest[scope] = longest_lacking(set, scope);
		if (longest[scope] < 0)
			lock_release(LOCK_LOAD + scope, set->subject.ids[scope]);
	}
	tally_subjects(&set->subject, set->ts, longest, !refunded_unloaded, usage);
	for (int scope = SCOPE_ALL; scope >= SCOPE_AGENT; scope--)
	{
		if (longest[scope] < 0)
			continue;
		install(set, set->first[scope], longest[scope] + 1, usage[scope]);
		lock_release(LOCK_LOAD + scope, set->subject.ids[scope]);
	}

	for (int i = 0; i < set->nrates; i++)
	{
		CounterRate *rate = &set->rates[i];

		if (!lacks(set, rate->first, RATE_WINDOWS))
			continue;
		lock_acquire(LOCK_LOAD + SCOPE_PERMISSION, rate->id);
		if (lacks(set, rate->first, RATE_WINDOWS))
		{
			Usage		calls[RATE_WINDOWS];

			tally_rate(set->subject.ids[SCOPE_AGENT], rate->permission_id, set->ts, calls);
			install(set, rate->first, RATE_WINDOWS, calls);
		}
		lock_release(LOCK_LOAD + SCOPE_PERMISSION, rate->id);
	}
}

/* ---- what a call does ---- */

static void
begin_set(CounterSet *set, const Subject *subject, TimestampTz ts, TimestampTz refund_ts, int nrated)
{
	int			most = NUM_SCOPES * NUM_PERIODS * (refund_ts < ts ? 2 : 1) + nrated * RATE_WINDOWS;

	memset(set, 0, sizeof(CounterSet));
	set->ledger = ledger_oid();
	set->subject = *subject;
	set->ts = ts;
	set->refund_ts = refund_ts;
	set->counters = palloc(sizeof(Counter) * most);
	set->rates = palloc(sizeof(CounterRate) * Max(nrated, 1));
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		set->first[scope] = -1;
}

/* Pins and loads what is in the set, and returns with its partitions locked. */
static void
open_set(CounterSet *set)
{
	for (;;)
	{
		bool		pinned;

		reserve_charges(set->count);
		check_share(set);
		lock_partitions(set->partitions, LW_EXCLUSIVE);
		pinned = pin_set(set);
		if (pinned && !lacks(set, 0, set->count))
			return;
		unlock_partitions(set->partitions);
		if (pinned)
			load_set(set);
		else
			make_room();
	}
}

/*
 * Opens the counters of a call: every window of its subjects, and those of the
 * permissions that have a rate per hour.  When it returns they are pinned,
 * loaded and locked: until counter_close nothing may allocate or fail.  The
 * ledger is locked by then (ledger_begin), so that kavach_reload_counters() waits.
 * refund_ts: ts, or an earlier time, whose windows a negative charge goes to.
 */
void
counter_open(CounterSet *set, const Subject *subject, TimestampTz ts, TimestampTz refund_ts,
			 const int64 *rated, int nrated)
{
	begin_set(set, subject, ts, refund_ts, nrated);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (subject->ids[scope] != NULL || scope == SCOPE_ALL)
			add_subject(set, scope);
	for (int scope = 0; scope < NUM_SCOPES && refund_ts < ts; scope++)
		if (set->first[scope] >= 0)
			add_earlier_windows(set, scope);
	set->nsubject = set->count;
	for (int i = 0; i < nrated; i++)
		add_rate(set, rated[i]);
	open_set(set);
}

void
counter_close(CounterSet *set)
{
	unlock_partitions(set->partitions);
}

/* How an entry stands for this transaction.  Its partition's lock is held. */
static Usage
usage_of(const CounterEntry *entry, const OwnCharge *own)
{
	Usage		usage;

	memcpy(usage.used, entry->used, sizeof(usage.used));
	memcpy(usage.pending, entry->pending, sizeof(usage.pending));
	for (; own != NULL; own = own->outer)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
		{
			usage.used[measure] += own->net[measure];
			usage.pending[measure] -= own->increases[measure];
		}
	return usage;
}

Usage
counter_usage(const CounterSet *set, ScopeKind scope, PeriodKind period)
{
	OwnCharge  *charge = set->counters[set->first[scope] + period].charge;

	return usage_of(charge->entry, charge);
}

/* Calls of a permission, pending ones too, in its windows, the oldest first. */
void
counter_rate(const CounterSet *set, int index, int64 calls[RATE_WINDOWS])
{
	for (int window = 0; window < RATE_WINDOWS; window++)
	{
		OwnCharge  *charge = set->counters[set->rates[index].first + window].charge;
		Usage		usage = usage_of(charge->entry, charge);

		calls[window] = usage.used[MEASURE_CALLS] + usage.pending[MEASURE_CALLS];
	}
}

/*
 * Whether a counter can take a charge.  Totals stay within MAX_TOTAL either
 * way, far enough from the ends of bigint for the refunds of other open
 * transactions, which nobody knows of, to come on top.
 */
static bool
can_take(const OwnCharge *charge, int64 tokens)
{
	Usage		usage = usage_of(charge->entry, charge);

	return tokens > 0 ?
		usage.used[MEASURE_TOKENS] + usage.pending[MEASURE_TOKENS] <= MAX_TOTAL - tokens :
		usage.used[MEASURE_TOKENS] >= -MAX_TOTAL - tokens;
}

static void
add_charge(OwnCharge *charge, MeasureKind measure, int64 amount)
{
	charge->net[measure] += amount;
	if (!charge->entry->loaded)
		charge->unloaded[measure] += amount;
	if (amount > 0)
	{
		charge->increases[measure] += amount;
		charge->entry->pending[measure] += amount;
	}
}

/* Whether a counter of subjects is one that such a charge goes to. */
static bool
takes(const Counter *counter, int64 tokens)
{
	return tokens < 0 ? counter->takes_refund : !counter->earlier;
}

/*
 * Charges all counters of the call, under its locks; or none, and returns
 * false, where a total would pass what can be counted.  rate: the index of the
 * permission whose rate it uses, or -1.
 */
bool
counter_charge(CounterSet *set, int64 tokens, int64 calls, int rate)
{
	for (int i = 0; i < set->nsubject; i++)
		if (takes(&set->counters[i], tokens) && !can_take(set->counters[i].charge, tokens))
			return false;
	for (int i = 0; i < set->nsubject; i++)
	{
		if (!takes(&set->counters[i], tokens))
			continue;
		if (!set->counters[i].charge->entry->loaded)
			refunded_unloaded = true;
		add_charge(set->counters[i].charge, MEASURE_TOKENS, tokens);
		add_charge(set->counters[i].charge, MEASURE_CALLS, calls);
	}
	if (rate >= 0)
		add_charge(set->counters[set->rates[rate].first + CURRENT_RATE_WINDOW].charge, MEASURE_CALLS, calls);
	return true;
}

/* What to say of a charge that was not taken, once the locks are given back. */
void
counter_refuse_overflow(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("usage out of range"),
			 errdetail("The total of the agent, its user, its tenant or all agents would pass %lld tokens.", (long long) MAX_TOTAL),
			 errhint("A correction with kavach_adjust() makes room.")));
}

static CounterEntry *
find_loaded(const CounterKey *key, uint32 hash)
{
	CounterEntry *entry = hash_search_with_hash_value(entries, key, hash, HASH_FIND, NULL);

	return entry != NULL && entry->loaded ? entry : NULL;
}

/* How a window of a subject stands in memory; false where it is not there.  The subject's lock is held. */
static bool
look(const CounterKey *key, uint32 subject, bool own_charges_too, Usage *usage)
{
	uint32		hash = hash_window(subject, key);
	CounterEntry *entry = find_loaded(key, hash);

	if (entry != NULL)
		*usage = usage_of(entry, own_charges_too ? own_charge(key, hash) : NULL);
	return entry != NULL;
}

/* How the wanted windows of a subject stand in memory; returns those that are not there. */
static int
peek_memory(ScopeKind scope, const char *id, TimestampTz ts, int wanted, bool own_charges_too,
			Usage usage[NUM_PERIODS])
{
	Oid			ledger = ledger_oid();
	uint32		subject = hash_of_subject(ledger, scope, id);
	LWLock	   *lock = &partition_locks[PARTITION_OF(subject)].lock;
	int			missing = 0;
	CounterKey	keys[NUM_PERIODS];

	for (int period = 0; period < NUM_PERIODS; period++)
		make_key(&keys[period], ledger, scope, id, period, period_start(period, ts));
	LWLockAcquire(lock, LW_SHARED);
	for (int period = 0; period < NUM_PERIODS; period++)
		if ((wanted & PERIOD_BIT(period)) && !look(&keys[period], subject, own_charges_too, &usage[period]))
			missing |= PERIOD_BIT(period);
	LWLockRelease(lock);
	return missing;
}

/* Whether counters can be loaded: not without preload, nor on a standby. */
static bool
can_load(void)
{
	return entries != NULL && !RecoveryInProgress();
}

/* Reads the wanted windows of the subjects' scopes from the ledger, in one go. */
static void
tally_missing(const Subject *subject, TimestampTz ts, const int missing[NUM_SCOPES],
			  Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	int			longest[NUM_SCOPES];
	Usage		tally[NUM_SCOPES][NUM_PERIODS];

	for (int scope = 0; scope < NUM_SCOPES; scope++)
		longest[scope] = missing[scope] ? pg_leftmost_one_pos32(missing[scope]) : -1;
	tally_subjects(subject, ts, longest, true, tally);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		for (int period = 0; period < NUM_PERIODS; period++)
			if (missing[scope] & PERIOD_BIT(period))
				usage[scope][period] = tally[scope][period];
}

/*
 * Loads the scopes of which something is missing, as a call does, and reads
 * them.  The ledger is locked as long as there are pins, which is not long.
 */
static void
load_missing(const Subject *subject, TimestampTz ts, const int missing[NUM_SCOPES],
			 Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	CounterSet	set;
	Oid			ledger = ledger_oid();

	lock_relation(ledger, RowExclusiveLock);
	begin_set(&set, subject, ts, ts, 0);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (missing[scope])
			add_subject(&set, scope);
	open_set(&set);
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		for (int period = 0; period < NUM_PERIODS && missing[scope]; period++)
			usage[scope][period] = counter_usage(&set, scope, period);
	counter_close(&set);
	unpin_set(&set);
	unlock_relation(ledger, RowExclusiveLock);
}

/*
 * How subjects stand in the wanted windows of ts (a PERIOD_BIT each), for
 * advice: from memory, where it is loaded to if it is not there.
 */
void
counter_peek(const Subject *subject, TimestampTz ts, const int wanted[NUM_SCOPES],
			 Usage usage[NUM_SCOPES][NUM_PERIODS])
{
	int			missing[NUM_SCOPES];
	int			all_missing = 0;

	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		missing[scope] = entries ?
			peek_memory(scope, subject->ids[scope], ts, wanted[scope], true, usage[scope]) : wanted[scope];
		all_missing |= missing[scope];
	}
	if (all_missing == 0)
		return;
	if (can_load())
		load_missing(subject, ts, missing, usage);
	else
		tally_missing(subject, ts, missing, usage);
}

/* How the windows of a rate stand in memory; false where one is not there. */
static bool
peek_rate(const char *id, TimestampTz first, Usage usage[RATE_WINDOWS])
{
	Oid			ledger = ledger_oid();
	uint32		subject = hash_of_subject(ledger, SCOPE_PERMISSION, id);
	LWLock	   *lock = &partition_locks[PARTITION_OF(subject)].lock;
	int			found;

	LWLockAcquire(lock, LW_SHARED);
	for (found = 0; found < RATE_WINDOWS; found++)
	{
		CounterKey	key;

		make_key(&key, ledger, SCOPE_PERMISSION, id, PERIOD_RATE, first + found * RATE_WINDOW);
		if (!look(&key, subject, true, &usage[found]))
			break;
	}
	LWLockRelease(lock);
	return found == RATE_WINDOWS;
}

/*
 * The calls of a permission in the windows of its rate per hour, as
 * counter_rate tells, for advice: from memory where all of them are there,
 * else from the ledger.
 */
void
counter_peek_rate(const char *agent_id, int64 permission_id, TimestampTz ts, int64 calls[RATE_WINDOWS])
{
	char	   *id = psprintf("%lld", (long long) permission_id);
	TimestampTz first = period_start(PERIOD_RATE, ts) - CURRENT_RATE_WINDOW * RATE_WINDOW;
	Usage		usage[RATE_WINDOWS];

	if (entries == NULL || !peek_rate(id, first, usage))
		tally_rate(agent_id, permission_id, ts, usage);
	for (int window = 0; window < RATE_WINDOWS; window++)
		calls[window] = usage[window].used[MEASURE_CALLS] + usage[window].pending[MEASURE_CALLS];
}

/* ---- the end of (sub)transactions: nothing here may fail or allocate ---- */

static void
settle_charge(OwnCharge *charge, bool commit)
{
	CounterEntry *entry = charge->entry;

	for (int measure = 0; measure < NUM_MEASURES; measure++)
	{
		entry->pending[measure] -= charge->increases[measure];
		if (commit)
			entry->used[measure] += charge->net[measure] - charge->unloaded[measure];
		if (commit && charge->unloaded[measure] != 0)
			entry->doubtful = true;
	}
	unpin(entry);
}

/* Neighbours in the list mostly share a partition: its lock is kept across them. */
static int
switch_partition(int held, int wanted)
{
	if (held == wanted)
		return held;
	if (held >= 0)
		LWLockRelease(&partition_locks[held].lock);
	if (wanted >= 0)
		LWLockAcquire(&partition_locks[wanted].lock, LW_EXCLUSIVE);
	return wanted;
}

/* A large transaction's bookkeeping is given back, a small one's is kept. */
static void
forget_own_entries(void)
{
	if (own_entries->size <= 1024)
	{
		own_reset(own_entries);
		return;
	}
	MemoryContextDelete(own_context);
	own_context = NULL;
	own_entries = NULL;
	while (num_free_charges > 1024)
	{
		pfree(dlist_container(OwnCharge, node, dlist_pop_head_node(&free_charges)));
		num_free_charges--;
	}
}

/*
 * At the end of the transaction: pending becomes used, or is dropped.  The
 * commit is visible by now, and the client does not know of it yet.
 */
void
counter_end_transaction(bool commit)
{
	int			held = -1;

	refunded_unloaded = false;
	if (dlist_is_empty(&own_charges))
		return;
	while (!dlist_is_empty(&own_charges))
	{
		OwnCharge  *charge = dlist_container(OwnCharge, node, dlist_head_node(&own_charges));

		held = switch_partition(held, PARTITION_OF(charge->hash));
		settle_charge(charge, commit);
		free_charge(charge);
	}
	switch_partition(held, -1);
	forget_own_entries();
}

/*
 * At the end of a subtransaction: its charges go to the level above, or are
 * dropped.
 */
void
counter_end_subtransaction(bool commit, int level)
{
	int			held = -1;
	dlist_node *node = dlist_is_empty(&own_charges) ? NULL : dlist_tail_node(&own_charges);

	while (node != NULL)
	{
		OwnCharge  *charge = dlist_container(OwnCharge, node, node);
		OwnCharge  *outer = charge->outer;

		if (charge->level < level)
			break;
		node = dlist_has_prev(&own_charges, node) ? dlist_prev_node(&own_charges, node) : NULL;
		if (commit && (outer == NULL || outer->level < level - 1))
		{
			charge->level = level - 1;
			continue;
		}

		held = switch_partition(held, PARTITION_OF(charge->hash));
		detach_charge(charge);
		if (commit)
		{
			for (int measure = 0; measure < NUM_MEASURES; measure++)
			{
				outer->increases[measure] += charge->increases[measure];
				outer->net[measure] += charge->net[measure];
				outer->unloaded[measure] += charge->unloaded[measure];
			}
			charge->entry->pins--;
		}
		else
			settle_charge(charge, false);
		free_charge(charge);
	}
	switch_partition(held, -1);
}

/* ---- for operators ---- */

/*
 * SQL: kavach_reload_counters().  The lock waits for every transaction that
 * holds a pin, and keeps others from pinning until this one ends.
 */
static Datum
kavach_reload_counters_checked(PG_FUNCTION_ARGS)
{
	Oid			ledger = ledger_oid();
	int64		dropped = 0;

	counter_require();
	if (!dlist_is_empty(&own_charges))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("kavach_reload_counters() cannot run in a transaction that has called kavach"),
				 errhint("Commit first.")));
	LockRelationOid(ledger, ShareRowExclusiveLock);

	for (int partition = 0; partition < NUM_PARTITIONS; partition++)
	{
		dlist_mutable_iter iter;

		LWLockAcquire(&partition_locks[partition].lock, LW_EXCLUSIVE);
		dlist_foreach_modify(iter, &shared->partitions[partition])
		{
			CounterEntry *entry = dlist_container(CounterEntry, node, iter.cur);

			if (entry->key.database != MyDatabaseId || entry->key.ledger != ledger)
				continue;
			Assert(entry->pins == 0);
			leave(entry);
			dropped++;
		}
		LWLockRelease(&partition_locks[partition].lock);
	}
	PG_RETURN_INT64(dropped);
}

/* From memory, or from the ledger, without loading: a report has a long snapshot. */
static Usage
current_usage(ScopeKind scope, const char *id, PeriodKind period, TimestampTz ts, bool own_charges_too)
{
	Usage		usage[NUM_SCOPES][NUM_PERIODS];
	Subject		subject = {{NULL}};
	int			missing[NUM_SCOPES] = {0};

	subject.ids[scope] = id;
	missing[scope] = PERIOD_BIT(period);
	if (entries != NULL)
		missing[scope] = peek_memory(scope, id, ts, missing[scope], own_charges_too, usage[scope]);
	if (missing[scope])
		tally_missing(&subject, ts, missing, usage);
	return usage[scope][period];
}

/* SQL: kavach.current_usage(scope, subject, period, committed) */
static Datum
kavach_current_usage_checked(PG_FUNCTION_ARGS)
{
	ScopeKind	scope = scope_named(required_id_arg(fcinfo, 0, "scope"));
	char	   *subject = scope == SCOPE_ALL ? NULL : required_id_arg(fcinfo, 1, "subject");
	PeriodKind	period = period_named(required_id_arg(fcinfo, 2, "period"));
	bool		committed = required_bool_arg(fcinfo, 3, "committed");
	TimestampTz ts = clock_now();
	Usage		usage;
	Datum		values[3];
	bool		nulls[3] = {false};

	usage = current_usage(scope, subject, period, ts, !committed);
	values[0] = TimestampTzGetDatum(period_start(period, ts));
	values[1] = Int64GetDatum(usage.used[MEASURE_TOKENS]);
	values[2] = Int64GetDatum(usage.used[MEASURE_CALLS]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}

/* Adds a partition's entries of this database to the copies, of which there are "count". */
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

			if (entry->key.database != MyDatabaseId || entry->key.ledger != ledger)
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

/* Copies of this database's entries: those of a partition, and so of a subject, are of one moment. */
static CounterEntry *
copy_entries(Oid ledger, long *count)
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

/* SQL: kavach.counters */
static Datum
kavach_counters_checked(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	CounterEntry *copies;
	long		count;

	InitMaterializedSRF(fcinfo, 0);
	if (entries == NULL)
		return (Datum) 0;

	copies = copy_entries(ledger_oid(), &count);
	for (long i = 0; i < count; i++)
	{
		const CounterEntry *copy = &copies[i];
		Datum		values[9];
		bool		nulls[9] = {false};

		values[0] = CStringGetTextDatum(scopes[copy->key.scope].name);
		values[1] = PointerGetDatum(cstring_to_text_with_len(copy->key.id, copy->key.id_length));
		nulls[1] = copy->key.scope == SCOPE_ALL;
		values[2] = CStringGetTextDatum(periods[copy->key.period].name);
		values[3] = TimestampTzGetDatum(copy->key.window_start);
		values[4] = Int64GetDatum(copy->used[MEASURE_TOKENS]);
		values[5] = Int64GetDatum(copy->pending[MEASURE_TOKENS]);
		values[6] = Int64GetDatum(copy->used[MEASURE_CALLS]);
		values[7] = Int64GetDatum(copy->pending[MEASURE_CALLS]);
		values[8] = Int32GetDatum(copy->pins);
		nulls[4] = nulls[5] = nulls[6] = nulls[7] = !copy->loaded;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* SQL: kavach.counter_stats */
static Datum
kavach_counter_stats_checked(PG_FUNCTION_ARGS)
{
	Datum		values[3];
	bool		nulls[3] = {false};

	counter_require();
	values[0] = Int64GetDatum(pg_atomic_read_u64(&shared->loads));
	values[1] = Int64GetDatum(pg_atomic_read_u64(&shared->evictions));
	values[2] = Int64GetDatum(pg_atomic_read_u64(&shared->refusals));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}
