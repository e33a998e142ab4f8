/*-------------------------------------------------------------------------
 * load.c
 *		Reads usage that is not in memory from the ledger.
 *
 * A window is made and pinned as "not loaded" first (charge.c), then loaded
 * under a heavyweight lock on its subject, with a snapshot taken after that lock
 * was granted: no transaction holds a row for it then that it has not pinned it
 * for.  Locks are taken subject by subject, from all to agent; whose
 * windows another has loaded meanwhile is given back before the ledger is read.
 * That is done once, for all that is missing.
 *-------------------------------------------------------------------------
 */
#include "memory/load.h"

#include "ledger/tally.h"
#include "server/lock.h"

/* The longest window that a subject lacks, or -1: the shorter ones are read with it. */
static int
longest_lacking(const WindowPlace places[NUM_PERIODS])
{
	int			period = PERIOD_TOTAL;

	while (period >= 0 && counter_is_loaded(places[period]))
		period--;
	return period;
}

/* Whether one of a subject's windows is not loaded. */
bool
load_lacks(const WindowPlace places[NUM_PERIODS])
{
	return longest_lacking(places) >= 0;
}

static void
install(WindowPlace places[NUM_PERIODS], uint32 hash, int longest, const Tally *tally)
{
	SubjectWindows *first = &places[PERIOD_TOTAL].entry->windows;

	counter_lock(PARTITION_BIT(hash), LW_EXCLUSIVE);
	for (int period = 0; period <= longest; period++)
		counter_install(places[period], &tally->usage[period]);
	first->newest_row = Min(first->newest_row, tally->newest);
	counter_unlock(PARTITION_BIT(hash));
	counter_note_load();
}

/* The last batch that may have rows of a subject, which is pinned, that are not in memory. */
static int64
last_batch_of(const WindowPlace places[NUM_PERIODS], uint32 hash)
{
	int64		last;

	counter_lock(PARTITION_BIT(hash), LW_SHARED);
	last = counter_last_batch(places[PERIOD_TOTAL].entry, hash);
	counter_unlock(PARTITION_BIT(hash));
	return last;
}

/* Reads the longest windows that are wanted of each subject, and the shorter ones. */
static void
tally(const SubjectList *list, TimestampTz ts, const uint32 hashes[MAX_SUBJECTS],
	  WindowPlace places[MAX_SUBJECTS][NUM_PERIODS], const int longest[MAX_SUBJECTS], bool own,
	  Tally tallies[MAX_SUBJECTS])
{
	int64		last_batch = 0;

	tally_begin(own);
	for (int i = 0; i < list->count; i++)
		if (longest[i] >= 0)
			last_batch = Max(last_batch, last_batch_of(places[i], hashes[i]));
	tally_subjects(list, ts, longest, last_batch, tallies);
	tally_end();
}

/*
 * Loads what is missing of the windows of ts, which are pinned.  own: whether
 * the transaction's own rows count.
 */
void
load_windows(const SubjectList *list, TimestampTz ts, const uint32 hashes[MAX_SUBJECTS],
			 WindowPlace places[MAX_SUBJECTS][NUM_PERIODS], bool own)
{
	int			longest[MAX_SUBJECTS];
	Tally		tallies[MAX_SUBJECTS];
	bool		any = false;

	for (int i = list->count - 1; i >= 0; i--)
	{
		const Subject *subject = &list->subjects[i];

		longest[i] = longest_lacking(places[i]);
		if (longest[i] < 0)
			continue;
		lock_acquire(LOCK_LOAD + subject->scope, subject->id);
		longest[i] = longest_lacking(places[i]);
		if (longest[i] < 0)
			lock_release(LOCK_LOAD + subject->scope, subject->id);
		else
			any = true;
	}
	if (!any)
		return;
	tally(list, ts, hashes, places, longest, own, tallies);
	for (int i = list->count - 1; i >= 0; i--)
	{
		if (longest[i] < 0)
			continue;
		install(places[i], hashes[i], longest[i], &tallies[i]);
		lock_release(LOCK_LOAD + list->subjects[i].scope, list->subjects[i].id);
	}
}
