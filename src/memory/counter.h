/*-------------------------------------------------------------------------
 * counter.h
 *		The table of counters: usage of subjects in their windows, and rates of
 *		permissions, in shared memory.
 *
 * For the files of this folder; what the verbs use is in charge.h and peek.h.
 *-------------------------------------------------------------------------
 */
#ifndef COUNTER_H
#define COUNTER_H

#include "kavach.h"

#include "lib/ilist.h"
#include "storage/lwlock.h"

#define NUM_PARTITIONS		64
#define PARTITION_OF(hash)	((hash) % NUM_PARTITIONS)
#define PARTITION_BIT(hash)	(UINT64CONST(1) << PARTITION_OF(hash))

/* Longer ids are kept as their first bytes and a digest. */
#define COUNTER_ID_BYTES	37

/* Without padding, as it is compared as a whole. */
typedef struct CounterKey
{
	Oid			database;
	Oid			ledger;
	uint8		scope;
	uint8		spare;			/* 0, or which of those beside the first entry */
	uint8		id_length;		/* of the whole id */
	char		id[COUNTER_ID_BYTES];	/* not terminated */
} CounterKey;

/* What was used in a window, by the ledger and by open transactions. */
typedef struct Window
{
	TimestampTz start;			/* NO_WINDOW: none is here */
	Amounts		used;			/* committed */
	Amounts		pending;		/* open increases, never < 0 */
} Window;

#define NO_WINDOW			DT_NOEND

/* A period's slots come one after the other; that of total alone is one. */
#define NUM_SLOTS			(2 * PERIOD_TOTAL + 1)
#define FIRST_SLOT(period)	(2 * (int) (period))
#define LAST_SLOT(period)	((period) == PERIOD_TOTAL ? NUM_SLOTS - 1 : 2 * (int) (period) + 1)
#define SLOT_BIT(slot)		(1 << (slot))

typedef struct SubjectWindows
{
	TimestampTz newest_row;		/* no row that was loaded counts later */
	TimestampTz newest_charge;	/* nor a charge since */
	Window		slots[NUM_SLOTS];
	int32		users[NUM_SLOTS];	/* pins of each */
	uint8		loaded;			/* slots whose "used" is the ledger's sum */
	uint8		doubtful;		/* those where it may lack a refund */
	uint8		spares;			/* so many entries are beside this one */
} SubjectWindows;

/* The calls of a permission, by number of the window modulo RATE_RING; see rate.c. */
#define RATE_RING			32

typedef struct RateRing
{
	bool		loaded;
	bool		outdated;		/* goes with the last pin */
	int64		newest;			/* the last window that is in the ring */
	int64		limit;			/* a window that it must not come to */
	uint64		commits;		/* how many pending charges have become used */
	int32		used[RATE_RING];
	int32		pending[RATE_RING];
} RateRing;

/* Stands for numbers that an entry has no room for. */
#define ANY_BATCH			PG_INT32_MAX

typedef struct CounterEntry
{
	CounterKey	key;			/* first */
	int32		pins;			/* of all transactions' nest levels */
	uint32		touched:1;		/* pinned since eviction last came by */
	uint32		last_batch:31;	/* that calls' rows of it may be in; ANY_BATCH */
	dlist_node	node;			/* in its partition's list */
	union
	{
		SubjectWindows windows;
		RateRing	rate;		/* of a permission */
	};
} CounterEntry;

/* A window of a subject, where it is. */
typedef struct WindowPlace
{
	CounterEntry *entry;
	int			slot;
} WindowPlace;

typedef struct CounterStats
{
	uint64		loads;
	uint64		evictions;
	uint64		refusals;
} CounterStats;

extern void counter_define_settings(void);
extern Size counter_shmem_size(void);
extern void counter_request_locks(void);
extern void counter_shmem_startup(void);
extern void counter_warn_if_small(void);
extern bool counter_is_there(void);
extern void counter_require(void);
extern int	counter_share(void);

extern void counter_make_key(CounterKey *key, Oid ledger, const Subject *subject);
extern uint32 counter_hash(const CounterKey *key);
extern char *counter_id(const CounterKey *key);

extern void counter_lock(uint64 partitions, LWLockMode mode);
extern void counter_unlock(uint64 partitions);
extern CounterEntry *counter_find(const CounterKey *key, uint32 hash);
extern CounterEntry *counter_enter(const CounterKey *key, uint32 hash);
extern void counter_make_room(void);
extern bool counter_find_window(CounterEntry *first, PeriodKind period, TimestampTz start, WindowPlace *place);
extern bool counter_enter_window(CounterEntry *first, PeriodKind period, TimestampTz start, WindowPlace *place);
extern bool counter_is_later(const CounterEntry *first, TimestampTz start);
extern bool counter_is_rate(const CounterEntry *entry);
extern bool counter_is_loaded(WindowPlace place);
extern void counter_install(WindowPlace place, const Usage *usage);
extern void counter_doubt(WindowPlace place);
extern void counter_tidy(CounterEntry *entry);
extern void counter_unpin(CounterEntry *entry, int slots);
extern void counter_note_rows(CounterEntry *first, int64 batch);
extern int64 counter_last_batch(const CounterEntry *first, uint32 hash);
extern void counter_note_load(void);

extern CounterStats counter_stats(void);
extern long counter_drop_all(Oid ledger);
extern CounterEntry *counter_copy_all(Oid ledger, long *count);

#endif							/* COUNTER_H */
