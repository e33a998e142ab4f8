/*-------------------------------------------------------------------------
 * charge.c
 *		What a call charges to counters, and its transaction has charged.
 *
 * A call that changes counters first pins them, once per nest level of its
 * transaction, and has what is missing read from the ledger (load.c).  It then
 * decides and charges under the locks of all its entries at once, all or
 * nothing (charge_open to charge_close).  Increases go into pending; the
 * transaction callbacks turn pending into used at commit, once the commit is
 * visible, and drop it at abort.  Decreases (refunds) reach the shared entry at
 * commit only, or one that rolls back would have let another overspend; the
 * transaction itself counts them at once (OwnCharge).  A transaction may pin a
 * quarter of all entries at most.
 *
 * Earlier windows: what a settlement gives back counts in the windows of its
 * authorization.  One that has ended by now is changed where it is loaded, and
 * not loaded for this: nobody charges it any more, unless clocks differ or step
 * back.  Where somebody does load it meanwhile, nobody can tell at commit whether
 * his snapshot had the row.  So the refund is noted (GivenBack), is not added to a
 * window that is there by then, which errs on the safe side, and that window goes
 * when its last pin does, to be loaded anew.
 *
 * After a commit nothing here can fail or allocates: what a call may need is
 * reserved before its first pin.
 *-------------------------------------------------------------------------
 */
#include "memory/charge.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "lib/ilist.h"
#include "utils/memutils.h"

#include "ledger/batch.h"
#include "memory/load.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

/* What this transaction has charged to an entry in one of its nest levels: a pin. */
struct OwnCharge
{
	dlist_node	node;			/* in own_charges, outer levels first */
	CounterEntry *entry;
	uint32		hash;			/* of the entry's key */
	int			level;
	OwnCharge  *outer;			/* the same entry, in an outer level */
	int			slots;			/* that it has pinned; of a rate: none */
	union
	{
		struct
		{
			Amounts		increases[NUM_SLOTS];
			Amounts		net[NUM_SLOTS];
		};
		struct
		{
			int64		newest; /* as in a RateRing, of what is pending there */
			int32		calls[RATE_RING];
		};
	};
};

/* The innermost OwnCharge of each entry. */
typedef struct OwnEntry
{
	CounterEntry *entry;
	OwnCharge  *innermost;
	char		status;
} OwnEntry;

/* A refund to a window that was not loaded. */
typedef struct GivenBack
{
	dlist_node	node;			/* in given_back, outer levels first */
	CounterEntry *first;		/* of the subject, which is pinned */
	uint32		hash;
	int			level;
	PeriodKind	period;
	TimestampTz start;
} GivenBack;

#define SH_PREFIX		own
#define SH_ELEMENT_TYPE OwnEntry
#define SH_KEY_TYPE		CounterEntry *
#define SH_KEY			entry
#define SH_HASH_KEY(tb, key)	murmurhash32((uint32) ((uintptr_t) (key) >> 3))
#define SH_EQUAL(tb, a, b)		((a) == (b))
/* It never grows by itself: make_own_room. */
#define SH_GROW_MAX_DIB		PG_INT32_MAX
#define SH_GROW_MAX_MOVE	PG_INT32_MAX
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define MAX_KEPT	1024		/* of what was reserved, from one transaction
								 * to the next */

static dlist_head own_charges = DLIST_STATIC_INIT(own_charges);
static dlist_head free_charges = DLIST_STATIC_INIT(free_charges);
static int	num_free_charges = 0;

static dlist_head given_back = DLIST_STATIC_INIT(given_back);
static dlist_head free_given_back = DLIST_STATIC_INIT(free_given_back);
static int	num_free_given_back = 0;

static own_hash *own_entries = NULL;
static MemoryContext own_context = NULL;	/* of own_entries */

/* ---- what is reserved ---- */

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

			own_insert(table, old->entry, &found)->innermost = old->innermost;
		}
		MemoryContextDelete(own_context);
	}
	MemoryContextSetParent(context, TopMemoryContext);
	own_context = context;
	own_entries = table;
}

/*
 * Reserves what a call needs, so that it cannot fail once a shared pin is
 * taken, nor allocate under the counters' locks.
 */
static void
reserve(const CounterSet *set)
{
	bool		refunds_earlier = set->refund_ts < set->ts;
	int			count = set->list.count * (refunds_earlier ? 2 : 1) * NUM_PERIODS + set->nrates;

	make_own_room(count);
	for (; num_free_charges < count; num_free_charges++)
	{
		OwnCharge  *charge = MemoryContextAlloc(TopMemoryContext, sizeof(OwnCharge));

		dlist_push_tail(&free_charges, &charge->node);
	}
	if (!refunds_earlier)
		return;
	for (; num_free_given_back < set->list.count * PERIOD_TOTAL; num_free_given_back++)
	{
		GivenBack  *refund = MemoryContextAlloc(TopMemoryContext, sizeof(GivenBack));

		dlist_push_tail(&free_given_back, &refund->node);
	}
}

/* ---- pins and own charges; the entry's lock is held ---- */

static OwnCharge *
own_charge(CounterEntry *entry)
{
	OwnEntry   *own;

	if (dlist_is_empty(&own_charges))
		return NULL;
	own = own_lookup(own_entries, entry);
	return own ? own->innermost : NULL;
}

/* Pins an entry for this nest level. */
static OwnCharge *
pin(CounterEntry *entry, uint32 hash, OwnCharge *outer, int level)
{
	OwnCharge  *charge = dlist_container(OwnCharge, node, dlist_pop_head_node(&free_charges));
	bool		found;

	num_free_charges--;
	own_insert(own_entries, entry, &found)->innermost = charge;
	memset(charge, 0, sizeof(OwnCharge));
	charge->entry = entry;
	charge->hash = hash;
	charge->level = level;
	charge->outer = outer;
	if (counter_is_rate(entry))
		charge->newest = PG_INT64_MIN / 2;
	dlist_push_tail(&own_charges, &charge->node);
	entry->pins++;
	entry->touched = true;
	return charge;
}

/* Takes a charge off the transaction's list. */
static void
free_charge(OwnCharge *charge)
{
	dlist_delete(&charge->node);
	dlist_push_head(&free_charges, &charge->node);
	num_free_charges++;
}

/* Takes a charge away from those of its entry, whose next outer one comes to the fore. */
static void
detach_charge(OwnCharge *charge)
{
	OwnEntry   *own = own_lookup(own_entries, charge->entry);

	if (charge->outer != NULL)
		own->innermost = charge->outer;
	else
		own_delete_item(own_entries, own);
}

/* This nest level's pin of an entry, taken if there is none; NULL where it has its share. */
static OwnCharge *
hold(CounterSet *set, CounterEntry *entry, uint32 hash)
{
	int			level = GetCurrentTransactionNestLevel();
	OwnCharge  *own = own_charge(entry);

	if (own != NULL && own->level == level)
		return own;
	if (own == NULL && own_entries->members >= (uint32) counter_share())
		return NULL;
	set->nfresh++;
	return pin(entry, hash, own, level);
}

/* The same for a window.  own: such a pin, of this entry maybe, or NULL. */
static OwnCharge *
hold_window(CounterSet *set, WindowPlace place, uint32 hash, OwnCharge *own)
{
	if (own == NULL || own->entry != place.entry)
		own = hold(set, place.entry, hash);
	if (own == NULL || (own->slots & SLOT_BIT(place.slot)))
		return own;
	own->slots |= SLOT_BIT(place.slot);
	place.entry->windows.users[place.slot]++;
	return own;
}

/* How a window stands for this transaction. */
static Usage
usage_of(WindowPlace place, const OwnCharge *own)
{
	const Window *window = &place.entry->windows.slots[place.slot];
	Usage		usage;

	memcpy(usage.used, window->used, sizeof(Amounts));
	memcpy(usage.pending, window->pending, sizeof(Amounts));
	for (; own != NULL; own = own->outer)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
		{
			usage.used[measure] += own->net[place.slot][measure];
			usage.pending[measure] -= own->increases[place.slot][measure];
		}
	return usage;
}

/* How a window stands, with the transaction's own charges or without. */
Usage
charge_usage_of(WindowPlace place, bool own)
{
	return usage_of(place, own ? own_charge(place.entry) : NULL);
}

/* ---- opening ---- */

typedef enum Outcome
{
	PLACED,
	FULL,						/* the table is */
	TOO_MANY,					/* for one transaction */
	TOO_FAR						/* apart: a subject has that many windows */
} Outcome;

/* Pins a subject's windows of ts. */
static Outcome
place_windows(CounterSet *set, int i, CounterEntry *first)
{
	OwnCharge  *own = NULL;

	for (int period = NUM_PERIODS - 1; period >= 0; period--)
	{
		WindowPlace *place = &set->places[i][period];

		if (!counter_enter_window(first, period, set->starts[period], place))
			return place->entry == NULL ? FULL : TOO_FAR;
		own = hold_window(set, *place, set->hashes[i], own);
		if (own == NULL)
		{
			counter_tidy(place->entry);
			return TOO_MANY;
		}
		set->subjects[i].own[period] = own;
	}
	return PLACED;
}

/* Pins those of its windows of refund_ts that have ended, and are loaded. */
static Outcome
place_earlier_windows(CounterSet *set, int i, CounterEntry *first)
{
	ChargedSubject *subject = &set->subjects[i];

	for (int period = 0; period < PERIOD_TOTAL; period++)
	{
		WindowPlace *place = &subject->earlier[period];
		TimestampTz start = period_start(period, set->refund_ts);

		place->entry = NULL;
		subject->refunds_earlier[period] = start < set->starts[period];
		if (!subject->refunds_earlier[period])
			continue;
		if (!counter_find_window(first, period, start, place) || !counter_is_loaded(*place))
		{
			place->entry = NULL;
			continue;
		}
		subject->own_earlier[period] = hold_window(set, *place, set->hashes[i], NULL);
		if (subject->own_earlier[period] == NULL)
			return TOO_MANY;
	}
	return PLACED;
}

static Outcome
place_rate(CounterSet *set, ChargedRate *rate)
{
	rate->entry = counter_enter(&rate->key, rate->hash);
	if (rate->entry == NULL)
		return FULL;
	rate->own = hold(set, rate->entry, rate->hash);
	if (rate->own != NULL)
		return PLACED;
	counter_tidy(rate->entry);
	return TOO_MANY;
}

/* Pins all that the call charges; what is pinned stays so, and belongs to the transaction. */
static Outcome
place(CounterSet *set)
{
	Outcome		outcome = PLACED;

	for (int i = 0; i < set->list.count && outcome == PLACED; i++)
	{
		CounterEntry *first = counter_enter(&set->subjects[i].key, set->hashes[i]);

		if (first == NULL)
			return FULL;
		if (set->refund_ts < set->ts)
			outcome = place_earlier_windows(set, i, first);
		if (outcome == PLACED)
			outcome = place_windows(set, i, first);
	}
	for (int i = 0; i < set->nrates && outcome == PLACED; i++)
		outcome = place_rate(set, &set->rates[i]);
	return outcome;
}

static void
refuse_share(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("the transaction calls kavach for too many agents"),
			 errdetail("It holds %d usage counters; one transaction may hold %d, one for each agent, user and tenant, and for each permission with a rate per hour.",
					   (int) own_entries->members, counter_share()),
			 errhint("Commit more often, or increase kavach.max_counters.")));
}

static void
refuse_windows(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("open transactions call kavach at too many times"),
			 errdetail("They hold every window that there is room for beside one another of an agent, user, tenant or of all agents."),
			 errhint("Commit more often where kavach.clock moves on.")));
}

/* Whether a rate needs the ledger; moves its ring on otherwise. */
static bool
rate_lacks(const CounterSet *set, ChargedRate *rate)
{
	RateRing   *ring = &rate->entry->rate;
	int64		window = rate_window(set->ts);

	if (!ring->loaded)
		return true;
	if (rate_is_outside(ring, window))
	{
		ring->outdated = true;
		return !rate->outside || rate->commits != ring->commits;
	}
	rate->outside = false;
	rate_advance(ring, window);
	return false;
}

static bool
lacks(CounterSet *set)
{
	bool		any = false;

	for (int i = 0; i < set->list.count && !any; i++)
		any = load_lacks(set->places[i]);
	for (int i = 0; i < set->nrates && !any; i++)
		any = rate_lacks(set, &set->rates[i]);
	return any;
}

/*
 * Fills the ring, or has the ledger tell of a window outside of it: where the
 * ring cannot tell of other such calls, the lock is kept.
 */
static void
load_rate(const CounterSet *set, ChargedRate *rate)
{
	const RateRing *ring = &rate->entry->rate;
	const char *agent_id = set->list.subjects[0].id;
	int64		window = rate_window(set->ts);

	if (ring->loaded && !rate_is_outside(ring, window))
		return;
	lock_acquire(LOCK_LOAD + SCOPE_PERMISSION, rate->id);
	if (ring->loaded && rate_is_outside(ring, window))
	{
		rate->outside = true;
		rate->commits = ring->commits;
		pg_read_barrier();		/* who commits later is not missed */
		rate_tally(agent_id, rate->permission_id, window, rate->calls);
		return;
	}
	if (!ring->loaded)
		rate_load(rate->entry, rate->hash, agent_id, rate->permission_id, window);
	lock_release(LOCK_LOAD + SCOPE_PERMISSION, rate->id);
}

static void
load(CounterSet *set)
{
	load_windows(&set->list, set->ts, set->hashes, set->places, dlist_is_empty(&given_back));
	for (int i = 0; i < set->nrates; i++)
		load_rate(set, &set->rates[i]);
}

static void
begin_set(CounterSet *set, const SubjectList *list, TimestampTz ts, TimestampTz refund_ts,
		  const int64 *rated, int nrated)
{
	Oid			ledger = ledger_oid();

	set->ts = ts;
	set->refund_ts = refund_ts;
	for (int period = 0; period < NUM_PERIODS; period++)
		set->starts[period] = period_start(period, ts);
	set->list = *list;
	set->partitions = 0;
	set->nfresh = 0;
	set->nrates = nrated;
	set->rates = nrated > 0 ? palloc0(sizeof(ChargedRate) * nrated) : NULL;
	for (int i = 0; i < list->count; i++)
	{
		counter_make_key(&set->subjects[i].key, ledger, &list->subjects[i]);
		set->hashes[i] = counter_hash(&set->subjects[i].key);
		set->partitions |= PARTITION_BIT(set->hashes[i]);
	}
	for (int i = 0; i < nrated; i++)
	{
		ChargedRate *rate = &set->rates[i];
		Subject		permission = {SCOPE_PERMISSION, rate->id};

		rate->permission_id = rated[i];
		pg_lltoa(rated[i], rate->id);
		counter_make_key(&rate->key, ledger, &permission);
		rate->hash = counter_hash(&rate->key);
		set->partitions |= PARTITION_BIT(rate->hash);
	}
}

/*
 * Opens the counters of a call: every window of its subjects, of which the first
 * is the agent, and those of the permissions that have a rate per hour.  When
 * it returns they are pinned, loaded and locked: until charge_close nothing may
 * allocate or fail.  The ledger is locked by then (ledger_begin), so that
 * kavach_reload_counters() waits.  refund_ts: ts, or an earlier time, whose
 * windows a negative charge goes to.
 */
void
charge_open(CounterSet *set, const SubjectList *list, TimestampTz ts, TimestampTz refund_ts,
			const int64 *rated, int nrated)
{
	begin_set(set, list, ts, refund_ts, rated, nrated);
	for (;;)
	{
		Outcome		outcome;

		reserve(set);
		counter_lock(set->partitions, LW_EXCLUSIVE);
		outcome = place(set);
		if (outcome == PLACED && !lacks(set))
			return;
		counter_unlock(set->partitions);
		if (outcome == TOO_MANY)
			refuse_share();
		else if (outcome == TOO_FAR)
			refuse_windows();
		else if (outcome == FULL)
			counter_make_room();
		else
			load(set);
	}
}

void
charge_close(CounterSet *set)
{
	counter_unlock(set->partitions);
}

/*
 * Closes a set of which nothing was charged, and gives back the pins that it has
 * taken.  A window that was added to an earlier pin stays with that.
 */
void
charge_cancel(CounterSet *set)
{
	for (; set->nfresh > 0; set->nfresh--)
	{
		OwnCharge  *charge = dlist_container(OwnCharge, node, dlist_tail_node(&own_charges));

		detach_charge(charge);
		counter_unpin(charge->entry, charge->slots);
		free_charge(charge);
	}
	counter_unlock(set->partitions);
}

/* ---- between opening and closing ---- */

/* subject: its index in the list */
Usage
charge_usage(const CounterSet *set, int subject, PeriodKind period)
{
	return usage_of(set->places[subject][period], set->subjects[subject].own[period]);
}

/* What is pending in a ring, of other transactions. */
static int64
others_pending(const RateRing *ring, const OwnCharge *own)
{
	int64		pending = 0;

	for (int i = 0; i < RATE_RING; i++)
		pending += ring->pending[i];
	for (; own != NULL; own = own->outer)
		for (int64 window = own->newest - RATE_RING + 1; window <= own->newest; window++)
			if (rate_has(ring, window))
				pending -= own->calls[rate_slot(window)];
	return pending;
}

/* Calls of a permission, pending ones too, in the windows around ts. */
void
charge_rate(const CounterSet *set, int rate, RateCalls calls)
{
	const ChargedRate *charged = &set->rates[rate];

	if (charged->outside)
	{
		memcpy(calls, charged->calls, sizeof(RateCalls));
		calls[CURRENT_RATE_WINDOW] += others_pending(&charged->entry->rate, charged->own);
	}
	else
		rate_read(&charged->entry->rate, rate_window(set->ts), calls);
}

/*
 * Where a charge to a subject in a period goes: to the window of ts, or an
 * earlier one; NULL where that is not loaded.
 */
static OwnCharge *
charge_for(const CounterSet *set, int i, PeriodKind period, bool refund, WindowPlace *place)
{
	const ChargedSubject *subject = &set->subjects[i];

	if (!refund || set->refund_ts >= set->ts || period == PERIOD_TOTAL || !subject->refunds_earlier[period])
	{
		*place = set->places[i][period];
		return subject->own[period];
	}
	*place = subject->earlier[period];
	return place->entry ? subject->own_earlier[period] : NULL;
}

/*
 * Whether a window can take a charge.  Totals stay within MAX_TOTAL either
 * way, far enough from the ends of bigint for the refunds of other open
 * transactions, which nobody knows of, to come on top.
 */
static bool
can_take(WindowPlace place, const OwnCharge *own, const Amounts amounts)
{
	Usage		usage = usage_of(place, own);

	for (int measure = 0; measure < NUM_MEASURES; measure++)
		if (amounts[measure] > 0 ?
			usage.used[measure] + usage.pending[measure] > MAX_TOTAL - amounts[measure] :
			usage.used[measure] < -MAX_TOTAL - amounts[measure])
			return false;
	return true;
}

static void
add(WindowPlace place, OwnCharge *own, const Amounts amounts)
{
	for (int measure = 0; measure < NUM_MEASURES; measure++)
	{
		own->net[place.slot][measure] += amounts[measure];
		if (amounts[measure] <= 0)
			continue;
		own->increases[place.slot][measure] += amounts[measure];
		place.entry->windows.slots[place.slot].pending[measure] += amounts[measure];
	}
}

/* Notes a refund to a window that is not loaded, unless one of the latest is to the same. */
static void
give_back(CounterEntry *first, uint32 hash, PeriodKind period, TimestampTz start)
{
	GivenBack  *refund;
	int			looked = 0;
	dlist_iter	iter;

	dlist_reverse_foreach(iter, &given_back)
	{
		refund = dlist_container(GivenBack, node, iter.cur);
		if (refund->first == first && refund->period == period && refund->start == start)
			return;
		if (++looked == 64)
			break;
	}
	refund = dlist_container(GivenBack, node, dlist_pop_head_node(&free_given_back));
	num_free_given_back--;
	refund->first = first;
	refund->hash = hash;
	refund->level = GetCurrentTransactionNestLevel();
	refund->period = period;
	refund->start = start;
	dlist_push_tail(&given_back, &refund->node);
}

/* Has a charge to a rate have the windows up to the newest, and none that the ring has forgotten. */
static void
follow_ring(OwnCharge *own, int64 newest)
{
	for (int64 window = Max(own->newest + 1, newest - RATE_RING + 1); window <= newest; window++)
		own->calls[rate_slot(window)] = 0;
	own->newest = Max(own->newest, newest);
}

static void
add_call(ChargedRate *rate, int64 window, int32 calls)
{
	RateRing   *ring = &rate->entry->rate;

	rate_add(ring, window, calls);
	if (!rate_has(ring, window))
		return;
	follow_ring(rate->own, ring->newest);
	rate->own->calls[rate_slot(window)] += calls;
}

/*
 * Charges all counters of the call, under its locks; or none, and returns
 * false, where a total would pass what can be counted.  Where tokens are
 * negative it is a refund.  rate: the index of the permission whose rate it
 * uses, or -1.
 */
bool
charge_add(CounterSet *set, const Amounts amounts, int rate)
{
	bool		refund = amounts[MEASURE_TOKENS] < 0;

	for (int i = 0; i < set->list.count; i++)
		for (int period = 0; period < NUM_PERIODS; period++)
		{
			WindowPlace place;
			OwnCharge  *own = charge_for(set, i, period, refund, &place);

			if (own != NULL && !can_take(place, own, amounts))
				return false;
		}
	for (int i = 0; i < set->list.count; i++)
	{
		CounterEntry *first = set->places[i][PERIOD_TOTAL].entry;

		first->windows.newest_charge = Max(first->windows.newest_charge, set->ts);
		for (int period = 0; period < NUM_PERIODS; period++)
		{
			WindowPlace place;
			OwnCharge  *own = charge_for(set, i, period, refund, &place);

			if (own != NULL)
				add(place, own, amounts);
			else
				give_back(first, set->hashes[i], period, period_start(period, set->refund_ts));
		}
	}
	if (rate >= 0)
		add_call(&set->rates[rate], rate_window(set->ts), (int32) amounts[MEASURE_CALLS]);
	return true;
}

/* What to say of a charge that was not taken, once the locks are given back. */
void
charge_refuse_overflow(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("usage out of range"),
			 errdetail("The total of the agent, its user, its tenant or all agents would pass %lld tokens.", (long long) MAX_TOTAL),
			 errhint("A correction with kavach_adjust() makes room.")));
}

/* ---- the end of (sub)transactions: nothing here may fail or allocate ---- */

/* Whether this transaction has charged, or pinned, anything. */
bool
charge_is_any(void)
{
	return !dlist_is_empty(&own_charges);
}

static void
settle_rate(OwnCharge *charge, bool commit)
{
	for (int64 window = charge->newest - RATE_RING + 1; window <= charge->newest; window++)
	{
		int32		calls = charge->calls[rate_slot(window)];

		if (calls != 0)
			rate_settle(&charge->entry->rate, window, calls, commit);
	}
	counter_unpin(charge->entry, charge->slots);
}

/* The number that rows of this transaction have at most. */
static int64
last_own_batch(const CounterEntry *entry)
{
	return batch_current(entry->key.ledger);
}

static void
settle_windows(OwnCharge *charge, bool commit)
{
	if (commit)
		counter_note_rows(charge->entry, last_own_batch(charge->entry));
	for (int slot = 0; slot < NUM_SLOTS; slot++)
	{
		Window	   *window = &charge->entry->windows.slots[slot];

		if (!(charge->slots & SLOT_BIT(slot)))
			continue;
		for (int measure = 0; measure < NUM_MEASURES; measure++)
		{
			window->pending[measure] -= charge->increases[slot][measure];
			if (commit)
				window->used[measure] += charge->net[slot][measure];
		}
	}
	counter_unpin(charge->entry, charge->slots);
}

static void
settle_charge(OwnCharge *charge, bool commit)
{
	if (counter_is_rate(charge->entry))
		settle_rate(charge, commit);
	else
		settle_windows(charge, commit);
}

static void
merge_rate(OwnCharge *charge)
{
	OwnCharge  *outer = charge->outer;

	follow_ring(outer, charge->newest);
	for (int slot = 0; slot < RATE_RING; slot++)
		outer->calls[slot] += charge->calls[slot];
	counter_unpin(charge->entry, charge->slots);
}

static void
merge_windows(OwnCharge *charge)
{
	OwnCharge  *outer = charge->outer;

	for (int slot = 0; slot < NUM_SLOTS; slot++)
		for (int measure = 0; measure < NUM_MEASURES; measure++)
		{
			outer->increases[slot][measure] += charge->increases[slot][measure];
			outer->net[slot][measure] += charge->net[slot][measure];
		}
	/* windows that only the inner level has pinned are the outer one's now */
	counter_unpin(charge->entry, charge->slots & outer->slots);
	outer->slots |= charge->slots;
}

/* Has what an inner level has charged be its outer level's. */
static void
merge_charge(OwnCharge *charge)
{
	if (counter_is_rate(charge->entry))
		merge_rate(charge);
	else
		merge_windows(charge);
}

/* Neighbours in a list mostly share a partition: its lock is kept across them. */
static uint64
switch_partition(uint64 held, uint64 wanted)
{
	if (held == wanted)
		return held;
	counter_unlock(held);
	counter_lock(wanted, LW_EXCLUSIVE);
	return wanted;
}

/* Of the windows that refunds of this transaction went to, none that is there by now can be relied on. */
static void
doubt_windows(void)
{
	uint64		held = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &given_back)
	{
		GivenBack  *refund = dlist_container(GivenBack, node, iter.cur);
		WindowPlace place;

		held = switch_partition(held, PARTITION_BIT(refund->hash));
		counter_note_rows(refund->first, last_own_batch(refund->first));
		if (counter_find_window(refund->first, refund->period, refund->start, &place))
			counter_doubt(place);
	}
	switch_partition(held, 0);
}

static void
forget_given_back(GivenBack *refund)
{
	dlist_delete(&refund->node);
	dlist_push_head(&free_given_back, &refund->node);
	num_free_given_back++;
}

/* A large transaction's bookkeeping is given back, a small one's is kept. */
static void
forget_own_entries(void)
{
	if (own_entries->size <= MAX_KEPT)
		own_reset(own_entries);
	else
	{
		MemoryContextDelete(own_context);
		own_context = NULL;
		own_entries = NULL;
	}
	for (; num_free_charges > MAX_KEPT; num_free_charges--)
		pfree(dlist_container(OwnCharge, node, dlist_pop_head_node(&free_charges)));
	for (; num_free_given_back > MAX_KEPT; num_free_given_back--)
		pfree(dlist_container(GivenBack, node, dlist_pop_head_node(&free_given_back)));
}

/*
 * At the end of the transaction: pending becomes used, or is dropped.  The
 * commit is visible by now, and the client does not know of it yet.
 */
void
charge_end_transaction(bool commit)
{
	uint64		held = 0;

	if (dlist_is_empty(&own_charges))
		return;
	if (commit)
		doubt_windows();
	while (!dlist_is_empty(&given_back))
		forget_given_back(dlist_head_element(GivenBack, node, &given_back));
	while (!dlist_is_empty(&own_charges))
	{
		OwnCharge  *charge = dlist_head_element(OwnCharge, node, &own_charges);

		held = switch_partition(held, PARTITION_BIT(charge->hash));
		settle_charge(charge, commit);
		free_charge(charge);
	}
	switch_partition(held, 0);
	forget_own_entries();
}

static void
end_given_back(bool commit, int level)
{
	dlist_node *node = dlist_is_empty(&given_back) ? NULL : dlist_tail_node(&given_back);

	while (node != NULL)
	{
		GivenBack  *refund = dlist_container(GivenBack, node, node);

		if (refund->level < level)
			break;
		node = dlist_has_prev(&given_back, node) ? dlist_prev_node(&given_back, node) : NULL;
		if (commit)
			refund->level = level - 1;
		else
			forget_given_back(refund);
	}
}

/*
 * At the end of a subtransaction: its charges go to the level above, or are
 * dropped.
 */
void
charge_end_subtransaction(bool commit, int level)
{
	uint64		held = 0;
	dlist_node *node = dlist_is_empty(&own_charges) ? NULL : dlist_tail_node(&own_charges);

	end_given_back(commit, level);
	while (node != NULL)
	{
		OwnCharge  *charge = dlist_container(OwnCharge, node, node);

		if (charge->level < level)
			break;
		node = dlist_has_prev(&own_charges, node) ? dlist_prev_node(&own_charges, node) : NULL;
		if (commit && (charge->outer == NULL || charge->outer->level < level - 1))
		{
			charge->level = level - 1;
			continue;
		}
		held = switch_partition(held, PARTITION_BIT(charge->hash));
		detach_charge(charge);
		if (commit)
			merge_charge(charge);
		else
			settle_charge(charge, false);
		free_charge(charge);
	}
	switch_partition(held, 0);
}
