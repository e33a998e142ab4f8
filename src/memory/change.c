/*-------------------------------------------------------------------------
 * change.c
 *		When what has been looked up is no longer good.
 *
 * Whoever changes what calls look up (watch.c: the triggers on the tables)
 * notes here whom it is about: one agent, user or tenant, everybody (a policy
 * for each of them, or for all agents), or the whole database.  The commit of
 * the transaction makes it known to all sessions: what was read before is not
 * used any more by the next call.
 *
 * Generations are counters in shared memory, in slots by hash of database and
 * subject, and one for each database's slot.  A subject's generation is the sum
 * of the two.  What was read is good as long as the generation stands that was
 * read before its snapshot was taken.
 *
 * A commit advances each of its slots in two steps: before it is visible, by one
 * that is under way, and afterwards, when it is visible and before the client is
 * told, by the rest.  Meanwhile nothing that is kept of these subjects is good,
 * and nothing that is read of them is to be kept.  So who has copied what is
 * kept of several subjects, and then finds that all their generations stand, has
 * them as they were at one moment: a transaction that takes a limit from one
 * subject and gives it to another is obeyed wholly, or not yet.
 *
 * A transaction that rolls back to a savepoint has noted too much, which costs
 * others a look at the tables.
 *-------------------------------------------------------------------------
 */
#include "memory/change.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/shmem.h"

#define SUBJECT_SLOTS	65536
#define DATABASE_SLOTS	64
#define NUM_SLOTS		(SUBJECT_SLOTS + DATABASE_SLOTS)

/* A slot: how many commits are under way (fewer than backends), and above that how many are done. */
#define UNDER_WAY		UINT64CONST(1)
#define DONE			(UINT64CONST(1) << 20)

typedef struct Generations
{
	pg_atomic_uint64 slots[NUM_SLOTS];
} Generations;

typedef struct SlotSet
{
	uint64		words[NUM_SLOTS / 64];
} SlotSet;

static Generations *generations = NULL;

/* What this transaction has changed, and what of it is under way. */
static bool noted_any = false;
static bool any_under_way = false;
static SlotSet noted;
static SlotSet under_way;

Size
change_shmem_size(void)
{
	return MAXALIGN(sizeof(Generations));
}

/* Called with AddinShmemInitLock held. */
void
change_shmem_startup(void)
{
	bool		found;

	generations = ShmemInitStruct("kavach generations", sizeof(Generations), &found);
	if (found)
		return;
	for (int i = 0; i < NUM_SLOTS; i++)
		pg_atomic_init_u64(&generations->slots[i], 0);
}

/* ---- generations ---- */

/* Of a subject in this database. */
uint64
subject_hash(ScopeKind scope, const char *id)
{
	uint64		seed = ((uint64) MyDatabaseId << 8) | scope;

	return hash_bytes_extended((const unsigned char *) (id ? id : ""), id ? strlen(id) : 0, seed);
}

static int
subject_slot(uint64 hash)
{
	return hash % SUBJECT_SLOTS;
}

static int
database_slot(void)
{
	return SUBJECT_SLOTS + MyDatabaseId % DATABASE_SLOTS;
}

/* The generation of a subject: read it before the snapshot. */
uint64
change_generation(uint64 hash)
{
	return pg_atomic_read_u64(&generations->slots[subject_slot(hash)]) +
		pg_atomic_read_u64(&generations->slots[database_slot()]);
}

/* Whether it is of a moment at which a commit was on its way: nothing that is read then is to be kept. */
bool
change_under_way(uint64 generation)
{
	return generation % DONE != 0;
}

/* ---- noting ---- */

static void
note_slot(int slot)
{
	noted_any = true;
	noted.words[slot / 64] |= UINT64CONST(1) << (slot % 64);
}

/* This transaction changes what calls look up about a subject; of all: about everybody. */
void
change_note(ScopeKind scope, const char *id)
{
	note_slot(subject_slot(subject_hash(scope, id)));
}

/* The same, about it is not known whom. */
void
change_note_everything(void)
{
	note_slot(database_slot());
}

/* Whether this transaction has changed what calls look up. */
bool
change_noted(void)
{
	return noted_any;
}

/* ---- the end ---- */

static void
advance(SlotSet *set, uint64 step)
{
	for (int word = 0; word < NUM_SLOTS / 64; word++)
		for (uint64 bits = set->words[word]; bits != 0; bits &= bits - 1)
			pg_atomic_fetch_add_u64(&generations->slots[word * 64 + pg_rightmost_one_pos64(bits)], step);
}

/* What is noted after this, by others who are called before a commit, is advanced in one step. */
void
change_before_commit(void)
{
	if (!noted_any || generations == NULL)
		return;
	advance(&noted, UNDER_WAY);
	under_way = noted;
	any_under_way = true;
	memset(&noted, 0, sizeof(noted));
}

/* Nothing here may fail. */
void
change_end_transaction(bool commit)
{
	if (!noted_any)
		return;
	if (any_under_way)
	{
		advance(&under_way, DONE - UNDER_WAY);
		memset(&under_way, 0, sizeof(under_way));
	}
	if (commit && generations != NULL)
		advance(&noted, DONE);
	memset(&noted, 0, sizeof(noted));
	any_under_way = false;
	noted_any = false;
}
