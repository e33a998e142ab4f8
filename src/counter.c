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
 * on its subject, with a snapshot taken after that lock was granted.
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
#include "kavach.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "compat.h"
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

#define NUM_PARTITIONS		64
#define PARTITION_OF(hash)	((hash) % NUM_PARTITIONS)

const ScopeInfo scopes[NUM_COUNTED_SCOPES] = {
	[SCOPE_AGENT] = {"agent"},
	[SCOPE_USER] = {"user"},
	[SCOPE_TENANT] = {"tenant"},
	[SCOPE_ALL] = {"all"},
	[SCOPE_PERMISSION] = {"permission"},
};

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
	bool		loaded;			/* whether used is the ledger's sum */
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
} CounterShared;

static int	max_counters = 65536;

static CounterShared *shared = NULL;
static HTAB *entries = NULL;
static LWLockPadded *partition_locks = NULL;

static dlist_head own_charges = DLIST_STATIC_INIT(own_charges);
static dlist_head free_charges = DLIST_STATIC_INIT(free_charges);
static int	num_free_charges = 0;

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
#define SH_GET_HASH(tb, a)		(a)->hash
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static own_hash *own_entries = NULL;

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

#define ALL_PARTITIONS	(~UINT64CONST(0))

/* ---- eviction ---- */

/*
 * Makes room: removes entries that nobody has pinned, those first that nobody
 * has since the last time.  Returns how many.
 */
static int
evict(void)
{
	int			wanted = Max(1, max_counters / 16);
	int			evicted = 0;

	lock_partitions(ALL_PARTITIONS, LW_EXCLUSIVE);
	for (int pass = 0; pass < 2 && evicted < wanted; pass++)
	{
		HASH_SEQ_STATUS scan;
		CounterEntry *entry;

		hash_seq_init(&scan, entries);
		while ((entry = hash_seq_search(&scan)) != NULL)
		{
			if (entry->pins > 0)
				continue;
			if (entry->touched)
			{
				entry->touched = false;
				continue;
			}
			hash_search(entries, &entry->key, HASH_REMOVE, NULL);
			if (++evicted >= wanted)
			{
				hash_seq_term(&scan);
				break;
			}
		}
	}
	unlock_partitions(ALL_PARTITIONS);
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
 * Reserves what pinning "count" entries needs, so that it cannot fail once a
 * shared pin is taken.
 */
static void
reserve_charges(int count)
{
	if (own_entries == NULL)
		own_entries = own_create(TopMemoryContext, 32, NULL);
	if (own_entries->members + count >= own_entries->grow_threshold)
		own_grow(own_entries, own_entries->size * 2 + count);
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
	dlist_push_tail(&own_charges, &charge->node);
	entry->pins++;
	entry->touched = true;
	return charge;
}

/* Finds or makes the entry of a key, not loaded yet; NULL when there is no room. */
static CounterEntry *
enter(const CounterKey *key, uint32 hash)
{
	bool		found;
	CounterEntry *entry = hash_search_with_hash_value(entries, key, hash, HASH_ENTER_NULL, &found);

	if (entry != NULL && !found)
		memset((char *) entry + offsetof(CounterEntry, loaded), 0,
			   sizeof(CounterEntry) - offsetof(CounterEntry, loaded));
	return entry;
}

/* subject: its hash, the same for all of its windows */
static void
add_counter(CounterSet *set, uint32 subject, ScopeKind scope, const char *id,
			PeriodKind period, TimestampTz window_start)
{
	Counter    *counter = &set->counters[set->count];

	make_key(&counter->key, set->ledger, scope, id, period, window_start);
	counter->hash = hash_window(subject, &counter->key);
	counter->charge = NULL;
	set->count++;
	set->partitions |= UINT64CONST(1) << PARTITION_OF(counter->hash);
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
		CounterEntry *entry;

		if (own == NULL || own->level != level)
		{
			entry = own ? own->entry : enter(&counter->key, counter->hash);
			if (entry == NULL)
				return false;
			own = pin(entry, counter->hash, own, level);
		}
		counter->charge = own;
	}
	return true;
}

/* ---- loading ---- */

static bool
lacks(const CounterSet *set, int first, int count)
{
	for (int i = first; i < first + count; i++)
		if (!set->counters[i].charge->entry->loaded)
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
 * to agent, then a look whether another has been faster, then the ledger.
 */
static void
load_set(CounterSet *set)
{
	bool		locked[NUM_SCOPES] = {false};
	int			longest[NUM_SCOPES];
	Usage		usage[NUM_SCOPES][NUM_PERIODS];

	for (int scope = SCOPE_ALL; scope >= SCOPE_AGENT; scope--)
	{
		longest[scope] = longest_lacking(set, scope);
		if (longest[scope] < 0)
			continue;
		lock_acquire(LOCK_LOAD + scope, set->subject.ids[scope]);
		locked[scope] = true;
		longest[scope] = longest_lacking(set, scope);
	}
	tally_subjects(&set->subject, set->ts, longest, usage);
	for (int scope = SCOPE_ALL; scope >= SCOPE_AGENT; scope--)
	{
		if (longest[scope] >= 0)
			install(set, set->first[scope], longest[scope] + 1, usage[scope]);
		if (locked[scope])
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

/*
 * Opens the counters of a call: every window of its subjects, and those of the
 * permissions that have a rate per hour.  When it returns they are pinned,
 * loaded and locked: until counter_close nothing may allocate or fail.  The
 * ledger is locked by then (ledger_begin), so that kavach_reload_counters() waits.
 */
void
counter_open(CounterSet *set, const Subject *subject, TimestampTz ts,
			 const int64 *rated, int nrated)
{
	memset(set, 0, sizeof(CounterSet));
	set->ledger = ledger_oid();
	set->subject = *subject;
	set->ts = ts;
	set->counters = palloc(sizeof(Counter) * (NUM_SCOPES * NUM_PERIODS + nrated * RATE_WINDOWS));
	for (int scope = 0; scope < NUM_SCOPES; scope++)
	{
		const char *id = subject->ids[scope];
		uint32		hash;

		set->first[scope] = -1;
		if (id == NULL && scope != SCOPE_ALL)
			continue;
		set->first[scope] = set->count;
		hash = hash_subject(MyDatabaseId, set->ledger, scope, id ? id : "", id ? strlen(id) : 0);
		for (int period = 0; period < NUM_PERIODS; period++)
			add_counter(set, hash, scope, id, period, period_start(period, ts));
	}
	set->rates = palloc(sizeof(CounterRate) * Max(nrated, 1));
	for (int i = 0; i < nrated; i++)
	{
		CounterRate *rate = &set->rates[set->nrates++];
		uint32		hash;

		rate->permission_id = rated[i];
		rate->id = psprintf("%lld", (long long) rated[i]);
		rate->first = set->count;
		hash = hash_subject(MyDatabaseId, set->ledger, SCOPE_PERMISSION, rate->id, strlen(rate->id));
		for (int window = 0; window < RATE_WINDOWS; window++)
			add_counter(set, hash, SCOPE_PERMISSION, rate->id, PERIOD_RATE,
						period_start(PERIOD_RATE, ts) + (window - CURRENT_RATE_WINDOW) * RATE_WINDOW);
	}

	for (;;)
	{
		bool		pinned;

		reserve_charges(set->count);
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
	if (amount > 0)
	{
		charge->increases[measure] += amount;
		charge->entry->pending[measure] += amount;
	}
}

/*
 * Charges all counters of the call, under its locks; or none, and returns
 * false, where a total would pass what can be counted.  rate: the index of the
 * permission whose rate it uses, or -1.
 */
bool
counter_charge(CounterSet *set, int64 tokens, int64 calls, int rate)
{
	int			count = set->nrates > 0 ? set->rates[0].first : set->count; /* without rates */

	for (int i = 0; i < count; i++)
		if (!can_take(set->counters[i].charge, tokens))
			return false;
	for (int i = 0; i < count; i++)
	{
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

/* How the wanted windows of a subject stand in memory; returns those that are not there. */
static int
peek_memory(ScopeKind scope, const char *id, TimestampTz ts, int wanted, bool own_charges_too,
			Usage usage[NUM_PERIODS])
{
	Oid			ledger = ledger_oid();
	int			missing = 0;

	for (int period = 0; period < NUM_PERIODS; period++)
	{
		CounterKey	key;
		uint32		hash;
		CounterEntry *entry;

		if (!(wanted & PERIOD_BIT(period)))
			continue;
		make_key(&key, ledger, scope, id, period, period_start(period, ts));
		hash = hash_key(&key, 0);
		LWLockAcquire(&partition_locks[PARTITION_OF(hash)].lock, LW_SHARED);
		entry = hash_search_with_hash_value(entries, &key, hash, HASH_FIND, NULL);
		if (entry != NULL && entry->loaded)
			usage[period] = usage_of(entry, own_charges_too ? own_charge(&key, hash) : NULL);
		else
			missing |= PERIOD_BIT(period);
		LWLockRelease(&partition_locks[PARTITION_OF(hash)].lock);
	}
	return missing;
}

static void
peek(ScopeKind scope, const char *id, TimestampTz ts, int wanted, bool own_charges_too,
	 Usage usage[NUM_PERIODS])
{
	int			missing = entries ? peek_memory(scope, id, ts, wanted, own_charges_too, usage) : wanted;
	Subject		subject = {{NULL}};
	int			longest[NUM_SCOPES] = {-1, -1, -1, -1};
	Usage		tally[NUM_SCOPES][NUM_PERIODS];

	if (missing == 0)
		return;
	subject.ids[scope] = id;
	longest[scope] = pg_leftmost_one_pos32(missing);
	tally_subjects(&subject, ts, longest, tally);
	for (int period = 0; period < NUM_PERIODS; period++)
		if (missing & PERIOD_BIT(period))
			usage[period] = tally[scope][period];
}

/*
 * How a subject stands in the wanted windows of ts (a PERIOD_BIT each), for
 * advice: from memory where it is there, else from the ledger, without pinning
 * or loading anything.
 */
void
counter_peek(ScopeKind scope, const char *id, TimestampTz ts, int wanted, Usage usage[NUM_PERIODS])
{
	peek(scope, id, ts, wanted, true, usage);
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
			entry->used[measure] += charge->net[measure];
	}
	entry->pins--;
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
	own_destroy(own_entries);
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
		OwnEntry   *own;

		if (charge->level < level)
			break;
		node = dlist_has_prev(&own_charges, node) ? dlist_prev_node(&own_charges, node) : NULL;
		if (commit && (outer == NULL || outer->level < level - 1))
		{
			charge->level = level - 1;
			continue;
		}

		held = switch_partition(held, PARTITION_OF(charge->hash));
		own = own_lookup_hash(own_entries, &charge->entry->key, own_hash_of(charge->hash));
		if (commit)
		{
			for (int measure = 0; measure < NUM_MEASURES; measure++)
			{
				outer->increases[measure] += charge->increases[measure];
				outer->net[measure] += charge->net[measure];
			}
			charge->entry->pins--;
		}
		else
			settle_charge(charge, false);
		if (outer != NULL)
			own->innermost = outer;
		else
			own_delete_item(own_entries, own);
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
	HASH_SEQ_STATUS scan;
	CounterEntry *entry;
	Oid			ledger = ledger_oid();
	int64		dropped = 0;

	counter_require();
	if (!dlist_is_empty(&own_charges))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("kavach_reload_counters() cannot run in a transaction that has called kavach"),
				 errhint("Commit first.")));
	LockRelationOid(ledger, ShareRowExclusiveLock);

	lock_partitions(ALL_PARTITIONS, LW_EXCLUSIVE);
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->key.database != MyDatabaseId || entry->key.ledger != ledger)
			continue;
		Assert(entry->pins == 0);
		hash_search(entries, &entry->key, HASH_REMOVE, NULL);
		dropped++;
	}
	unlock_partitions(ALL_PARTITIONS);
	PG_RETURN_INT64(dropped);
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
	Usage		usage[NUM_PERIODS];
	Datum		values[3];
	bool		nulls[3] = {false};

	peek(scope, subject, ts, PERIOD_BIT(period), !committed, usage);
	values[0] = TimestampTzGetDatum(period_start(period, ts));
	values[1] = Int64GetDatum(usage[period].used[MEASURE_TOKENS]);
	values[2] = Int64GetDatum(usage[period].used[MEASURE_CALLS]);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(answer_desc(fcinfo), values, nulls)));
}

/* Copies of this database's entries, all of one moment. */
static CounterEntry *
copy_entries(Oid ledger, long *count)
{
	CounterEntry *copies = NULL;
	long		room;

	do
	{
		HASH_SEQ_STATUS scan;
		CounterEntry *entry;

		room = hash_get_num_entries(entries) + 1024;
		if (copies != NULL)
			pfree(copies);
		copies = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(CounterEntry) * room);
		*count = 0;
		lock_partitions(ALL_PARTITIONS, LW_SHARED);
		hash_seq_init(&scan, entries);
		while ((entry = hash_seq_search(&scan)) != NULL)
			if (entry->key.database == MyDatabaseId && entry->key.ledger == ledger && (*count)++ < room)
				copies[*count - 1] = *entry;
		unlock_partitions(ALL_PARTITIONS);
	} while (*count > room);
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

ScopeKind
scope_named(const char *name)
{
	for (int scope = 0; scope < NUM_SCOPES; scope++)
		if (strcmp(name, scopes[scope].name) == 0)
			return scope;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized scope \"%s\"", name)));
	return 0;					/* keep compiler quiet */
}
