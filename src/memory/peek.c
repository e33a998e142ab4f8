/*-------------------------------------------------------------------------
 * peek.c
 *		How usage stands, for advice: nothing is charged.
 *
 * From memory, under shared locks.  Who asks for a decision in advance has what
 * is missing loaded as a call does, and pins it for as long as it looks; reports,
 * which have a long snapshot, and who cannot load (a standby, or without preload)
 * have it summed up from the ledger.
 *-------------------------------------------------------------------------
 */
#include "memory/peek.h"

#include "access/xlog.h"
#include "port/pg_bitutils.h"

#include "ledger/tally.h"
#include "memory/charge.h"
#include "memory/counter.h"
#include "server/clock.h"
#include "server/lock.h"
#include "server/query.h"

/* How a window stands in memory, where it is loaded or known to be empty. */
static bool
look(CounterEntry *first, PeriodKind period, TimestampTz start, bool own, Usage *usage)
{
	WindowPlace place;

	if (counter_find_window(first, period, start, &place))
	{
		*usage = charge_usage_of(place, own);
		return counter_is_loaded(place);
	}
	memset(usage, 0, sizeof(Usage));
	return counter_is_later(first, start);
}

/*
 * How the wanted windows of a subject stand in memory; returns those that are not
 * there.  last_batch: the last that may have rows of theirs.
 */
static int
peek_memory(const Subject *subject, TimestampTz ts, int wanted, bool own, Usage usage[NUM_PERIODS],
			int64 *last_batch)
{
	CounterKey	key;
	CounterEntry *first;
	uint32		hash;
	int			missing = 0;
	TimestampTz starts[NUM_PERIODS];

	*last_batch = PG_INT64_MAX;
	if (wanted == 0 || !counter_is_there())
		return wanted;
	counter_make_key(&key, ledger_oid(), subject);
	hash = counter_hash(&key);
	for (int period = 0; period < NUM_PERIODS; period++)
		starts[period] = period_start(period, ts);
	counter_lock(PARTITION_BIT(hash), LW_SHARED);
	first = counter_find(&key, hash);
	for (int period = 0; period < NUM_PERIODS; period++)
		if ((wanted & PERIOD_BIT(period)) &&
			(first == NULL || !look(first, period, starts[period], own, &usage[period])))
			missing |= PERIOD_BIT(period);
	*last_batch = counter_last_batch(first, hash);
	counter_unlock(PARTITION_BIT(hash));
	return missing;
}

/* Whether counters can be loaded: not without preload, nor on a standby. */
static bool
can_load(void)
{
	return counter_is_there() && !RecoveryInProgress();
}

/*
 * Reads the missing windows of the subjects from the ledger, in one go.  What is
 * in memory by the time of the snapshot is taken from there: of the rest, all rows
 * that the snapshot has are of batches that memory knows of, but for those that
 * this transaction has written itself.
 */
static void
tally_missing(const SubjectList *list, TimestampTz ts, bool own, int missing[MAX_SUBJECTS],
			  Usage usage[MAX_SUBJECTS][NUM_PERIODS])
{
	int			longest[MAX_SUBJECTS];
	Tally		tallies[MAX_SUBJECTS];
	int64		last_batch = charge_is_any() ? PG_INT64_MAX : 0;

	tally_begin(true);
	for (int i = 0; i < list->count; i++)
	{
		int64		last;

		longest[i] = -1;
		missing[i] = peek_memory(&list->subjects[i], ts, missing[i], own, usage[i], &last);
		if (!missing[i])
			continue;
		longest[i] = pg_leftmost_one_pos32(missing[i]);
		last_batch = Max(last_batch, last);
	}
	tally_subjects(list, ts, longest, last_batch, tallies);
	tally_end();
	for (int i = 0; i < list->count; i++)
		for (int period = 0; period < NUM_PERIODS; period++)
			if (missing[i] & PERIOD_BIT(period))
				usage[i][period] = tallies[i].usage[period];
}

/*
 * Loads the subjects of which something is missing, as a call does, and reads
 * them.  The ledger is locked as long as there are pins, which is not long.
 */
static void
load_missing(const SubjectList *list, TimestampTz ts, const int missing[MAX_SUBJECTS],
			 Usage usage[MAX_SUBJECTS][NUM_PERIODS])
{
	CounterSet	set;
	SubjectList lacking = {0};
	int			at[MAX_SUBJECTS];
	Oid			ledger = ledger_oid();

	for (int i = 0; i < list->count; i++)
		if (missing[i])
		{
			at[lacking.count] = i;
			lacking.subjects[lacking.count++] = list->subjects[i];
		}
	lock_relation(ledger, RowExclusiveLock);
	charge_open(&set, &lacking, ts, ts, NULL, 0);
	for (int i = 0; i < lacking.count; i++)
		for (int period = 0; period < NUM_PERIODS; period++)
			usage[at[i]][period] = charge_usage(&set, i, period);
	charge_cancel(&set);
	unlock_relation(ledger, RowExclusiveLock);
}

/*
 * How subjects stand in the wanted windows of ts (a PERIOD_BIT each): from
 * memory, where it is loaded to if it is not there.
 */
void
peek_usage(const SubjectList *list, TimestampTz ts, const int wanted[MAX_SUBJECTS],
		   Usage usage[MAX_SUBJECTS][NUM_PERIODS])
{
	int			missing[MAX_SUBJECTS];
	int			all_missing = 0;
	int64		last_batch;

	for (int i = 0; i < list->count; i++)
	{
		missing[i] = peek_memory(&list->subjects[i], ts, wanted[i], true, usage[i], &last_batch);
		all_missing |= missing[i];
	}
	if (all_missing == 0)
		return;
	if (can_load())
		load_missing(list, ts, missing, usage);
	else
		tally_missing(list, ts, true, missing, usage);
}

/*
 * The calls of a permission in the windows around ts, as charge_rate tells: from
 * memory where its ring is there, else from the ledger.
 */
void
peek_rate(const char *agent_id, int64 permission_id, TimestampTz ts, RateCalls calls)
{
	Subject		permission = {SCOPE_PERMISSION, psprintf("%lld", (long long) permission_id)};
	int64		window = rate_window(ts);
	bool		found = false;
	CounterKey	key;
	uint32		hash;

	if (counter_is_there())
	{
		CounterEntry *entry;

		counter_make_key(&key, ledger_oid(), &permission);
		hash = counter_hash(&key);
		counter_lock(PARTITION_BIT(hash), LW_SHARED);
		entry = counter_find(&key, hash);
		found = entry != NULL && entry->rate.loaded && !rate_is_outside(&entry->rate, window);
		if (found)
			rate_read(&entry->rate, window, calls);
		counter_unlock(PARTITION_BIT(hash));
	}
	if (!found)
		rate_tally(agent_id, permission_id, window, calls);
}

/* From memory, or from the ledger, without loading: a report has a long snapshot. */
Usage
peek_current(const Subject *subject, PeriodKind period, TimestampTz ts, bool own)
{
	Usage		usage[MAX_SUBJECTS][NUM_PERIODS];
	SubjectList list = {1, {*subject}};
	int64		last_batch;
	int			missing[MAX_SUBJECTS] = {
		peek_memory(subject, ts, PERIOD_BIT(period), own, usage[0], &last_batch)
	};

	if (missing[0])
		tally_missing(&list, ts, own, missing, usage);
	return usage[0][period];
}
